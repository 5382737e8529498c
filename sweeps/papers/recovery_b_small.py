"""Does an L1 autoencoder recover features in superposition, equally frequent? Small: 128 features, 64 dimensions.

The small tier of P2, generator B: 3 of 128 features are active, the most frequent 2.6 times as often as the rarest. All
else is that of `recovery_a_small.py`.

5 widths x 17 L1 x 2 seeds = 170 members in 5 compiled programs.

Result: with at least as many latents as features, the best MMCS is .988 to .999, at L1 .1 to .32. Seven of ten claims
hold. Misses: (d) half as many latents reach .76; (f) with 512 latents, MMCS in 1,024 follows the truth at .64.
Undecided: (g) the peak varies by a factor of 1.8 in one seed and 3.2 in the other. (2 CPU cores: 1 min 37 s.)

    sae run sweeps/papers/recovery_b_small.py
"""

from sae import Sweep, grid, replace
from sae.analysis.recovery import MmcsLarger
from sweeps.papers import recovery_a, recovery_a_small

base = replace(recovery_a_small.base, {"name": "recovery_b_small", "data.generator": "B"})

sweep = Sweep(
    name="recovery_b_small",
    members=grid(
        base, {"d_sae": recovery_a_small.WIDTHS, "penalty.l1": recovery_a_small.QUARTER_DECADES, "seed": (1, 2)}
    ),
    measures=[MmcsLarger()],
    answer=recovery_a.answer("eval/mmcs"),
    figures=recovery_a.figures(),
    claims=recovery_a.claims(recovery_a_small.FEATURES, recovery_a_small.WIDTHS, best="eval/mmcs"),
)

"""Does an L1 autoencoder recover features in superposition, equally frequent, and can one tell without the truth?

P2 of the paper suite: Sharkey, Braun & Millidge 2022; Heap et al. 2025 (arXiv 2501.17727), Fig. 4. Generator B: 512
features in 256 dimensions, 5 active, nearly equally often. All else is that of `recovery_a.py`, which defines the
claims, lists the differences from the papers, and says what the grid and ties do to (e) and (g).

4 widths x 9 L1 x 2 seeds = 72 members in 4 compiled programs.

Result: 7 of 10 claims hold. 512, 1,024 and 2,048 latents find all features (MMCS .998 and more). Misses: (d) half as
many latents reach .656, .006 too much; (e) deaths begin 1.03 decades above the peak with 512 latents, as none is spare,
and 1.4 decades below it with 2,048; (g) the top is flat over a decade, and the peaks of two widths lie a point of the
grid apart. (2 CPU cores: 45 min.)

    sae run sweeps/papers/recovery_b.py
"""

from sae import Sweep, grid, replace
from sae.analysis.recovery import MmcsLarger
from sweeps.papers import recovery_a

base = replace(recovery_a.base, {"name": "recovery_b", "data.generator": "B"})

sweep = Sweep(
    name="recovery_b",
    members=grid(base, {"d_sae": recovery_a.WIDTHS, "penalty.l1": recovery_a.HALF_DECADES, "seed": (1, 2)}),
    measures=[MmcsLarger()],
    answer=recovery_a.answer("eval/mmcs"),
    figures=recovery_a.figures(),
    claims=recovery_a.claims(recovery_a.FEATURES, recovery_a.WIDTHS, best="eval/mmcs"),
)

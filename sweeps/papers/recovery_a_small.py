"""Does an L1 autoencoder recover features in superposition, frequencies unequal? Small: 128 features, 64 dimensions.

The small tier of P2, generator A: 3 of 128 features are active, the most frequent 3.6 times as often as the rarest. The
claims and what they read are those of `recovery_a.py`; on this finer grid, (b) asks for a zone half as wide.

5 widths x 17 L1 x 2 seeds = 170 members in 5 compiled programs. Differs from the full tier in the suite's small sizes
and in a grid whose neighbours are a quarter of a decade apart. To take about two minutes it also trains for 1,600 steps
of 64 examples, at a learning rate of .007 that falls to 0 over the second half. Rate and batch size were chosen, with
another seed, by the MMCS that 1,024 latents reach in so short a time; so fast a rate kills some of these latents at
every coefficient.

Result: with at least as many latents as features, the best weighted MMCS is .971 to .999, at L1 .18 to .32. Seven of
ten claims hold. Misses: (d) half as many latents reach .71; (e) with 128 latents the Spearman is .87, as the dead
fraction is 0 at most coefficients; (f) with 512 latents, MMCS in 1,024 follows the truth at .64. (2 CPU cores: 1 min
45 s.)

    sae run sweeps/papers/recovery_a_small.py
"""

from sae import Adam, Superposition, Sweep, grid, replace
from sae.analysis.recovery import MmcsLarger
from sweeps.papers import recovery_a

FEATURES = 128
WIDTHS = (64, 128, 256, 512, 1024)
QUARTER_DECADES = tuple(10 ** (k / 4) for k in range(-12, 5))  # .001 to 10

base = replace(
    recovery_a.base,
    {
        "name": "recovery_a_small",
        "data": Superposition(d_in=64, n_features=FEATURES, n_active=3.0, generator="A"),
        "optimizer": Adam(lr=7e-3, warmup_steps=50, decay_steps=800),
        "batch_size": 64,
        "n_steps": 1_600,
        "n_eval": 8_192,
    },
)

sweep = Sweep(
    name="recovery_a_small",
    members=grid(base, {"d_sae": WIDTHS, "penalty.l1": QUARTER_DECADES, "seed": (1, 2)}),
    measures=[MmcsLarger()],
    answer=recovery_a.answer("eval/mmcs_weighted"),
    figures=recovery_a.figures("eval/mmcs_weighted"),
    claims=recovery_a.claims(FEATURES, WIDTHS, best="eval/mmcs_weighted"),
)

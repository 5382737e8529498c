"""The small tier of gabor.py: 8x8 patches, 96 latents, three coefficients, two seeds.

(3 L1 + no penalty) x 2 seeds = 8 members in one compiled program.

    sae run sweeps/papers/gabor_small.py
"""

from sae import Sweep, grid, replace
from sae.analysis.gabor import GaborLike
from sweeps.papers import gabor as full

base = replace(
    full.base,
    {"name": "gabor_small", "data.size": 8, "d_sae": 96, "n_steps": 4_000, "optimizer.decay_steps": 1_000},
)
L1, SEEDS = (0.7, 1.5, 3.2), (1, 2)

sweep = Sweep(
    name="gabor_small",
    members=grid(base, {"penalty.l1": (0.0, *L1), "seed": SEEDS}),
    measures=[GaborLike(n_random=200)],
    figures=full.SHOWN,
    claims=full.claims(L1),
)

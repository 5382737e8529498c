"""Does an L1 penalty on natural-image patches give Gabor-like directions? Small: 8x8 patches, 96 latents.

(3 L1 + no penalty) x 2 seeds = 8 members in 1 compiled program. Differs from `gabor.py` in these sizes, in 4,000 steps,
three coefficients, two seeds and 200 random rows.

Result: hardly. At L1 1.5 a Gabor function fits with median r2 .80, but only 5 % of the live rows are Gabor-like, and
one bin of orientation is empty; the four other claims hold. The rows lack localisation (7 % have it): on 8x8 pixels
most envelopes are longer than a third of the patch. (2 CPU cores: 20 s.)

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

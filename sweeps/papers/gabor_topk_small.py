"""Does keeping the k largest latents give Gabor-like directions? Small: 8x8 patches, 96 latents.

2 k x 2 seeds = 4 members in 1 compiled program. Differs from `gabor_topk.py` in the sizes of `gabor_small.py`, 1,000
steps, two k, two seeds and 50 random rows.

Result: none of three claims holds: 2 % of the rows are Gabor-like, as with L1 on such small patches, and after so few
steps the median r2 is .70. (2 CPU cores, beside other work: 1 min.)

    sae run sweeps/papers/gabor_topk_small.py
"""

from sae import Sweep, TopK, grid, replace
from sae.analysis.gabor import GaborLike
from sweeps.papers import gabor_small
from sweeps.papers import gabor_topk as full

steps = {"n_steps": 1_000, "optimizer.decay_steps": 500}
base = replace(gabor_small.base, {"name": "gabor_topk_small", "activation": TopK(k=8), **steps})

sweep = Sweep(
    name="gabor_topk_small",
    members=grid(base, {"activation.k": (4, 8), "seed": gabor_small.SEEDS}),
    measures=[GaborLike(n_random=50)],
    figures=full.FIGURES,
    claims=full.CLAIMS,
)

"""Does keeping the k largest latents give Gabor-like directions? Small: 8x8 patches, 96 latents.

3 k x 2 seeds = 6 members in 1 compiled program. Differs from `gabor_topk.py` in the sizes of `gabor_small.py`, 1,500
steps, three k, two seeds and 100 random rows.

    sae run sweeps/papers/gabor_topk_small.py
"""

from sae import Sweep, TopK, grid, replace
from sae.analysis.gabor import GaborLike
from sweeps.papers import gabor_small
from sweeps.papers import gabor_topk as full

steps = {"n_steps": 1_500, "optimizer.decay_steps": 500}
base = replace(gabor_small.base, {"name": "gabor_topk_small", "activation": TopK(k=8), **steps})

sweep = Sweep(
    name="gabor_topk_small",
    members=grid(base, {"activation.k": (4, 8, 16), "seed": gabor_small.SEEDS}),
    measures=[GaborLike(n_random=100)],
    figures=full.FIGURES,
    claims=full.CLAIMS,
)

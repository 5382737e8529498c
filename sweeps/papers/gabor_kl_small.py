"""Do 25 sigmoid units with a rare firing rate become localised Gabor functions? Fewer steps and seeds.

2 seeds = 2 members in one compiled program. Differs from `gabor_kl.py` in 1,000 steps of 1,000 patches, two seeds and
20 random rows.

Result: no row is localised and fitted. The mean firing rate is .011, as asked. (1 CPU core: 27 s.)

    sae run sweeps/papers/gabor_kl_small.py
"""

from sae import Sweep, grid, replace
from sae.analysis.gabor import GaborLike
from sweeps.papers import gabor_kl as full

steps = {"n_steps": 1_000, "batch_size": 1_000, "optimizer.decay_steps": 500}
base = replace(full.base, {"name": "gabor_kl_small", **steps})

sweep = Sweep(
    name="gabor_kl_small",
    members=grid(base, {"seed": (1, 2)}),
    measures=[GaborLike(n_random=20)],
    figures=full.FIGURES,
    claims=full.CLAIMS,
)

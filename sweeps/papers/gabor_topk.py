"""Does keeping the k largest latents give Gabor-like directions on natural-image patches, as an L1 penalty should?

P6 of the paper suite, its half about TopK: Olshausen & Field 1996, with the sparsity of Makhzani & Frey 2013 and Gao et
al. 2024 (arXiv 2406.04093). Differs from `gabor.py` in that a TopK without a penalty replaces ReLU and L1. Its controls
(no penalty, principal components, random rows) are those of `gabor.py`, on the same patches.

6 k x 5 seeds = 30 members in one compiled program. The claims are decided at the k that comes closest to meeting the
first two.

Result: 1 of 3 claims holds. 24 % of the rows are Gabor-like at best (k = 16), where L1 has 42 % and 60 % were asked
for: 69 % of them are not localised. The median r2 is .81. (2 CPU cores: 2 h beside much other work.)

    sae run sweeps/papers/gabor_topk.py
"""

from sae import AtLeast, Claim, Dictionaries, Frontier, Profile, Sweep, TopK, grid, replace
from sae.analysis.gabor import GaborLike
from sae.study.quantities import Arm, AtSome
from sweeps.papers import gabor

K = (2, 4, 8, 16, 32, 64)

base = replace(gabor.base, {"name": "gabor_topk", "activation": TopK(k=8)})

LEAST = {"analysis/gabor_share": 0.6, "analysis/gabor_median_r2": 0.75}
some = lambda metric: AtSome(arm=Arm(along="activation.k"), metric=f"analysis/{metric}", least=LEAST)
CLAIMS = (
    Claim("TopK: live rows are Gabor-like: share", AtLeast(some("gabor_share"), 0.6), gabor.SOURCE),
    Claim("TopK: Gabor functions fit them: median r2", AtLeast(some("gabor_median_r2"), 0.75), gabor.SOURCE),
    Claim(
        "TopK: they have every orientation: share of the Gabor-like in the emptiest bin of 30 degrees",
        AtLeast(some("gabor_least_orientation"), 0.05),
        gabor.SOURCE,
    ),
)
FIGURES = (
    Frontier(along=("activation.k",)),
    *(Profile(metric=f"analysis/gabor_{name}", x="activation.k") for name in ("share", "median_r2", "localised")),
    Dictionaries(along=("activation.k",), metric="analysis/gabor_share", near=1.0, latents=288),
)

sweep = Sweep(
    name="gabor_topk",
    members=grid(base, {"activation.k": K, "seed": gabor.SEEDS}),
    measures=[GaborLike()],
    figures=FIGURES,
    claims=CLAIMS,
)

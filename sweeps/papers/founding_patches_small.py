"""The small tier of founding_patches.py: do its claims show already at two widths and two seeds?

2 widths x (7 L1 + 7 L2 + no penalty) x 2 seeds = 60 members in 2 compiled programs.

Result: 25 of 26 claims hold. The miss: L1 removes .94 dB more noise than PCA, not 1. (2 CPU cores: 43 s.)

    sae run sweeps/papers/founding_patches_small.py
"""

from sae import Sweep, replace
from sae.analysis.copying import Copying
from sae.analysis.denoising import Denoising
from sae.analysis.small_latents import SmallLatents
from sweeps.papers import founding_patches as full

base = replace(full.base, {"name": "founding_patches_small", "n_steps": 1_500, "optimizer.decay_steps": 300})
WIDTHS, L1, L2, SEEDS = (64, 128), full.L1[::2], full.L2[::2], (1, 2)

sweep = Sweep(
    name="founding_patches_small",
    members=full.members(base, WIDTHS, L1, L2, SEEDS),
    answer=full.sweep.answer,
    measures=[SmallLatents(n=1_024), Copying(n=512), Denoising(n=2_048)],
    figures=full.SHOWN,
    claims=[*full.silences(WIDTHS, L1), *full.filters(128), *full.copies_not(128, L1)],
)

"""The small tier of founding_digits.py: do its claims show already at two widths and two seeds?

2 widths x (7 L1 + 7 L2 + no penalty) x 2 seeds = 60 members in 2 compiled programs.

Result: 10 of 12 claims hold. In the other two, L1 has 1 or 2 points more latents dead, not 5, and the cosine of the
winning latents with a training image is .84, not .85. (2 CPU cores: 51 s.)

    sae run sweeps/papers/founding_digits_small.py
"""

from sae import Sweep, replace
from sweeps.papers import founding_digits as full
from sweeps.papers import founding_patches as patches

base = replace(full.base, {"name": "founding_digits_small", "n_steps": 1_500, "optimizer.decay_steps": 300})
WIDTHS, L1, L2, SEEDS = (64, 256), full.L1[::2], full.L2[::2], (1, 2)

sweep = Sweep(
    name="founding_digits_small",
    members=patches.members(base, WIDTHS, L1, L2, SEEDS),
    answer=patches.sweep.answer,
    measures=full.MEASURES,
    figures=full.SHOWN,
    claims=[*patches.silences(WIDTHS, L1), *full.kills(256), *full.one_latent(WIDTHS)],
)

"""Does L1 shrink what it recovers by as much as the closed form says? A third of the steps of `shrinkage.py`.

5 L1 x 3 seeds = 15 members in 1 compiled program. Differs from `shrinkage.py` only in its 2,000 steps instead of 6,000.

Result: yes. γ is within .007 of it at every coefficient, the shift within .2 % of λ/2. (2 CPU cores: 12 s.)

    sae run sweeps/papers/shrinkage_small.py
"""

from sae import Sweep, grid, replace
from sae.analysis.recovery import Shrinkage
from sweeps.papers import shrinkage

steps = {"n_steps": 2_000, "penalty.warmup_steps": 700, "optimizer.decay_steps": 700}
base = replace(shrinkage.base, {"name": "shrinkage_small", **steps})

sweep = Sweep(
    name="shrinkage_small",
    members=grid(base, {"penalty.l1": shrinkage.COEFFICIENTS, "seed": (1, 2, 3)}),
    measures=[Shrinkage()],
    figures=shrinkage.FIGURES,
    claims=shrinkage.CLAIMS,
)

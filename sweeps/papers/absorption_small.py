"""Do the latents of child features absorb their parents, and do nested prefixes prevent it? Fewer steps and seeds.

3 kinds of data x 2 methods x 2 seeds = 12 members in 6 compiled programs. Differs from `absorption.py` in 5,000 steps,
the last 1,000 of them with a falling learning rate, and in two seeds, both of which must keep a bound.

    sae run sweeps/papers/absorption_small.py
"""

from sae import Sweep, replace
from sae.analysis.absorption import Absorption
from sweeps.papers import absorption as full

base = replace(full.base, {"name": "absorption_small", "n_steps": 5_000, "optimizer.decay_steps": 1_000})

sweep = Sweep(
    name="absorption_small",
    members=full.members(base, (1, 2)),
    measures=[Absorption()],
    figures=full.FIGURES,
    claims=full.claims(2),
)

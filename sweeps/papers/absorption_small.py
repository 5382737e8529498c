"""Do the latents of child features absorb their parents, and do nested prefixes prevent it? Fewer steps and seeds.

2 methods x 2 seeds = 4 members in 2 compiled programs. Differs from `absorption.py` in 5,000 steps, the last 1,000 of
them with a falling learning rate, in two seeds, both of which must keep a bound, and in one kind of data: the claims
about the two variants are left out.

Result: 4 of 9 claims hold. After so few steps Matryoshka has not found all parents and children. (1 CPU core: 23 s.)

    sae run sweeps/papers/absorption_small.py
"""

from sae import Sweep, replace
from sae.analysis.absorption import Absorption
from sweeps.papers import absorption as full

base = replace(full.base, {"name": "absorption_small", "n_steps": 5_000, "optimizer.decay_steps": 1_000})

sweep = Sweep(
    name="absorption_small",
    members=full.members(base, (1, 2), kinds=full.KINDS[:1]),
    measures=[Absorption()],
    claims=full.claims(2)[:9],
)

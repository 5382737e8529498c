"""In superposition, does L1 shrink what it recovers, and the more the larger its coefficient? One width, fewer steps.

13 L1 x 3 seeds = 39 members in 1 compiled program. Differs from `shrinkage_superposition.py` in having 128 latents only
and 2,000 steps of 128 examples, at five times the learning rate, which falls to 0 over the second half.

Result: γ falls with the coefficient (Spearman -.99) and is .93 at the best MMCS (.996, L1 .1). A miss: at the lower end
of the zone it is .952, not .95 or less. (2 CPU cores: 18 s.)

    sae run sweeps/papers/shrinkage_superposition_small.py
"""

from sae import Sweep, grid, replace
from sweeps.papers import shrinkage_superposition as full

steps = {"n_steps": 2_000, "batch_size": 128, "optimizer.lr": 5e-3, "optimizer.decay_steps": 1_000}
base = replace(full.base, {"name": "shrinkage_superposition_small", **steps})

sweep = Sweep(
    name="shrinkage_superposition_small",
    members=grid(base, {"penalty.l1": full.COEFFICIENTS, "seed": (1, 2, 3)}),
    answer=full.ANSWER,
    figures=full.FIGURES,
    claims=full.CLAIMS,
)

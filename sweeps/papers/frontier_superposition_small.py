"""In superposition, do Gated and TopK shrink less than L1, and err less at equal sparsity? Small.

(4 L1 + 4 Gated + 4 TopK) x 2 seeds = 24 members in 3 compiled programs. Differs from `frontier_superposition.py` in
1,000 steps of 128 examples, fewer coefficients and seeds, a refit of 128 examples, and in lacking BatchTopK and
JumpReLU.

Result: 6 of 8 claims hold. Misses: after so few steps Gated errs as much as L1 (.98), unlike in the full tier, and TopK
loses 22 to 53 % of its FVU when refitted. (1 CPU core: 46 s.)

    sae run sweeps/papers/frontier_superposition_small.py
"""

from sae import Sweep, replace
from sae.analysis.refit import Refit
from sweeps.papers import frontier_patches_small as patches
from sweeps.papers import frontier_superposition as full

steps = {"n_steps": 1_000, "batch_size": 128, "optimizer.lr": 5e-3, "optimizer.decay_steps": 500}
base = replace(full.base, {"name": "frontier_superposition_small", **steps})

sweep = Sweep(
    name="frontier_superposition_small",
    members=full.members(
        base,
        l1=(0.02, 0.05, 0.1, 0.25),
        gated=(0.1, 0.16, 0.3, 0.56),
        k=(3, 5, 8, 24),
        batch_k=(),
        weight=(),
        seeds=(1, 2),
    ),
    answer=patches.sweep.answer,
    measures=[Refit(n=128, sweeps=20)],
    figures=patches.sweep.figures,
    claims=[*full.shrinks_not(("Gated", "TopK")), *full.fidelity()],
)

"""In superposition, do Gated, TopK, BatchTopK and JumpReLU shrink less than L1, and err less at equal sparsity? Small.

(4 L1 + 4 Gated + 4 TopK + 3 BatchTopK + 4 JumpReLU) x 2 seeds = 38 members in 5 compiled programs. Differs from
`frontier_superposition.py` in 1,000 steps of 128 examples, fewer coefficients and seeds, and a refit of 128 examples.

    sae run sweeps/papers/frontier_superposition_small.py
"""

from sae import Sweep, replace
from sae.analysis.refit import Refit
from sweeps.papers import frontier_superposition as full

steps = {"n_steps": 1_000, "batch_size": 128, "optimizer.lr": 5e-3, "optimizer.decay_steps": 500}
base = replace(full.base, {"name": "frontier_superposition_small", **steps})

sweep = Sweep(
    name="frontier_superposition_small",
    members=full.members(
        base,
        l1=(0.03, 0.056, 0.1, 0.2),
        gated=(0.14, 0.2, 0.3, 0.56),
        k=(3, 4, 8, 24),
        batch_k=(3.0, 4.0, 8.0),
        weight=(0.002, 0.004, 0.008, 0.016),
        seeds=(1, 2),
    ),
    answer=full.ANSWER,
    measures=[Refit(n=128, sweeps=20)],
    figures=full.FIGURES,
    claims=[*full.shrinks_not(), *full.fidelity()],
)

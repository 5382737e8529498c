"""On natural-image patches, do TopK and Gated err less than L1 at equal sparsity, and are their values better? Small.

(4 L1 + 4 Gated + 4 TopK) x 2 seeds = 24 members in 3 compiled programs. Differs from `frontier_patches.py` in 500
steps, 64 latents, fewer coefficients and seeds, no JumpReLU, and a refit of 128 examples.

Result: 3 of 4 claims hold. Refitted, TopK loses 3 to 8 % of its FVU, where 3 % were allowed; L1 loses half of it.
(1 CPU core: 35 s.)

    sae run sweeps/papers/frontier_patches_small.py
"""

from sae import Sweep, replace
from sae.analysis.refit import Refit
from sae.study.answers import AtMatched
from sae.study.figures import Frontier
from sweeps.papers import frontier_patches as full
from sweeps.papers import frontier_superposition as superposition

steps = {"n_steps": 500, "d_sae": 64, "optimizer.decay_steps": 200, "optimizer.lr": 5e-3}
base = replace(full.base, {"name": "frontier_patches_small", **steps})
ALONG = ("penalty.l1", "activation.k")

sweep = Sweep(
    name="frontier_patches_small",
    members=superposition.members(
        base,
        l1=(0.5, 1.5, 3.0, 6.0),
        gated=(0.8, 1.5, 3.0, 6.0),
        k=(3, 4, 8, 16),
        batch_k=(),
        weight=(),
        seeds=(1, 2),
    ),
    answer=AtMatched(
        arms={"L1 or Gated": "penalty.l1", "TopK": "activation.k"},
        matched="eval/l0",
        at=superposition.AT,
        metrics=superposition.ANSWER.metrics,
        group=superposition.METHOD,
    ),
    measures=[Refit(n=128, sweeps=20)],
    figures=[
        Frontier(x="eval/l0", y=y, along=ALONG, group=superposition.METHOD) for y in ("eval/fvu", "analysis/refit_drop")
    ],
    claims=superposition.fidelity(),
)

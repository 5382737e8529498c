"""On natural-image patches, do TopK and Gated err less than L1 at equal sparsity, and are their values better?

P5 C of the paper suite, on photographs: Gao et al. 2024 (TopK: arXiv 2406.04093), Rajamanoharan et al. 2024 (Gated:
2404.16014; JumpReLU: 2407.14435). The data and their split are those of `founding_patches.py`: whitened 8x8 patches,
two whole photographs held out; 128 latents, decoder rows of norm 1, no loss for dead latents. The claims are those of
`frontier_superposition.py`, which says how they are read.

(5 L1 + 5 Gated + 5 TopK + 4 JumpReLU) x 3 seeds = 57 members in 4 compiled programs. JumpReLU is shown beside them;
the suite claims nothing of it here. The range of the coefficients was lowered after a first full run, in which the
frontiers of L1 and Gated ended at an L0 of 14 and 9, so that nothing could be compared at 16.

    sae run sweeps/papers/frontier_patches.py
"""

from sae import Sweep, replace
from sae.analysis.refit import Refit
from sweeps.papers import founding_patches
from sweeps.papers import frontier_superposition as superposition

steps = {"n_steps": 2_000, "optimizer.decay_steps": 500}
base = replace(founding_patches.base, {"name": "frontier_patches", "d_sae": 128, **steps})

sweep = Sweep(
    name="frontier_patches",
    members=superposition.members(
        base,
        l1=(0.8, 1.5, 2.5, 4.0, 6.0),
        gated=(1.0, 1.5, 2.5, 4.0, 6.0),
        k=(3, 4, 8, 16, 20),
        batch_k=(),
        weight=(0.1, 0.3, 1.0, 4.0),
        seeds=(1, 2, 3),
    ),
    answer=superposition.ANSWER,
    measures=[Refit()],
    figures=superposition.FIGURES,
    claims=superposition.fidelity(),
)

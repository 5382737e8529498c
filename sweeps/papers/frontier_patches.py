"""On natural-image patches, do TopK and Gated err less than L1 at equal sparsity, and are their values better?

P5 C of the paper suite, on photographs: Gao et al. 2024 (TopK: arXiv 2406.04093), Rajamanoharan et al. 2024 (Gated:
2404.16014; JumpReLU: 2407.14435). The data and their split are those of `founding_patches.py`: whitened 8x8 patches,
two whole photographs held out; 128 latents, decoder rows of norm 1, no loss for dead latents. The claims are those of
`frontier_superposition.py`, which says how they are read.

(6 L1 + 6 Gated + 5 TopK + 5 JumpReLU) x 3 seeds = 66 members in 4 compiled programs. JumpReLU is shown beside them; the
suite claims nothing of it here. Coefficients were chosen in a pilot with another seed and other patches, so that they
cover an L0 of 4 to 16.

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
        l1=(1.5, 2.5, 4.0, 6.0, 9.0, 13.0),
        gated=(2.5, 4.0, 6.0, 9.0, 13.0, 20.0),
        k=(3, 4, 8, 16, 24),
        batch_k=(),
        weight=(1.0, 2.0, 4.0, 8.0, 16.0),
        seeds=(1, 2, 3),
    ),
    answer=superposition.ANSWER,
    measures=[Refit()],
    figures=superposition.FIGURES,
    claims=superposition.fidelity(),
)

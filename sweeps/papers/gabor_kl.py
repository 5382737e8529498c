"""Do 25 sigmoid units with a rare firing rate become localised Gabor functions on natural-image patches?

P6 of the paper suite, its third part: Ng 2011, "CS294A Lecture notes", and the exercise "Sparse Autoencoder" of UFLDL.
10,000 whitened 8x8 patches, each without its mean, clipped at 3 standard deviations and mapped to [.1, .9]; 25 sigmoid
units. J = ½ mean ‖x̂ - x‖² + (λ/2) ‖W‖² + β Σ_j KL(ρ ‖ ρ̂_j), λ = 1e-4, β = 3, ρ = .01; the loss here is 2 J.

Differences from the exercise: the decoder is linear (theirs ends in a sigmoid, too). Adam on 2,000 patches a step, with
a learning rate that falls to 0, takes the place of 400 iterations of L-BFGS on all of them: in a pilot on other
patches, 2 J came to .581 by Adam and .588 by L-BFGS. The photographs are those of scikit-image and scikit-learn. Rows
are those of the decoder. ρ̂ is measured on held-out patches: `eval/l1`, the sum of the 25 means, is to lie in [.2, .3],
which is 25 ρ less or more 20 %.

5 seeds = 5 members in one compiled program.

Result: 1 of 2 claims holds. 6 % of the rows are localised and fitted, where 60 % were asked for: 70 % are fitted, but
88 % have their energy all over the patch. The mean firing rate is .011. (2 CPU cores: 10 min beside much other work.)

    sae run sweeps/papers/gabor_kl.py
"""

from sae import (
    Adam,
    AtLeast,
    Claim,
    Curves,
    Dictionaries,
    Experiment,
    FiringRateKL,
    Free,
    ImagePatches,
    Sigmoid,
    SquaredWeights,
    Sweep,
    Within,
    grid,
)
from sae.analysis.gabor import GaborLike
from sae.study.quantities import Arm, AtEnd

RATE, BETA, DECAY = 0.01, 3.0, 1e-4
base = Experiment(
    name="gabor_kl",
    data=ImagePatches(size=8, split_seed=1, n_train=10_000, rescaling="ufldl", normalize="none"),
    d_sae=25,
    activation=Sigmoid(),
    penalty=FiringRateKL(weight=2 * BETA, rate=RATE),
    auxiliary=SquaredWeights(weight=DECAY),
    constraint=Free(),
    optimizer=Adam(lr=0.1, b2=0.99, decay_steps=2_000),
    apply_b_dec_to_input=False,
    batch_size=2_000,
    n_steps=4_000,
)

KL = Arm(along="penalty.weight")
SOURCE = "Ng 2011; paper suite, P6"
CLAIMS = (
    Claim("KL, 25 units: share of the rows that are localised and fitted with r2 ≥ .65",
          AtLeast(AtEnd(arm=KL, metric="analysis/gabor_localised_fit"), 0.6), SOURCE),
    Claim("KL, 25 units: the mean firing rate is within 20 % of .01; sum over the units",
          Within(AtEnd(arm=KL, metric="eval/l1"), 25 * RATE * 0.8, 25 * RATE * 1.2), SOURCE),
)  # fmt: skip
FIGURES = (
    Curves(metrics=("train/loss", "train/penalty", "train/fvu")),
    Dictionaries(along=("penalty.weight",), metric="analysis/gabor_localised_fit", near=1.0),
)

sweep = Sweep(
    name="gabor_kl",
    members=grid(base, {"seed": range(1, 6)}),
    measures=[GaborLike(n_random=200)],
    figures=FIGURES,
    claims=CLAIMS,
)

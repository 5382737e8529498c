"""Which strokes do 25 sigmoid units learn when each is to be active on 1 % of natural-image patches?

Ng 2011, "CS294A Lecture notes", and the UFLDL exercise: 10,000 patches of 8 × 8, mean removed, cut off at three
standard deviations and scaled to [.1, .9]; a KL penalty of weight 3 towards a mean activation of .01, and weight decay
of 1e-4 as a part of the loss. Their loss is half of ours, so coefficients are doubled; their output units are sigmoid,
ours linear; L-BFGS on all patches is Adam on 2,000 at a time here.

    sae run experiments/published/ng_2011.py
"""

from sae import Adam, Experiment, FiringRateKL, Free, ImagePatches, Sigmoid, SquaredWeights

experiment = Experiment(
    name="ng_2011",
    data=ImagePatches(size=8, n_train=10_000, rescaling="ufldl", normalize="none"),
    d_sae=25,
    activation=Sigmoid(),
    penalty=FiringRateKL(weight=6.0, rate=0.01),
    auxiliary=SquaredWeights(weight=1e-4),
    constraint=Free(),
    optimizer=Adam(lr=0.1, b2=0.99, decay_steps=2_000),
    apply_b_dec_to_input=False,
    batch_size=2_000,
    n_steps=4_000,
)

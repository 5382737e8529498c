"""With ReLU latents and an L1 penalty, do latents of 8x8 handwritten digits become strokes or whole digits?

The 1,797 digits of scikit-learn, 128 latents, a unit-norm decoder.

    sae run experiments/digits_l1.py
    sae run experiments/digits_l1.py --penalty.l1 0.3 --d-sae 256
"""

from sae import Adam, Digits, ElasticNet, Experiment, Relu, UnitNorm

experiment = Experiment(
    name="digits_l1",
    data=Digits(),
    d_sae=128,
    activation=Relu(),
    penalty=ElasticNet(l1=0.1),
    constraint=UnitNorm(),
    optimizer=Adam(lr=1e-3, warmup_steps=100),
    dead_after=50_000,
    batch_size=256,
    n_steps=2_000,
)

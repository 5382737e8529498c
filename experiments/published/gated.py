"""Which directions does a Gated autoencoder find in activations of your own?

Rajamanoharan et al. 2024, arXiv 2404.16014, with the optimizer of dictionary_learning's trainer for it: unit decoder
rows, Adam with b1 = 0 at 5e-5 with a warm-up of 1,000 steps. The penalty charges the gate alone, and the gate's own
reconstruction, through a decoder held fixed, is added to the loss.

    sae run experiments/published/gated.py --data.path resid8.npy --penalty.l1 0.05
"""

from sae import Adam, Arrays, ElasticNet, Experiment, Gated, UnitNorm

experiment = Experiment(
    name="gated",
    data=Arrays(path="activations.npy", normalize="unit-mean-norm"),
    d_sae=32_768,
    activation=Gated(),
    penalty=ElasticNet(l1=0.1),
    constraint=UnitNorm(),
    optimizer=Adam(lr=5e-5, b1=0.0, b2=0.999, warmup_steps=1_000),
    dead_after="10000000 tokens",
    batch_size=4_096,
    n_steps=200_000,
)

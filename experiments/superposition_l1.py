"""Can more features than dimensions be recovered from their sums alone?

The data are sums of 128 unit directions in 64 dimensions, three active at a time. `eval/mmcs` says how well the
decoder's directions match the true features, `eval/mmcs_chance` what a random dictionary scores.

    sae run experiments/superposition_l1.py
    sae run experiments/superposition_l1.py --data.generator A --d-sae 256
"""

from sae import Adam, ElasticNet, Experiment, Relu, Superposition, UnitNorm

experiment = Experiment(
    name="superposition_l1",
    data=Superposition(d_in=64, n_features=128, n_active=3.0),
    d_sae=128,
    activation=Relu(),
    penalty=ElasticNet(l1=0.06),
    constraint=UnitNorm(),
    optimizer=Adam(lr=1e-3, warmup_steps=100, decay_steps=1_600),
    dead_after=100_000,
    batch_size=256,
    n_steps=8_000,
)

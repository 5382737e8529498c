"""With ReLU latents and L1 on whitened natural-image patches, are the decoder's directions Gabor-like?

The classic setting of Olshausen & Field (1996), as a sparse autoencoder with a unit-norm decoder.

    sae run experiments/patches_l1.py
    sae run experiments/patches_l1.py --penalty.l1 1.5 --seed 7
"""

from sae import Adam, ElasticNet, Experiment, ImagePatches, Relu, Resample, UnitNorm

experiment = Experiment(
    name="patches_l1",
    data=ImagePatches(size=12),
    d_sae=288,
    activation=Relu(),
    penalty=ElasticNet(l1=1.0),
    constraint=UnitNorm(),
    revival=Resample(every=1_000, times=2),
    dead_after=200_000,
    optimizer=Adam(lr=1e-3, warmup_steps=200, decay_steps=800),
    batch_size=1024,
    n_steps=4_000,
)

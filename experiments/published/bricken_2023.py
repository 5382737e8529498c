"""Which directions does L1 with resampling find in activations of your own, as in "Towards Monosemanticity"?

Bricken et al. 2023: MLP activations of a one-layer transformer (width 512), 8 latents a dimension, b_dec from the
geometric median, unit decoder rows with the parallel part of their gradient removed, dead latents resampled after
25,000, 50,000, 75,000 and 100,000 steps of 8,192 where they were silent for 12,500 steps. The learning rate and the L1
coefficient are ours: sweep the coefficient.

    sae run experiments/published/bricken_2023.py --data.path mlp.npy --penalty.l1 0.1
"""

from sae import Adam, Arrays, ElasticNet, Experiment, Relu, Resample, UnitNorm

experiment = Experiment(
    name="bricken_2023",
    data=Arrays(path="activations.npy", normalize="unit-mean-norm"),
    d_sae=4_096,
    activation=Relu(),
    penalty=ElasticNet(l1=0.05),
    constraint=UnitNorm(),
    revival=Resample(every=25_000, times=4, n_candidates=819_200, encoder_scale=0.2),
    optimizer=Adam(lr=1e-4),
    b_dec_init="geometric-median",
    dead_after="12500 steps",
    batch_size=8_192,
    n_steps=200_000,
)

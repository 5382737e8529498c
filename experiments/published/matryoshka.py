"""Which directions does a Matryoshka autoencoder on BatchTopK find in activations of your own?

Bussmann et al. 2025, arXiv 2503.17547, in its setting for Gemma 2 2B (width 2,304): 65,536 latents of which the first
2,048, 6,144, 14,336 and 30,720 reconstruct the input too, with dictionary_learning's trainer for the rest: mean over
prefixes, AuxK of weight 1/32, Adam at a learning rate that falls with 1 / √d_sae, gradient norm at most 1. The trainer
weighs each of the 5 errors by 1/5 before it takes their mean, so beside our mean its AuxK and its norm count 5 times.

    sae run experiments/published/matryoshka.py --data.path resid12.npy --activation.k 60
"""

from sae import Adam, Arrays, AuxK, BatchTopK, Experiment, Matryoshka, UnitNorm

experiment = Experiment(
    name="matryoshka",
    data=Arrays(path="activations.npy", normalize="unit-mean-norm"),
    d_sae=65_536,
    activation=BatchTopK(k=40.0, decay=0.999),
    reconstruction=Matryoshka(widths=(2_048, 6_144, 14_336, 30_720), mean=True),
    auxiliary=AuxK(weight=5 / 32),
    constraint=UnitNorm(),
    optimizer=Adam(lr=2e-4, width_rule="inverse-sqrt", warmup_steps=1_000, decay_steps=48_800, clip=5.0),
    b_dec_init="geometric-median",
    dead_after="10000000 tokens",
    batch_size=2_048,
    n_steps=244_000,
)

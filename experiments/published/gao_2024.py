"""Which directions does TopK with AuxK find in activations of your own, as OpenAI's autoencoders do?

Gao et al. 2024, arXiv 2406.04093, in its setting for GPT-2 small (width 768): k = 32 of 32,768 latents, W_enc the
transpose of W_dec at the start, b_dec from the geometric median, unit decoder rows, the k_aux = 512 strongest dead
latents (silent for 10 M tokens) reconstruct the error with weight 1/32, and an average of the weights over steps is
kept. The learning rate falls with 1 / √d_sae from 2e-4 at 16,384 latents; the number of steps is ours. They also take
off each row's own mean over its dimensions and scale each row to norm 1; here all rows share one scale.

    sae run experiments/published/gao_2024.py --data.path resid8.npy
"""

from sae import Adam, Arrays, AuxK, Ema, Experiment, TopK, UnitNorm

experiment = Experiment(
    name="gao_2024",
    data=Arrays(path="activations.npy", normalize="unit-mean-norm"),
    d_sae=32_768,
    activation=TopK(k=32),
    auxiliary=AuxK(weight=1 / 32, k=512, form="openai"),
    constraint=UnitNorm(),
    optimizer=Adam(lr=2e-4, width_rule="inverse-sqrt", b1=0.9, b2=0.999, eps=6.25e-10, clip=1.0),
    average=Ema(decay=0.999),
    b_dec_init="geometric-median",
    dead_after="10000000 tokens",
    batch_size=131_072,
    n_steps=20_000,
)

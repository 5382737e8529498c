"""Which directions does L1 weighted by decoder norms find in activations of your own, without resampling?

Conerly et al. 2024, "Update on how we train SAEs" (Anthropic's Circuits Updates, April 2024): rows scaled to a mean
norm of √d_in, decoder rows of norm .1 at the start and free after it, W_enc the transpose of W_dec, b_dec zero and not
subtracted from the input. The penalty rises over the first 5 % of the steps; the learning rate falls over the last 20
%; the gradient's norm is at most 1.

    sae run experiments/published/anthropic_april_2024.py --data.path layer8.npy
"""

from sae import Adam, Arrays, ElasticNet, Experiment, Free, RandomRows, Relu

experiment = Experiment(
    name="anthropic_april_2024",
    data=Arrays(path="activations.npy", normalize="mean-norm-sqrt-d"),
    d_sae=16_384,
    activation=Relu(),
    penalty=ElasticNet(l1=5.0, weighted=True, warmup_steps=10_000),
    constraint=Free(),
    initialization=RandomRows(decoder_norm=0.1),
    optimizer=Adam(lr=5e-5, b1=0.9, b2=0.999, decay_steps=40_000, clip=1.0),
    apply_b_dec_to_input=False,
    dead_after="10000000 tokens",
    batch_size=4_096,
    n_steps=200_000,
)

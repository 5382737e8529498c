"""Which directions does JumpReLU with an L0 penalty find in activations of your own?

Rajamanoharan et al. 2024, arXiv 2407.14435, in its setting for Gemma 2 9B: rows of unit mean square, thresholds of .001
at the start, ramps of width .001, unit decoder rows, Adam with b1 = 0 at 7e-5 with a warm-up of 1,000 steps, batches of
4,096; the penalty rises over the first 10,000 steps. Their warm-up of the learning rate begins at a tenth, along a
cosine; here it is linear from 0. The coefficient is to be swept, or chosen by `--control target-l0`.

    sae run experiments/published/jump_relu.py --data.path resid20.npy --penalty.weight 0.001
"""

from sae import L0, Adam, Arrays, Experiment, JumpRelu, UnitNorm

experiment = Experiment(
    name="jump_relu",
    data=Arrays(path="activations.npy", normalize="mean-norm-sqrt-d"),
    d_sae=131_072,
    activation=JumpRelu(threshold=0.001, bandwidth=0.001),
    penalty=L0(weight=0.001, warmup_steps=10_000),
    constraint=UnitNorm(),
    optimizer=Adam(lr=7e-5, b1=0.0, b2=0.999, warmup_steps=1_000),
    dead_after="10000000 tokens",
    batch_size=4_096,
    n_steps=1_000_000,
)

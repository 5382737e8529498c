"""Which directions does a penalty whose exponent falls from 1 to .2 find in activations of your own?

Karvonen et al. 2024, arXiv 2408.00113, with dictionary_learning's trainer for it: Σ f^p, p falling linearly after the
first 15,000 steps, the coefficient rescaled as p falls; unit decoder rows, Adam at 1e-3 with a warm-up of 1,000 steps.

    sae run experiments/published/p_annealing.py --data.path resid8.npy --penalty.weight 0.05
"""

from sae import Adam, Arrays, Experiment, Lp, Relu, UnitNorm

experiment = Experiment(
    name="p_annealing",
    data=Arrays(path="activations.npy", normalize="unit-mean-norm"),
    d_sae=16_384,
    activation=Relu(),
    penalty=Lp(weight=0.1, p_start=1.0, p=0.2, anneal_from=0.15, rescaled=True),
    constraint=UnitNorm(),
    optimizer=Adam(lr=1e-3, warmup_steps=1_000),
    dead_after="10000000 tokens",
    batch_size=4_096,
    n_steps=100_000,
)

"""Which directions does BatchTopK find in activations of your own?

Bussmann, Leask & Nanda 2024, arXiv 2412.06410, in its setting for GPT-2 small (layer 8, width 768): k = 32 of 12,288
latents on average over the batch, AuxK on 512 dead latents, Adam with betas .9 and .99 at 3e-4, batches of 4,096, a
billion tokens; a latent is dead after five batches, as in the authors' program. That standardizes each activation by
itself; here one number scales all.

    sae run experiments/published/batch_top_k.py --data.path resid8.npy --activation.k 64
"""

from sae import Adam, Arrays, AuxK, BatchTopK, Experiment, UnitNorm

experiment = Experiment(
    name="batch_top_k",
    data=Arrays(path="activations.npy", normalize="unit-mean-norm"),
    d_sae=12_288,
    activation=BatchTopK(k=32.0),
    auxiliary=AuxK(weight=1 / 32, k=512),
    constraint=UnitNorm(),
    optimizer=Adam(lr=3e-4, b1=0.9, b2=0.99),
    dead_after="5 steps",
    batch_size=4_096,
    n_steps=244_140,
)

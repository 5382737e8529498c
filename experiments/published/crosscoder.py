"""Which features do two models share, and which does one of them have alone?

A crosscoder: latents read the activations of both models on the same tokens and write both. Lindsey et al. 2024,
"Sparse crosscoders for cross-layer features and model diffing". Numbers are those of the open replication on Gemma 2
2B and its chat model (layer 14): its L1 coefficient 2 is for rows of mean norm √2304, .042 is the same for norm 1. Its
decoder starts with norm .08 a source, ours with 1 over both. Any number of sources of any widths, such as the layers
of one model, goes the same way. `sae.analysis.sources.norm_shares` says to whom a latent belongs.

    sae run experiments/published/crosscoder.py --data.path base.npy chat.npy
    sae run experiments/published/crosscoder.py --data.path layer4.npy layer8.npy layer12.npy --out runs/layers
"""

from sae import Adam, Arrays, Crosscoder, ElasticNet, Experiment, Free

experiment = Experiment(
    name="crosscoder",
    data=Arrays(path=("base.npy", "chat.npy"), normalize="unit-mean-norm"),
    d_sae=16_384,
    task=Crosscoder(),
    penalty=ElasticNet(l1=0.042, weighted=True, warmup_steps=4_883),
    constraint=Free(),
    optimizer=Adam(lr=5e-5, decay_steps=19_531, clip=1.0),
    dead_after=10_000_000,
    apply_b_dec_to_input=False,
    batch_size=4_096,
    n_steps=97_656,
)

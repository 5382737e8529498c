"""Which directions does TopK find in activations of your own, given as rows in files?

The files are .npy, .npz, .safetensors or .pt, or a folder of shards; they may be larger than memory. Give their place
with `--data.path`. Every dimension is standardized, so that a few of large variance do not decide what is learned, and
rows of more than ten times the median norm (attention sinks) are left out.

    sae run experiments/activations_topk.py --data.path layer8.npy
    sae run experiments/activations_topk.py --data.path shards/ --activation.k 64 --d-sae 16384
"""

from sae import Adam, Arrays, Experiment, Resample, TopK, UnitNorm

experiment = Experiment(
    name="activations_topk",
    data=Arrays(path="activations.npy", normalize="standardize", max_norm=10.0),
    d_sae=4_096,
    activation=TopK(k=32),
    constraint=UnitNorm(),
    revival=Resample(every=2_500, times=4, n_candidates=65_536),
    dead_after=1_000_000,
    optimizer=Adam(lr=4e-4, warmup_steps=500, decay_steps=4_000),
    b_dec_init="geometric-median",
    batch_size=2_048,
    n_steps=20_000,
)

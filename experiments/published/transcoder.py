"""Which sparse steps does an MLP layer take from its input to its output?

A skip transcoder: latents read the layer's input and write its output, beside a linear map of the input. Paulo,
Shabalin & Belrose 2025, arXiv 2501.18823; transcoders are Dunefsky, Chlenski & Nanda's, 2024, arXiv 2406.11944.
TopK with k = 32 and the learning rate for 2^14 latents are the defaults of their library, sparsify; its decoder starts
at 0, ours with unit rows, beside encoder rows in random directions of their own. The two files hold the layer's inputs
and its outputs, row by row; they may be folders of shards, larger than memory.

    sae run experiments/published/transcoder.py --data.path mlp_in.npy mlp_out.npy
    sae run experiments/published/transcoder.py --data.path mlp_in.npy mlp_out.npy --task.no-skip --out runs/no_skip
"""

from sae import Adam, Arrays, AuxK, Experiment, Free, TopK, Transcoder

experiment = Experiment(
    name="transcoder",
    data=Arrays(path=("mlp_in.npy", "mlp_out.npy"), normalize="centre-unit-mean-norm", max_norm=10.0),
    d_sae=16_384,
    task=Transcoder(skip=True),
    activation=TopK(k=32),
    auxiliary=AuxK(),
    constraint=Free(),
    optimizer=Adam(lr=2e-4, warmup_steps=1_000),
    dead_after=10_000_000,
    b_dec_init="mean",
    apply_b_dec_to_input=False,
    batch_size=4_096,
    n_steps=30_000,
)

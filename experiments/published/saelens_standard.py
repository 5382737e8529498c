"""Which directions does the standard autoencoder of SAELens find in activations of your own?

The setting of SAELens' training tutorial (tiny-stories-1L-21M, MLP output of width 1,024): L1 weighted by decoder
norms, decoder rows of norm .1 at the start and free after it, rows scaled to a mean norm of √d_in, no subtraction of
b_dec. The penalty warms up over the first 5 % of the steps; the learning rate decays over the last 20 %.

    sae run experiments/published/saelens_standard.py --data.path layer0.npy
"""

from sae import Adam, Arrays, ElasticNet, Experiment, Free, RandomRows, Relu

experiment = Experiment(
    name="saelens_standard",
    data=Arrays(path="activations.npy", normalize="mean-norm-sqrt-d"),
    d_sae=16_384,
    activation=Relu(),
    penalty=ElasticNet(l1=5.0, weighted=True, warmup_steps=1_500),
    constraint=Free(),
    initialization=RandomRows(decoder_norm=0.1),
    optimizer=Adam(lr=5e-5, b1=0.9, b2=0.999, decay_steps=6_000),
    apply_b_dec_to_input=False,
    dead_after="1000 steps",
    batch_size=4_096,
    n_steps=30_000,
)

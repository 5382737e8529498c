"""Which directions does JumpReLU with a tanh penalty find in activations of your own?

Conerly et al. 2025, "Dictionary learning optimization techniques" (Anthropic's Circuits Updates, January 2025): rows of
mean norm √d_in, thresholds of .1, ramps of width 2, the penalty Σ tanh(4 f ‖W_dec‖), which rises over the whole of the
training, and a small pull on latents below their threshold. The learning rate falls over the last 20 % of the steps.
Decoder weights start uniform within ±1/√d_in, so rows have norm .58, and W_enc is W_decᵀ times d_in / d_sae, as here
for d_in = 768; the gradient's norm is 1 at most (both as a public reimplementation has them).

Their thresholds are exponentials, and the ramp's gradient also reaches the other parameters; here thresholds are
trained as they are, and the gradient of the ramp is theirs alone. Their encoder biases start so that each latent is
active on 10,000 / d_sae of the examples; here they start at 0.

    sae run experiments/published/anthropic_january_2025.py --data.path layer8.npy
"""

from sae import Adam, Arrays, Experiment, Free, JumpRelu, PreActivationLoss, RandomRows, TanhPenalty

experiment = Experiment(
    name="anthropic_january_2025",
    data=Arrays(path="activations.npy", normalize="mean-norm-sqrt-d"),
    d_sae=16_384,
    activation=JumpRelu(threshold=0.1, bandwidth=2.0),
    penalty=TanhPenalty(weight=10.0, scale=4.0, weighted=True, warmup_steps=200_000),
    auxiliary=PreActivationLoss(weight=3e-6, form="anthropic"),
    constraint=Free(),
    initialization=RandomRows(decoder_norm=0.577, encoder_scale=768 / 16_384),
    optimizer=Adam(lr=2e-4, b1=0.9, b2=0.999, clip=1.0, decay_steps=40_000),
    apply_b_dec_to_input=False,
    dead_after="10000000 tokens",
    batch_size=4_096,
    n_steps=200_000,
)

"""The parameters of one sparse autoencoder, and one forward pass.

Inside the project everything is *feature-major*: a batch is `x [d_in, batch]`, its latents are
`[d_sae, batch]`. With weights `W_enc [d_sae, d_in]` every product is then one wide matrix product without
a transpose, alone and under `vmap`. The methods that people call (`encode`, `decode`, `Sae(x)`) take
examples as rows, `[..., d_in]`, as every other library does.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from sae.core.types import Array


class Forward(NamedTuple):
    """One forward pass over a batch of examples, feature-major."""

    pre_acts: Array  # [d_sae, batch]
    latents: Array  # [d_sae, batch]
    x_hat: Array  # [d_in, batch]


class Sae(nnx.Module):
    """A sparse autoencoder: `latents = activation(W_enc (x - b_dec) + b_enc)`, `x_hat = W_decᵀ latents + b_dec`.

    Parameters: `W_enc [d_sae, d_in]`, `b_enc [d_sae]`, `W_dec [d_sae, d_in]` (one row, a *direction*, per
    latent), `b_dec [d_in]`, all float32. `precision` is that of the experiment: what the matrix products round their
    factors to. It is an ordinary pytree; change parameters with `replace` only.
    """

    def __init__(
        self, W_enc, b_enc, W_dec, b_dec, activation, apply_b_dec_to_input: bool = True, precision: str = "float32"
    ):
        self.W_enc = nnx.Param(W_enc)
        self.b_enc = nnx.Param(b_enc)
        self.W_dec = nnx.Param(W_dec)
        self.b_dec = nnx.Param(b_dec)
        self.activation = activation
        self.apply_b_dec_to_input = apply_b_dec_to_input
        self.precision = precision

    def encode(self, x: Array) -> Array:
        """Examples [..., d_in] -> latents [..., d_sae]."""
        return _rows(lambda columns: self.activation(pre_acts(self, columns)), x)

    def decode(self, latents: Array) -> Array:
        """Latents [..., d_sae] -> reconstructions [..., d_in]."""
        return _rows(lambda columns: decode(self, columns), latents)

    def __call__(self, x: Array) -> Array:
        """Examples [..., d_in] -> reconstructions [..., d_in]."""
        return self.decode(self.encode(x))


def pre_acts(sae: Sae, x: Array) -> Array:
    """x [d_in, batch] -> pre-activations [d_sae, batch].

    `W_enc (x - b_dec)` is written `W_enc x - W_enc b_dec`: the gradient of `b_dec` then needs a
    matrix-vector product, where the literal form would cost a sixth matrix product in every step.
    """
    W_enc, offset = sae.W_enc[...], sae.b_enc[...]
    if sae.apply_b_dec_to_input:
        offset = offset - matmul(W_enc, sae.b_dec[...])
    return matmul(W_enc, x, sae.precision) + offset[:, None]


def decode(sae: Sae, latents: Array) -> Array:
    """latents [d_sae, batch] -> x_hat [d_in, batch]."""
    return matmul(sae.W_dec[...].T, latents, sae.precision) + sae.b_dec[...][:, None]


def matmul(a: Array, b: Array, precision: str = "float32") -> Array:
    """A matrix product in true float32, or of factors rounded to bfloat16 and summed in float32; gradients too.

    GPUs and TPUs round the factors of a float32 product to fewer bits unless told.
    """
    if precision == "bfloat16":
        return bfloat16_matmul(a, b)
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


@jax.custom_vjp
def bfloat16_matmul(a: Array, b: Array) -> Array:
    """a [n, k] @ b [k, m] of bfloat16 factors, summed in float32, and so are both of its gradients.

    JAX's own gradient multiplies a float32 factor by a bfloat16 one and rounds the sums to bfloat16.
    """
    a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
    return jnp.matmul(a, b, precision=jax.lax.Precision.DEFAULT, preferred_element_type=jnp.float32)


bfloat16_matmul.defvjp(
    lambda a, b: (bfloat16_matmul(a, b), (a, b)),
    lambda factors, g: (bfloat16_matmul(g, factors[1].T), bfloat16_matmul(factors[0].T, g)),
)


def forward(sae: Sae, x: Array) -> Forward:
    """One forward pass over x [d_in, batch]."""
    z = pre_acts(sae, x)
    latents = sae.activation(z)
    return Forward(z, latents, decode(sae, latents))


def init(
    key,
    d_in: int,
    d_sae: int,
    activation,
    b_dec: Array,
    apply_b_dec_to_input: bool = True,
    precision: str = "float32",
) -> Sae:
    """Decoder rows uniform on the unit sphere, the encoder tied to them at the start, `b_enc` zero.

    `W_enc = W_dec` at step 0 (each latent looks for what it writes), as in Gao et al. 2024, Appendix A.
    """
    W_dec = unit_rows(jax.random.normal(key, (d_sae, d_in)))
    return Sae(W_dec, jnp.zeros(d_sae), W_dec, b_dec, activation, apply_b_dec_to_input, precision)


def replace(sae: Sae, **parameters: Array) -> Sae:
    """A new Sae with some parameters changed: the one way parameters change (in-place writes are lost in jit)."""
    new = jax.tree.map(lambda leaf: leaf, sae)
    for name, value in parameters.items():
        getattr(new, name)[...] = value
    return new


def decoder_norms(sae: Sae) -> Array:
    """Euclidean norms of the decoder rows, [d_sae]; a zero row has a finite gradient."""
    return jnp.sqrt(jnp.maximum(jnp.sum(sae.W_dec[...] ** 2, axis=1), 1e-30))


def unit_rows(W: Array) -> Array:
    """Rows scaled to Euclidean norm 1; zero rows stay zero (and keep a finite gradient)."""
    return W * jax.lax.rsqrt(jnp.maximum(jnp.sum(W * W, axis=1, keepdims=True), 1e-30))


def _rows(function, x: Array) -> Array:
    """Apply a function of columns [features, batch] to rows [..., features]."""
    x = jnp.asarray(x)
    columns = x.reshape(-1, x.shape[-1]).T
    out = function(columns).T
    return out.reshape(*x.shape[:-1], out.shape[-1])

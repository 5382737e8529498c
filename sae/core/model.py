"""The parameters of one sparse autoencoder, and one pass over a batch.

Inside the project everything is *feature-major*: a batch is `x [d_in, batch]`, its latents are
`[d_sae, batch]`. With weights `W_enc [d_sae, d_in]` every product is then one wide matrix product without
a transpose, alone and under `vmap`. The methods that people call (`encode`, `decode`, `Sae(x)`) take
examples as rows, `[..., d_in]`, as every other library does.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from sae.core.normalization import Normalization
from sae.core.types import Array, Key, UserError


class Sae(nnx.Module):
    """A sparse autoencoder: `latents = activation(W_enc (x - b_dec) + b_enc)`, `x_hat = W_decᵀ latents + b_dec`.

    Parameters, all float32: `W_enc [d_sae, d_in]`, `b_enc [d_sae]`, `W_dec [d_sae, d_in]` (one row, a *direction*, per
    latent), `b_dec [d_in]`, and in `own` those that the activation brings, by name, `[d_sae, ...]` or `[]`. `precision`
    is what the matrix products round their factors to. A Sae is a pytree; change parameters with `replace` only.

    `normalization` is what its source did to raw rows. A Sae that a run has kept holds it: `encode` takes raw rows, and
    `decode` and a call give raw reconstructions. The parameters belong to the normalized examples. Without one (None),
    rows are such examples already.

    A training state keeps the parameters alone: its `activation` is None (see `using`), so the optimizer never sees the
    numbers of a choice.
    """

    def __init__(
        self,
        W_enc: Array,
        b_enc: Array,
        W_dec: Array,
        b_dec: Array,
        activation: Any,  # methods.contract.Activation, which stands on a higher floor
        apply_b_dec_to_input: bool = True,
        precision: str = "float32",
        own: Mapping[str, Array] | None = None,
        normalization: Normalization | None = None,
    ) -> None:
        own = activation.init(b_enc.shape[0]) if own is None else own
        self.W_enc = nnx.Param(W_enc)
        self.b_enc = nnx.Param(b_enc)
        self.W_dec = nnx.Param(W_dec)
        self.b_dec = nnx.Param(b_dec)
        self.own = nnx.data({name: nnx.Param(value) for name, value in own.items()})
        self.activation = nnx.data(activation)  # its numbers are leaves: autoencoders of different k can be stacked
        self.apply_b_dec_to_input = apply_b_dec_to_input
        self.precision = precision
        self.normalization = nnx.data(normalization)

    def encode(self, x: Array) -> Array:
        """Raw rows [..., d_in] -> latents [..., d_sae]. The rows are normalized first, as in training."""
        x = jnp.asarray(x) if self.normalization is None else self.normalization.apply(jnp.asarray(x, jnp.float32))
        return _rows(lambda columns: self.activation(self, pre_acts(self, columns)), x)

    def decode(self, latents: Array) -> Array:
        """Latents [..., d_sae] -> reconstructions [..., d_in], raw: the normalization is undone."""
        x_hat = _rows(lambda columns: decode(self, columns), latents)
        return x_hat if self.normalization is None else self.normalization.undo(x_hat)

    def __call__(self, x: Array) -> Array:
        """Raw rows [..., d_in] -> raw reconstructions [..., d_in]."""
        return self.decode(self.encode(x))


class Pass(NamedTuple):
    """One pass over a batch, feature-major: all that a term of the loss may look at.

    Outside training no latent is dead, `step` is 0 and `charged` is the latents.
    """

    sae: Sae  # with its activation, as it was before the step
    x: Array  # [d_in, batch]
    y: Array  # [d_in, batch]: the target of the reconstruction, x itself
    pre_acts: Array  # [d_sae, batch]
    latents: Array  # [d_sae, batch]
    charged: Array  # [d_sae, batch]: what a penalty charges; the latents, unless the activation says otherwise
    x_hat: Array  # [d_in, batch]: the reconstruction of y
    dead: Array  # [d_sae] bool
    step: Array | int  # updates before this one
    n_steps: int
    warmed: Array | float = 1.0  # share of the penalty that its warm-up lets through

    @property
    def batch(self) -> int:
        """The number of examples."""
        return self.x.shape[1]

    @property
    def norms(self) -> Array:
        """Euclidean norms of the decoder rows, [d_sae]."""
        return decoder_norms(self.sae)

    @property
    def active(self) -> Array:
        """1 where a latent is active, else 0, [d_sae, batch]; its gradient is the one that the activation gives it."""
        return self.sae.activation.active(self.sae, self.pre_acts)


def pre_acts(sae: Sae, x: Array, origin: Array | None = None) -> Array:
    """x [d_in, batch] -> pre-activations [d_sae, batch].

    `W_enc (x - b_dec)` is written `W_enc x - W_enc b_dec`: the gradient of `b_dec` then needs a
    matrix-vector product, where the literal form would cost a sixth matrix product in every step.

    Where products round their factors, an origin o [d_in] is taken off first, `W_enc (x - o) + W_enc (o - b_dec)`:
    rounding x itself would cost the deviations of data that are far from 0. It is b_dec if not given, so that each
    example stands alone; training gives the batch's mean, so that all members share x - o.
    """
    W_enc, b_enc, b_dec = sae.W_enc[...], sae.b_enc[...], sae.b_dec[...]
    if sae.precision == "float32":
        offset = b_enc - matmul(W_enc, b_dec) if sae.apply_b_dec_to_input else b_enc
    else:
        origin = jax.lax.stop_gradient(b_dec if origin is None else origin)
        offset = b_enc + matmul(W_enc, origin - b_dec if sae.apply_b_dec_to_input else origin)
        x = x - origin[:, None]
    return matmul(W_enc, x, sae.precision) + offset[:, None]


def decode(sae: Sae, latents: Array) -> Array:
    """latents [d_sae, batch] -> x_hat [d_in, batch]."""
    return matmul(sae.W_dec[...].T, latents, sae.precision) + sae.b_dec[...][:, None]


def matmul(a: Array, b: Array, precision: str = "float32") -> Array:
    """A matrix product in true float32, or of factors rounded to fewer bits and summed in float32; gradients too.

    "tensorfloat32" keeps 10 bits of a factor's mantissa on GPUs, at least as many on TPUs, and all on CPUs; "bfloat16"
    keeps 7 everywhere. GPUs and TPUs round the factors of a float32 product unless told.
    """
    if precision == "bfloat16":
        return bfloat16_matmul(a, b)
    high, highest = jax.lax.Precision.HIGH, jax.lax.Precision.HIGHEST
    return jnp.matmul(a, b, precision=high if precision == "tensorfloat32" else highest)


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


def forward(sae: Sae, x: Array) -> Pass:
    """One pass over x [d_in, batch] outside training: each example stands alone."""
    z = pre_acts(sae, x)
    latents = sae.activation(sae, z)
    none_dead = jnp.zeros(z.shape[0], bool)
    return Pass(sae, x, x, z, latents, latents, decode(sae, latents), none_dead, step=0, n_steps=1)


def init(
    key: Key,
    d_in: int,
    d_sae: int,
    activation: Any,
    b_dec: Array,
    apply_b_dec_to_input: bool = True,
    precision: str = "float32",
) -> Sae:
    """Decoder rows uniform on the unit sphere, the encoder tied to them at the start, `b_enc` zero.

    `W_enc = W_dec` at step 0 (each latent looks for what it writes), as in Gao et al. 2024, Appendix A.
    """
    W_dec = unit_rows(jax.random.normal(key, (d_sae, d_in)))
    return Sae(W_dec, jnp.zeros(d_sae), W_dec, b_dec, activation, apply_b_dec_to_input, precision)


def replace(sae: Sae, own: Mapping[str, Array] | None = None, **parameters: Array) -> Sae:
    """A new Sae with some parameters changed: the one way parameters change (in-place writes are lost in jit).

    `own` holds changes of the activation's own parameters.
    """
    new = jax.tree.map(lambda leaf: leaf, sae)
    for name, value in parameters.items():
        getattr(new, name)[...] = value
    for name, value in (own or {}).items():
        new.own[name][...] = value
    return new


def own(sae: Sae) -> dict[str, Array]:
    """The parameters that the activation brings, by name."""
    return {name: value[...] for name, value in sae.own.items()}


def parameters(sae: Sae) -> dict[str, Array]:
    """Every parameter by its dotted name: "W_enc", ..., "own.threshold"."""
    paths, _ = jax.tree_util.tree_flatten_with_path(using(sae, None))
    # a parameter's array is the `value` of its nnx.Param
    return {jax.tree_util.keystr(path[:-1], simple=True, separator="."): leaf for path, leaf in paths}


def from_parameters(
    parameters: Mapping[str, Array],
    activation: Any,
    apply_b_dec_to_input: bool = True,
    precision: str = "float32",
    normalization: Normalization | None = None,
) -> Sae:
    """The Sae whose `parameters` these are."""
    own = {name.removeprefix("own."): value for name, value in parameters.items() if name.startswith("own.")}
    four = (parameters["W_enc"], parameters["b_enc"], parameters["W_dec"], parameters["b_dec"])
    return Sae(*four, activation, apply_b_dec_to_input, precision, own, normalization)


def using(sae: Sae, activation: Any) -> Sae:
    """The same parameters under an activation, or under None: the parameters alone, as a training state keeps them.

    The result has no normalization.
    """
    four = (sae.W_enc[...], sae.b_enc[...], sae.W_dec[...], sae.b_dec[...])
    return Sae(*four, activation, sae.apply_b_dec_to_input, sae.precision, own(sae))


def on_examples(sae: Sae) -> Sae:
    """The same autoencoder without its normalization: it takes and gives normalized examples, as its source does."""
    return using(sae, sae.activation)


def normalized(sae: Sae, rows: Array) -> tuple[Sae, Array]:
    """The autoencoder without its normalization, and raw rows [..., d_in] as the examples that it then takes."""
    return on_examples(sae), rows if sae.normalization is None else sae.normalization.apply(rows)


def fold(sae: Sae) -> Sae:
    """The same function of raw rows with the normalization in its weights, for tools that know no normalization.

    With `example = (row - shift) * scale`: `W_enc' = W_enc * scale`, `W_dec' = W_dec / scale` and
    `b_dec' = b_dec / scale + shift`; `b_enc' = b_enc`, or `b_enc - W_enc (shift * scale)` where the encoder does not
    subtract `b_dec`. Latents stay as they are; the norms of decoder rows do not.

    Raises UserError where the activation reads the weights (BatchTopK weighs latents by the norms of decoder rows) so
    that folded weights would change its latents.
    """
    if sae.normalization is None:
        return sae
    shift, scale = jnp.asarray(sae.normalization.shift), jnp.asarray(sae.normalization.scale)
    W_enc, b_enc = sae.W_enc[...], sae.b_enc[...]
    folded = replace(
        on_examples(sae),
        W_enc=W_enc * scale,
        b_enc=b_enc if sae.apply_b_dec_to_input else b_enc - matmul(W_enc, shift * scale),
        W_dec=sae.W_dec[...] / scale,
        b_dec=sae.b_dec[...] / scale + shift,
    )
    sizes = jnp.logspace(-6, 6, 500)  # close enough for a threshold that moves by 3 % to show
    z = jnp.broadcast_to(jnp.concatenate([-sizes, sizes]), (W_enc.shape[0], 1_000))
    if not jnp.allclose(sae.activation(sae, z), sae.activation(folded, z), rtol=1e-3):
        name = type(sae.activation).__name__
        raise UserError(f"{name} reads the weights, so folding would change its latents; keep sae.normalization")
    return folded


def select(latents: Array, a: Sae, b: Sae) -> Sae:
    """The parameters of some latents [d_sae] bool from `a`, and all others from `b`."""

    def rows(new: Array, old: Array) -> Array:
        return jnp.where(latents.reshape(-1, *[1] * (old.ndim - 1)), new, old) if old.ndim else old

    return replace(
        b,
        W_enc=rows(a.W_enc[...], b.W_enc[...]),
        b_enc=rows(a.b_enc[...], b.b_enc[...]),
        W_dec=rows(a.W_dec[...], b.W_dec[...]),
        own={name: rows(value, own(b)[name]) for name, value in own(a).items()},
    )


def decoder_norms(sae: Sae) -> Array:
    """Euclidean norms of the decoder rows, [d_sae]; a zero row has a finite gradient."""
    return jnp.sqrt(jnp.maximum(jnp.sum(sae.W_dec[...] ** 2, axis=1), 1e-30))


def unit_rows(W: Array) -> Array:
    """Rows scaled to Euclidean norm 1; zero rows stay zero (and keep a finite gradient)."""
    return W * jax.lax.rsqrt(jnp.maximum(jnp.sum(W * W, axis=1, keepdims=True), 1e-30))


def _rows(function: Callable[[Array], Array], x: Array) -> Array:
    """Apply a function of columns [features, batch] to rows [..., features]."""
    x = jnp.asarray(x)
    columns = x.reshape(-1, x.shape[-1]).T
    out = function(columns).T
    return out.reshape(*x.shape[:-1], out.shape[-1])

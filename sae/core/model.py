"""The parameters of one sparse autoencoder, and one pass over a batch.

Inside the project everything is *feature-major*: a batch is `x [d_in, batch]`, its latents are
`[d_sae, batch]`. With weights `W_enc [d_sae, d_in]` every product is then one wide matrix product without
a transpose, alone and under `vmap`. The methods that people call (`encode`, `decode`, `Sae(x)`) take
examples as rows, `[..., d_in]`, as every other library does.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from sae.core import sparse
from sae.core.normalization import Normalization, split
from sae.core.types import Array, UserError

# Tensors that stand beside the parameters in a run's file of weights.
BESIDE = RATES, MEMBER, SHIFT, SCALE, PARTS = "firing_rate", "member", "shift", "scale", "parts"


class Shapes(NamedTuple):
    """The shapes of a Sae beside d_sae."""

    d_in: int  # width of what is encoded
    d_out: int  # width of what is reconstructed
    parts: tuple[int, ...]  # widths of the sources side by side in it
    skip: bool = False  # whether there is a W_skip


class Sae(nnx.Module):
    """A sparse autoencoder: `latents = activation(W_enc (x - b_dec) + b_enc)`, `x_hat = W_decᵀ latents + b_dec`.

    Parameters, all float32: `W_enc [d_sae, d_in]`, `b_enc [d_sae]`, `W_dec [d_sae, d_out]` (one row, a *direction*, per
    latent), `b_dec [d_out]`, and in `own` those that the activation brings, by name, `[d_sae, ...]` or `[]`. A
    transcoder's d_out may differ from d_in, and with `W_skip [d_out, d_in]` its x_hat gains `W_skip x`. `parts` are the
    widths of the sources side by side in x_hat: one, but for a crosscoder. `precision` is what the matrix products
    round their factors to. A Sae is a pytree; change parameters with `replace` only.

    `normalization` is what its source did to raw rows. A Sae that a run has kept holds it: `encode` takes raw rows, and
    `decode` and a call give raw reconstructions. The parameters belong to the normalized examples. Without one (None),
    rows are such examples already. A transcoder's is that of rows (input ‖ target).

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
        W_skip: Array | None = None,
        parts: tuple[int, ...] | None = None,
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
        self.few = nnx.data(None)  # the latents of the batch at hand, where they are few (see `by_few`)
        self.W_skip = nnx.data(None if W_skip is None else nnx.Param(W_skip))
        self.x = nnx.data(None)  # the batch at hand [d_in, batch], see `at`
        self.skipped = nnx.data(None)  # W_skip x of the batch at hand [d_out, batch], see `at`
        self.parts = parts or (W_dec.shape[-1],)

    @property
    def d_in(self) -> int:
        """Width of what is encoded."""
        return self.W_enc[...].shape[-1]

    @property
    def d_out(self) -> int:
        """Width of what is reconstructed."""
        return self.W_dec[...].shape[-1]

    def encode(self, x: Array) -> Array:
        """Raw rows [..., d_in] -> latents [..., d_sae]. The rows are normalized first, as in training."""
        encode = lambda columns: self.activation(at(self, columns), self.activation.pre_acts(self, columns))
        return _rows(encode, self._examples(x))

    def decode(self, latents: Array) -> Array:
        """Latents [..., d_sae] -> reconstructions [..., d_out], raw: the normalization is undone.

        `W_skip x` is no part of it, as a call adds it.
        """
        return self._raw(_rows(lambda columns: decode(self, columns), latents))

    def __call__(self, x: Array) -> Array:
        """Raw rows [..., d_in] -> raw reconstructions [..., d_out], of the rows or of a transcoder's targets."""
        if self.W_skip is None:
            return self.decode(self.encode(x))
        return self._raw(_rows(lambda columns: forward(self, columns).x_hat, self._examples(x)))

    def _examples(self, x: Array) -> Array:
        made = input_normalization(self)
        return jnp.asarray(x) if made is None else made.apply(jnp.asarray(x, jnp.float32))

    def _raw(self, x_hat: Array) -> Array:
        made = target_normalization(self)
        return x_hat if made is None else made.undo(x_hat)


class Pass(NamedTuple):
    """One pass over a batch, feature-major: all that a term of the loss may look at.

    Outside training no latent is dead, `step` is 0 and `charged` is the latents.
    """

    sae: Sae  # with its activation, as it was before the step
    x: Array  # [d_in, batch]
    y: Array  # [d_out, batch]: the target of the reconstruction; x itself, but for a transcoder
    pre_acts: Array  # [d_sae, batch]
    latents: Array  # [d_sae, batch]
    charged: Array  # [d_sae, batch]: what a penalty charges; the latents, unless the activation says otherwise
    x_hat: Array  # [d_out, batch]: the reconstruction of y
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
        """Norms of the decoder rows, [d_sae] (see `decoder_norms`)."""
        return decoder_norms(self.sae)

    @property
    def active(self) -> Array:
        """1 where a latent is active, else 0, [d_sae, batch]; its gradient is the one that the activation gives it."""
        return self.sae.activation.active(self.sae, self.pre_acts)


def divided(sae: Sae, rows: Array) -> tuple[Array, Array]:
    """Rows feature-major, [d_row, batch] -> (x [d_in, batch], y [d_out, batch]): what is encoded, and the target."""
    return sides(rows, sae.d_in, sae.d_out)


def sides(rows: Array, d_in: int, d_out: int) -> tuple[Array, Array]:
    """Rows as (x, y). A transcoder's row is (input ‖ target); any other row is both, and x is y then."""
    return (rows, rows) if len(rows) == d_in else (rows[:d_in], rows[-d_out:])


def at(sae: Sae, x: Array, origin: Array | None = None) -> Sae:
    """The Sae at a batch x [d_in, batch]: it holds x, and its `decode` adds `W_skip x` where there is a W_skip.

    origin: as for `pre_acts`.
    """
    new = jax.tree.map(lambda leaf: leaf, sae)
    new.x = x
    if sae.W_skip is None:
        return new
    W_skip = sae.W_skip[...]
    if sae.precision == "float32" or origin is None:
        new.skipped = matmul(W_skip, x, sae.precision)
    else:
        new.skipped = matmul(W_skip, x - origin[:, None], sae.precision) + matmul(W_skip, origin)[:, None]
    return new


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
        offset = input_offset(sae)
    else:
        each_alone = b_dec if len(b_dec) == len(x) else jnp.zeros(len(x))
        origin = jax.lax.stop_gradient(each_alone if origin is None else origin)
        offset = b_enc + matmul(W_enc, origin - b_dec if sae.apply_b_dec_to_input else origin)
        x = x - origin[:, None]
    return matmul(W_enc, x, sae.precision) + offset[:, None]


def encoder_input(sae: Sae) -> Array:
    """What W_enc multiplies, [d_in, batch]: x - b_dec, or x where b_dec is not subtracted. `sae` is at a batch."""
    x = jnp.asarray(sae.x)
    return x - sae.b_dec[...][:, None] if sae.apply_b_dec_to_input else x


def input_offset(sae: Sae) -> Array:
    """What the pre-activations of x are beside `W_enc x`, [d_sae], in float32."""
    b_enc = sae.b_enc[...]
    return b_enc - matmul(sae.W_enc[...], sae.b_dec[...]) if sae.apply_b_dec_to_input else b_enc


def decode(sae: Sae, latents: Array) -> Array:
    """latents [d_sae, batch] -> x_hat [d_out, batch]; by sparse products where the latents are those of `sae.few`."""
    few = sae.few if sae.few is not None and sae.few.latents is latents else None
    return (few.decode(sae.W_dec[...]) if few else matmul(sae.W_dec[...].T, latents, sae.precision)) + base(sae)


def base(sae: Sae) -> Array:
    """What is reconstructed without any latent: b_dec [d_out, 1]; at a batch that skips, [d_out, batch] (see `at`)."""
    b_dec = sae.b_dec[...][:, None]
    return b_dec if sae.skipped is None else sae.skipped + b_dec


def by_few(sae: Sae, x: Array, pre_acts: Array) -> Sae:
    """The Sae at a batch x [d_in, batch] with the latents that it has in `few`, where they are few and that pays."""
    found = sae.activation.few(sae, pre_acts)
    # a derived class that changes what `few` stands for does without it, unless it brings its own
    origins = [type(sae.activation).__mro__.index(_origin(sae.activation, name)) for name in ("few", *STANDS_FOR)]
    if found is None or origins[0] > min(origins) or not sparse.pays(len(pre_acts), len(found[0]), sae.precision):
        return sae
    new = jax.tree.map(lambda leaf: leaf, sae)
    new.few = sparse.few(sae.W_enc[...], input_offset(sae), x, *found)
    return new


STANDS_FOR = ("__call__", "training", "pre_acts")  # the methods of an activation whose place `few` takes


def _origin(activation: Any, name: str) -> type:
    """The class that defines a method."""
    return next(cls for cls in type(activation).__mro__ if name in vars(cls))


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


def forward(sae: Sae, rows: Array) -> Pass:
    """One pass over rows [d_row, batch], or inputs alone, outside training: each example stands alone."""
    x, y = divided(sae, rows)
    z, sae = sae.activation.pre_acts(sae, x), at(sae, x)
    latents = sae.activation(sae, z)
    none_dead = jnp.zeros(z.shape[0], bool)
    return Pass(sae, x, y, z, latents, latents, decode(sae, latents), none_dead, step=0, n_steps=1)


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
    parts: tuple[int, ...] | None = None,
) -> Sae:
    """The Sae whose `parameters` these are."""
    own = {name.removeprefix("own."): value for name, value in parameters.items() if name.startswith("own.")}
    four = (parameters["W_enc"], parameters["b_enc"], parameters["W_dec"], parameters["b_dec"])
    W_skip = parameters.get("W_skip")
    return Sae(*four, activation, apply_b_dec_to_input, precision, own, normalization, W_skip, parts)


def using(sae: Sae, activation: Any) -> Sae:
    """The same parameters under an activation, or under None: the parameters alone, as a training state keeps them.

    The result has no normalization.
    """
    four = (sae.W_enc[...], sae.b_enc[...], sae.W_dec[...], sae.b_dec[...])
    W_skip = None if sae.W_skip is None else sae.W_skip[...]
    return Sae(
        *four, activation, sae.apply_b_dec_to_input, sae.precision, own(sae), W_skip=W_skip, parts=sae.parts
    )  # fmt: skip


def on_examples(sae: Sae) -> Sae:
    """The same autoencoder without its normalization: it takes and gives normalized examples, as its source does."""
    return using(sae, sae.activation)


def normalized(sae: Sae, rows: Array) -> tuple[Sae, Array]:
    """The autoencoder without its normalization, and raw rows [..., d_in] as the examples that it then takes."""
    made = input_normalization(sae)
    return on_examples(sae), rows if made is None else made.apply(rows)


def input_normalization(sae: Sae) -> Normalization | None:
    """The normalization of what is encoded."""
    return None if sae.normalization is None else sae.normalization.part(0, sae.d_in)


def target_normalization(sae: Sae) -> Normalization | None:
    """The normalization of what is reconstructed: the same, but for a transcoder."""
    made = sae.normalization
    return None if made is None else made.part(made.shift.shape[-1] - sae.d_out, made.shift.shape[-1])


def fold(sae: Sae) -> Sae:
    """The same function of raw rows with the normalization in its weights, for tools that know no normalization.

    With `example = (row - shift) * scale`: `W_enc' = W_enc * scale`, `W_dec' = W_dec / scale` and
    `b_dec' = b_dec / scale + shift`; `b_enc' = b_enc`, or `b_enc - W_enc (shift * scale)` where the encoder does not
    subtract `b_dec`. Each side has its own shift and scale; `W_skip' = W_skip * scale_in / scale_out`, and b_dec' makes
    up for shift_in. Latents stay as they are; the norms of decoder rows do not.

    Raises UserError where the activation reads the weights (BatchTopK weighs latents by the norms of decoder rows) so
    that folded weights would change its latents.
    """
    seen, made = input_normalization(sae), target_normalization(sae)
    if seen is None or made is None:
        return sae
    W_enc, b_enc, shifted = sae.W_enc[...], sae.b_enc[...], jnp.asarray(seen.shift * seen.scale)
    folded = replace(
        on_examples(sae),
        W_enc=W_enc * seen.scale,
        b_enc=b_enc if sae.apply_b_dec_to_input else b_enc - matmul(W_enc, shifted),
        W_dec=sae.W_dec[...] / made.scale,
        b_dec=sae.b_dec[...] / made.scale + made.shift,
    )
    if sae.W_skip is not None:
        W_skip = sae.W_skip[...] / made.scale[:, None]
        folded = replace(folded, W_skip=W_skip * seen.scale, b_dec=folded.b_dec[...] - matmul(W_skip, shifted))
    sizes = jnp.logspace(-6, 6, 500)  # close enough for a threshold that moves by 3 % to show
    z = jnp.broadcast_to(jnp.concatenate([-sizes, sizes]), (W_enc.shape[0], 1_000))
    x = jax.random.normal(jax.random.key(0), (sae.d_in, 1_000))
    rows = x / seen.scale.reshape(-1, 1) + seen.shift.reshape(-1, 1)  # the same examples, as the folded one sees them
    if not jnp.allclose(sae.activation(at(sae, x), z), sae.activation(at(folded, rows), z), rtol=1e-3):
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
    """Euclidean norms of the decoder rows, [d_sae]; a zero row has a finite gradient.

    A crosscoder's are the sums over sources s of ‖W_dec,i^s‖ (Lindsey et al. 2024, "Sparse crosscoders").
    """
    return functools.reduce(jnp.add, part_norms(sae))


def part_norms(sae: Sae) -> list[Array]:
    """Euclidean norms of every source's part of the decoder rows, [d_sae] each."""
    norms = lambda W: jnp.sqrt(jnp.maximum(jnp.sum(W**2, axis=1), 1e-30))
    return [norms(W) for W in split(sae.W_dec[...], sae.parts)]


def unit_rows(W: Array) -> Array:
    """Rows scaled to Euclidean norm 1; zero rows stay zero (and keep a finite gradient)."""
    return W * jax.lax.rsqrt(jnp.maximum(jnp.sum(W * W, axis=1, keepdims=True), 1e-30))


def within_cosine(W: Array, start: Array, cosine: Array | float) -> Array:
    """Rows of W turned towards those of `start` until their cosine is at least `cosine`, with their norms.

    A row that is outside becomes the nearest direction inside, `c s + √(1 - c²) u`: s is its start's direction, u the
    direction of the row's part that is orthogonal to s. A row opposite to its start has no such part, and becomes
    `c s` alone.
    """
    s, norms = unit_rows(start), jnp.sqrt(jnp.sum(W * W, axis=1, keepdims=True))
    along = jnp.sum(W * s, axis=1, keepdims=True)
    turned = norms * (cosine * s + jnp.sqrt(1 - cosine**2) * unit_rows(W - along * s))
    return jnp.where(along < cosine * norms, turned, W)


def _rows(function: Callable[[Array], Array], x: Array) -> Array:
    """Apply a function of columns [features, batch] to rows [..., features]."""
    x = jnp.asarray(x)
    columns = x.reshape(-1, x.shape[-1]).T
    out = function(columns).T
    return out.reshape(*x.shape[:-1], out.shape[-1])

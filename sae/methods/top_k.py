"""The largest of many numbers, exactly: of each example, or of a whole batch. Feature-major, [d_sae, batch]."""

import jax
import jax.numpy as jnp
import numpy as np

from sae.core.types import Array

WAYS = 7  # thresholds that a pass of a search counts
SPREAD = 2.0**17  # bits between the thresholds around a guess: 1.5 % of its value
SIGN, LAST = np.uint32(0x80000000), np.uint32(0xFFFFFFFF)
SORTED_FROM = 1024  # latents from which sorting groups is faster than sorting all of them (measured on a CPU)


def k_largest(values: Array, k: Array | int, k_max: int | None = None) -> Array:
    """Which values are the k largest of their column, [d_sae, batch] bool; of equal ones the first latents count.

    k may be traced, and is at most `k_max`; without `k_max` all values are sorted. Comparing with the k-th largest is
    dense, where picking k values would be a gather and its gradient a scatter.
    """
    held = jax.lax.stop_gradient(values)
    n = held.shape[0]
    most = k_max or (k if isinstance(k, int) else n)
    found, latents = _largest(held, min(most, n))
    least, last = (jnp.take(rows, k - 1, axis=0) for rows in (found, latents))
    return (held > least) | ((held == least) & (jnp.arange(n)[:, None] <= last))


def k_reached(values: Array, k: Array | int) -> Array:
    """`k_largest` without a sort: a search for the threshold that k values of each column reach."""
    held = jax.lax.stop_gradient(values)
    ordered = _ordered(held)
    low = jnp.zeros(held.shape[1], jnp.uint32)
    threshold = _search(ordered, k, (0,), low, low)
    above, equal = ordered > threshold, ordered == threshold
    n_above = jnp.sum(above, axis=0, dtype=jnp.int32)
    n_equal = jnp.sum(equal, axis=0, dtype=jnp.int32)

    def first(args: tuple) -> tuple:
        equal, _ = args
        return equal & (jnp.cumsum(equal, axis=0, dtype=jnp.int32) <= k - n_above), False

    equal, _ = jax.lax.while_loop(lambda args: args[1], first, (equal, jnp.any(n_above + n_equal > k)))
    return above | equal


def nth_largest(values: Array, n: Array | int, guess: Array | float = 0.0) -> Array:
    """The n-th largest of all values >= 0, []; n may be traced. 0 where there are fewer than n values.

    A good guess saves passes over the values, and changes no result.
    """
    held = jax.lax.stop_gradient(values)
    zero, around = _ordered(jnp.zeros((), held.dtype)), _ordered(jnp.asarray(guess, held.dtype))
    return _value(_search(_ordered(held), n, (0, 1), zero, around))


def _largest(values: Array, k: int) -> tuple[Array, Array]:
    """The k largest of each column in falling order, and their latents, [k, batch] each. Equal ones keep their order.

    The k groups of latents with the largest maxima contain the k largest latents. So the maxima are sorted, and then
    k groups, where `lax.top_k` alone would sort every latent.
    """
    n, batch = values.shape
    size = _group_size(n, k)
    if size == 1:
        found, latents = jax.lax.top_k(values.T, k)
        return found.T, latents.T
    maxima = jnp.max(values.reshape(n // size, size, batch), axis=1)
    _, groups = jax.lax.top_k(maxima.T, k)  # [batch, k]
    # groups in their own order, so that of equal latents the first ones still come first
    latents = (jnp.sort(groups, axis=1)[:, :, None] * size + jnp.arange(size)).reshape(batch, -1)
    found, places = jax.lax.top_k(jnp.take_along_axis(values.T, latents, axis=1), k)
    return found.T, jnp.take_along_axis(latents, places, axis=1).T


def _group_size(n: int, k: int) -> int:
    """About sqrt(n / k) latents in a group make both sorts equally long; 1 where sorting all of them is as fast."""
    sizes = [size for size in (2, 4, 8, 16, 32, 64) if n % size == 0 and size * size * k <= n and n // size >= k]
    return max(sizes, default=1) if n >= SORTED_FROM else 1


def _search(ordered: Array, n: Array | int, axes: tuple[int, ...], low: Array, guess: Array) -> Array:
    """The largest thresholds from `low` on that n numbers reach, counted over some axes, or `low`.

    A pass over the numbers counts those that reach each of `WAYS` thresholds between the bounds, and leaves the
    interval between two of them. The first pass looks around the guess.
    """
    shape = (WAYS, *[1] * low.ndim)
    place = jnp.arange(1, WAYS + 1, dtype=jnp.uint32).reshape(shape)

    def narrow(low: Array, high: Array, thresholds: Array) -> tuple[Array, Array]:
        """The bounds after a pass: low is reached and high is not."""
        reached = _counts(ordered, thresholds, axes) >= n
        low = jnp.maximum(low, jnp.max(jnp.where(reached, thresholds, low), axis=0))
        return low, jnp.minimum(high, jnp.min(jnp.where(reached, high, thresholds), axis=0))

    def between(bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        width = high - low
        steps = width // (WAYS + 1) * place + width % (WAYS + 1) * place // (WAYS + 1)
        return narrow(low, high, jnp.clip(low + steps, low + 1, high - 1))

    # on a mesh, what a loop carries must lie where the numbers lie
    nothing = jnp.uint32(0) * _counts(ordered, jnp.ones((1, *low.shape), jnp.uint32), axes)[0].astype(jnp.uint32)
    low, high = low + nothing, nothing + LAST
    apart = (place.astype(jnp.float32) - (WAYS + 1) / 2) * SPREAD
    around = jnp.clip(guess.astype(jnp.float32) + apart, 1.0, 4.29e9).astype(jnp.uint32)
    low, high = narrow(low, high, jnp.clip(around, low + 1, high - 1))
    return jax.lax.while_loop(lambda bounds: jnp.any(bounds[1] - bounds[0] > 1), between, (low, high))[0]


def _counts(ordered: Array, thresholds: Array, axes: tuple[int, ...]) -> Array:
    """How many numbers reach each of thresholds [WAYS, ...], counted over axes in one pass."""
    reach = [jnp.where(ordered >= t, 1, 0) for t in thresholds]
    add = lambda a, b: [x + y for x, y in zip(a, b, strict=True)]
    return jnp.stack(jax.lax.reduce(reach, [jnp.int32(0)] * len(reach), add, axes))


def _ordered(values: Array) -> Array:
    """Numbers as whole numbers of the same order, uint32: negative ones have their bits reversed."""
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | SIGN)


def _value(ordered: Array) -> Array:
    """`_ordered`, undone."""
    bits = jnp.where(ordered >> 31 == 1, ordered ^ SIGN, ~ordered)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)

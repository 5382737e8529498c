"""The largest of many numbers, exactly: of each example, or of a whole batch. Feature-major, [d_sae, batch]."""

import jax
import jax.numpy as jnp

from sae.core.types import Array

WAYS = 7  # thresholds that a pass of a search counts: the fastest number on a CPU and on an H100
SPREAD = 2**15  # bits between the thresholds around a guess: .4 % of its value
INFINITY = 0x7F800000  # the bits of infinity
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


def nth_largest(values: Array, n: Array | int, guess: Array | float = 0.0) -> Array:
    """The n-th largest of all values >= 0, []; n may be traced. 0 where there are fewer than n values.

    Without a sort: numbers >= 0 have the order of their bits, so the result is searched among whole numbers. A pass
    over the values counts those that reach each of `WAYS` thresholds between the bounds, and leaves the interval
    between two of them. The first pass looks around the guess; a good one saves passes and changes no result.
    """
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(values), jnp.int32)
    place = jnp.arange(1, WAYS + 1)
    # on a mesh, what a loop carries must lie where the values lie
    low = 0 * _count(bits, jnp.ones(1, jnp.int32))[0]

    def narrow(low: Array, high: Array, thresholds: Array) -> tuple[Array, Array]:
        """The bounds after a pass: n values reach `low`, and fewer reach `high`."""
        reached = _count(bits, thresholds) >= n
        low = jnp.maximum(low, jnp.max(jnp.where(reached, thresholds, low)))
        return low, jnp.minimum(high, jnp.min(jnp.where(reached, high, thresholds)))

    def between(bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        width = high - low
        steps = width // (WAYS + 1) * place + width % (WAYS + 1) * place // (WAYS + 1)
        return narrow(low, high, jnp.clip(low + steps, low + 1, high - 1))

    around = jax.lax.bitcast_convert_type(jnp.asarray(guess, jnp.float32), jnp.int32)
    first = jnp.clip(around + (place - (WAYS + 1) // 2) * SPREAD, 1, INFINITY - 1)
    bounds = narrow(low, low + INFINITY, first)
    low, _ = jax.lax.while_loop(lambda bounds: bounds[1] - bounds[0] > 1, between, bounds)
    return jax.lax.bitcast_convert_type(low, jnp.float32)


def _largest(values: Array, k: int) -> tuple[Array, Array]:
    """The k largest of each column in falling order, and their latents, [k, batch] each. Equal ones keep their order.

    The k groups of latents with the largest maxima contain the k largest latents. So these groups are found, by the
    same rule, and only their latents are sorted, where `lax.top_k` alone would sort every latent.
    """
    n, batch = values.shape
    size = _group_size(n, k)
    if size == 1:
        found, latents = jax.lax.top_k(values.T, k)
        return found.T, latents.T
    maxima = jnp.max(values.reshape(n // size, size, batch), axis=1)
    groups = jnp.sort(_largest(maxima, k)[1].T, axis=1)  # [batch, k], in order: of equal latents the first come first
    latents = (groups[:, :, None] * size + jnp.arange(size)).reshape(batch, -1)
    found, places = jax.lax.top_k(jnp.take_along_axis(values.T, latents, axis=1), k)
    return found.T, jnp.take_along_axis(latents, places, axis=1).T


def _group_size(n: int, k: int) -> int:
    """About sqrt(n / k) latents in a group make both sorts equally long; 1 where sorting all of them is as fast."""
    sizes = [size for size in (2, 4, 8, 16, 32, 64) if n % size == 0 and size * size * k <= n and n // size >= k]
    return max(sizes, default=1) if n >= SORTED_FROM else 1


def _count(bits: Array, thresholds: Array) -> Array:
    """How many numbers reach each of some thresholds, [n]: one pass over the numbers."""
    reach = [jnp.where(bits >= threshold, 1, 0) for threshold in thresholds]
    add = lambda a, b: [x + y for x, y in zip(a, b, strict=True)]
    return jnp.stack(jax.lax.reduce(reach, [jnp.int32(0)] * len(reach), add, (0, 1)))

"""The largest of many numbers, exactly: of each example, or of a whole batch. Feature-major, [d_sae, batch]."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sae.core.types import Array

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


def nth_largest(values: Array, n: Array | int) -> Array:
    """The n-th largest of all values >= 0, []; n may be traced. 0 where there are fewer than n values."""
    return _search(jax.lax.stop_gradient(values), n, lambda at_least: jnp.sum(jnp.sum(at_least, axis=0)))


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


def _search(values: Array, n: Array | int, count: Callable[[Array], Array]) -> Array:
    """The largest threshold that n values reach, bit by bit: numbers >= 0 have the order of their bits."""
    width = 8 * values.dtype.itemsize
    integer = jnp.dtype(f"int{width}")
    bits = jax.lax.bitcast_convert_type(values, integer)

    def one(i: Array, found: Array) -> Array:
        higher = found | jnp.left_shift(jnp.ones((), integer), (width - 2 - i).astype(integer))
        return jnp.where(count(bits >= higher) >= n, higher, found)

    zero = 0 * count(bits > 0).astype(integer)  # on a mesh, what a loop carries must lie where the values lie
    return jax.lax.bitcast_convert_type(jax.lax.fori_loop(0, width - 1, one, zero), values.dtype)

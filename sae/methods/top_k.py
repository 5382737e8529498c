"""The largest of many numbers, exactly: of each example, or of a whole batch. Feature-major, [d_sae, batch]."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sae.core.sparse import undivided
from sae.core.types import Array
from sae.methods.lazily import run_where

# a pass of a search counts 7 thresholds: in equal steps the fastest number on a CPU and on an H100
AROUND = (-32, -8, -2, 0, 2, 8, 32)  # places of the first thresholds around a guess, in .1 to .2 % of its value
UNIT = 2**14  # bits of these .1 to .2 %
INFINITY = 0x7F800000  # the bits of infinity
COUNTED_BELOW = 200  # latents per kept one from which sorting groups is faster than counting (measured on a CPU)
SORTED_FROM = 1024  # latents from which sorting groups is faster than sorting all of them (measured on a CPU)


def k_largest(values: Array, k: Array | int, k_max: int | None = None, above: float = -jnp.inf) -> Array:
    """Which values are the k largest of their column, [d_sae, batch] bool; of equal ones the first latents count.

    Only values > `above` count, so there may be fewer. k may be traced, and is at most `k_max`; without `k_max` an
    accelerator sorts all values. Never more than k of a column are chosen, however many are equal.
    """
    held = jax.lax.stop_gradient(values)
    most = min(k_max or (k if isinstance(k, int) else held.shape[0]), held.shape[0])
    # a CPU sorts slowly; counting takes some 20 passes over all values
    by_sorting = lambda values, k: _by_sorting(values, k, most, above)
    by_counting = lambda values, k: _by_counting(values, k, above)
    counts = held.dtype == jnp.float32 and held.shape[0] < COUNTED_BELOW * most and undivided()
    on_cpu = by_counting if counts else by_sorting
    return jax.lax.platform_dependent(held, jnp.asarray(k), cpu=on_cpu, default=by_sorting)


def largest(values: Array, k: int) -> Array:
    """The latents of the k largest values of every column, in falling order, [k, batch]."""
    return _largest(jax.lax.stop_gradient(values), k)[1]


def n_largest(values: Array, n: Array | int, guess: Array | float = 0.0) -> Array:
    """Which of all values >= 0 are the n largest, [d_sae, batch] bool; of equal ones the first latents count.

    A 0 is never chosen, so there may be fewer. n may be traced.

    Without a sort: numbers >= 0 have the order of their bits, so a threshold that n values reach is searched among
    whole numbers. A pass over the values counts those that reach each of 7 thresholds between the bounds. Three of
    them divide the interval into quarters, so that it shrinks; the others surround the place where n would be reached
    if the values were spread evenly. The first pass looks around the guess; a good one saves passes and changes no
    result.
    """
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(values), jnp.int32)
    around = jax.lax.bitcast_convert_type(jnp.asarray(guess, jnp.float32), jnp.int32)
    first = jnp.clip(around + UNIT * jnp.array(AROUND), 1, INFINITY - 1)
    # on a mesh, what a loop carries must lie where the values lie
    zero = 0 * _count(bits, jnp.ones(1, jnp.int32))[0]

    def narrow(bounds: tuple, thresholds: Array) -> tuple:
        """The bounds after a pass, and the counts at them: n values reach `low`, and fewer reach `high`."""
        low, high, at_low, at_high = bounds
        counts = _count(bits, thresholds)
        enough = counts >= n
        return (
            jnp.maximum(low, jnp.max(jnp.where(enough, thresholds, low))),
            jnp.minimum(high, jnp.min(jnp.where(enough, high, thresholds))),
            jnp.minimum(at_low, jnp.min(jnp.where(enough, counts, at_low))),
            jnp.maximum(at_high, jnp.max(jnp.where(enough, at_high, counts))),
        )

    def between(bounds: tuple) -> tuple:
        low, high, at_low, at_high = bounds
        within = (at_low - at_high).astype(jnp.float32)
        # of c values spread evenly over the interval, the rank at a place in it is off by about sqrt(c) / 2
        even, off = (at_low - n) / within, 0.5 / jnp.sqrt(within)
        shares = jnp.concatenate([jnp.array([0.25, 0.5, 0.75]), even + off * jnp.array([-1.5, -0.5, 0.5, 1.5])])
        steps = ((high - low).astype(jnp.float32) * jnp.clip(shares, 0.0, 1.0)).astype(jnp.int32)
        return narrow(bounds, jnp.clip(low + steps, low + 1, high - 1))

    bounds = narrow((zero, zero + INFINITY, zero + values.size, zero), first)
    unfinished = lambda bounds: (bounds[2] > n) & (bounds[1] - bounds[0] > 1)
    low, _, at_low, at_high = jax.lax.while_loop(unfinished, between, bounds)
    border = jnp.maximum(low, 1)
    places = jnp.arange(values.shape[0])[:, None] * values.shape[1] + jnp.arange(values.shape[1])
    too_many = (low > 0) & (at_low > n)  # then all that are left have the bits of the border
    last = run_where(too_many, lambda: _nth_true(bits == border, n - at_high), zero + values.size - 1)
    return (bits > border) | ((bits == border) & (places <= last))


def up_to_norm(values: Array, norms: Array) -> Array:
    """Which values, from the largest of their column on, have together the Euclidean norm nearest to `norms` [batch].

    values [d_sae, batch] >= 0 -> [d_sae, batch] bool. Each column keeps at least its largest value; equal values are
    kept together, and 0 never. Found without a sort, as the sum of squares above a threshold falls as that rises.
    """
    values, squares = jax.lax.stop_gradient(values), jax.lax.stop_gradient(norms) ** 2
    above = lambda threshold: _fold(jnp.add, lambda v: jnp.where(v > _number(threshold), v * v, 0.0), values)
    largest = _fold(jnp.maximum, lambda v: v, values)
    low, high = jnp.zeros_like(_order(largest)), _order(largest)
    first = jnp.clip(_order(largest / 16), low + 1, jnp.maximum(high - 1, 1))
    low, high, more, less = _halve(above, squares, low, high, first)
    fewer = (less > 0) & (jnp.abs(jnp.sqrt(less) - norms) < jnp.abs(jnp.sqrt(more) - norms))
    return values > _number(jnp.where(fewer, high, low))


def _by_sorting(values: Array, k: Array | int, k_max: int, above: float) -> Array:
    """`k_largest`: comparing with the k-th is dense; picking k values would be a gather, its gradient a scatter."""
    values = jnp.where(values == 0, 0.0, values)  # a sort would put 0 before -0, which compare as equal
    found, latents = _largest(values, k_max)
    least, last = (jnp.take(rows, k - 1, axis=0) for rows in (found, latents))
    first = jnp.arange(values.shape[0])[:, None] <= last
    return (values > above) & ((values > least) | ((values == least) & first))


def _by_counting(values: Array, k: Array | int, above: float) -> Array:
    """`k_largest`: of every column a threshold that k values exceed, found by halving an interval and counting."""
    n = values.shape[0]
    exceed = lambda threshold: _count_rows(lambda v, _: v > _number(threshold), values)
    largest = _fold(jnp.maximum, lambda v: v, values)
    low, high = _order(jnp.full_like(largest, above)), _order(largest)
    # most thresholds lie within a factor of 16 of the largest value: it saves the passes that look for the exponent
    low, high, kept, fewer = _halve(exceed, k, low, high, jnp.clip(_order(largest / 16), low + 1, high - 1))
    # columns where values equal to the k-th are too many: of the latents, the last `beyond` do not count
    tied, border = kept > k, _number(high)
    equal = lambda beyond: _count_rows(lambda v, latent: (v == border) & (latent < n - beyond), values)
    none, all_ = jnp.zeros_like(low), jnp.full_like(low, n)
    beyond, *_ = _halve(equal, jnp.where(tied, k - fewer, n), none, all_, all_ // 2)
    surplus = tied & (values == border) & (jnp.arange(n)[:, None] >= n - beyond)
    return (values > _number(low)) & ~surplus


def _halve(
    count: Callable[[Array], Array], k: Array | int, low: Array, high: Array, first: Array
) -> tuple[Array, Array, Array, Array]:
    """Whole numbers with count(low) >= k > count(high) brought together until count(low) <= k or they are neighbours.

    All are [batch]; count falls as its argument grows, and is below k at `high`. Returns (low, high, count(low),
    count(high)). The first pass looks at `first`.
    """

    def narrow(state: tuple) -> tuple:
        low, high, at_low, at_high, middle = state
        found = count(middle)
        enough = found >= k
        low, high = jnp.where(enough, middle, low), jnp.where(enough, high, middle)
        at_low, at_high = jnp.where(enough, found, at_low), jnp.where(enough, at_high, found)
        return low, high, at_low, at_high, (low & high) + ((low ^ high) >> 1)  # (low + high) / 2 may be too large

    unfinished = lambda state: jnp.any((state[2] > k) & (state[0] + 1 < state[1]))
    at_low = count(low)
    return jax.lax.while_loop(unfinished, narrow, (low, high, at_low, jnp.zeros_like(at_low), first))[:4]


def _count_rows(which: Callable[[Array, Array], Array], values: Array) -> Array:
    """How many of each column are those that which(values, latents) chooses, [batch]."""
    latents = jax.lax.broadcasted_iota(jnp.int32, values.shape, 0)
    return _fold(jnp.add, lambda v, latent: jnp.where(which(v, latent), 1, 0), values, latents)


def _fold(add: Callable[[Array, Array], Array], each: Callable[..., Array], *arrays: Array) -> Array:
    """each(*arrays) of [d_sae, batch] summed up over latents by `add`, [batch].

    A sum of parts is elementwise, and several times as fast on a CPU as a reduction over the first axis.
    """
    n = len(arrays[0])
    size = n // next((parts for parts in range(16, 1, -1) if n % parts == 0), n)
    total = functools.reduce(add, [each(*(array[at : at + size] for array in arrays)) for at in range(0, n, size)])
    return total[0] if size == 1 else _fold(add, lambda rows: rows, jax.lax.optimization_barrier(total))


def _nth_true(which: Array, n: Array) -> Array:
    """The place of the n-th that is true of [d_sae, batch], in the order by latents, then examples, []."""
    counts = jnp.cumsum(jnp.sum(which, axis=1))
    latent = jnp.argmax(counts >= n)
    inside = jnp.cumsum(which[latent]) + counts[latent] - jnp.sum(which[latent])
    return latent * which.shape[1] + jnp.argmax(inside >= n)


def _order(numbers: Array) -> Array:
    """Whole numbers in the order of float32 numbers: their bits, those of negative numbers turned round."""
    bits = jax.lax.bitcast_convert_type(numbers, jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _number(order: Array) -> Array:
    """The float32 number of a place in the order."""
    return jax.lax.bitcast_convert_type(jnp.where(order < 0, order ^ 0x7FFFFFFF, order), jnp.float32)


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

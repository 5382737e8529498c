"""From a source's data to batches: `[block_steps, d_in, batch]` at a time, the same for every member.

A *block* is the batches of `block_steps` consecutive steps, drawn together inside the compiled program, so that
what depends on examples alone is computed once for all members. There are three kinds, with one method,
`batches(step)`: rows that stay on the device, rows that stream from the host with the next block prefetched
while this one trains, and examples that are sampled. The first two give the same batches for the same seed.
"""

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sae.core.types import Array, Key, UserError
from sae.data.order import CANDIDATES, HELD_OUT, TRAIN, batch_rows, permute
from sae.data.source import Rows, Sampler

RESIDENT_BYTES = 2**31  # data up to this size, as float32, stays on the device
BLOCK_BYTES = 2**25  # of the batches of one block
BLOCK_STEPS = 64
EVAL_BATCH = 1024  # held-out examples at a time, whatever the batch size, so that all members meet the same ones


@struct.dataclass
class Resident:
    """All training examples on the device, [n, d_in] float32."""

    examples: Array
    seed: int = struct.field(pytree_node=False)
    batch_size: int = struct.field(pytree_node=False)
    steps: int = struct.field(pytree_node=False)

    def batches(self, step: Array) -> Array:
        """[steps, d_in, batch] from a step on."""
        n = self.examples.shape[0]
        rows = jax.vmap(lambda s: batch_rows(self.seed, s, self.batch_size, n))(step + jnp.arange(self.steps))
        return self.examples[rows].transpose(0, 2, 1)


@struct.dataclass
class Streamed:
    """One block that the host has gathered, [steps, batch, d_in] float32."""

    block: Array

    def batches(self, step: Array) -> Array:
        """[steps, d_in, batch]: this block, whatever the step."""
        return self.block.transpose(0, 2, 1)


@struct.dataclass
class Sampled:
    """Fresh examples in every step."""

    sample: Callable[[Key, int], Array] = struct.field(pytree_node=False)
    seed: int = struct.field(pytree_node=False)
    batch_size: int = struct.field(pytree_node=False)
    steps: int = struct.field(pytree_node=False)

    def batches(self, step: Array) -> Array:
        """[steps, d_in, batch] from a step on."""
        return jax.vmap(self.batch)(step + jnp.arange(self.steps)).transpose(0, 2, 1)

    def batch(self, step: Array) -> Array:
        """[batch, d_in] of one step."""
        key = jax.random.fold_in(jax.random.key(self.seed), TRAIN)
        return self.sample(jax.random.fold_in(key, step), self.batch_size)


class Feed:
    """Training and held-out examples of one cohort, on the host's side."""

    def __init__(
        self,
        data: Rows | Sampler,
        seed: int,
        batch_size: int,
        n_steps: int,
        resident_bytes: int = RESIDENT_BYTES,
        put: Callable = jax.device_put,  # an array of the host's or of one device -> where training wants it
    ):
        check(data, batch_size)
        self.data, self.seed, self.batch_size, self._put = data, seed, batch_size, put
        self.steps = block_steps(data.d_in, batch_size, n_steps)
        self._prefetch = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._next = None
        self._resident = None
        if isinstance(data, Sampler):
            self._resident = Sampled(data.sample, seed, batch_size, self.steps)
        elif resident(data, resident_bytes):
            self._resident = Resident(put(data.on_device), seed, batch_size, self.steps)

    def block(self, step: int, then: int | None = None):
        """The block from a step on; `then` is the step of the block that will be asked for next."""
        if self._resident is not None:
            return self._resident
        ready = self._next
        self._next = None
        block = ready[1].result() if ready is not None and ready[0] == step else self._gather(step)
        if then is not None:
            self._next = (then, self._prefetch.submit(self._gather, then))
        return Streamed(block)

    def candidates(self, step: int, n: int) -> Array:
        """n random training examples that belong to a step, each once, in whole batches, [n_batches, d_in, batch].

        Up to a batch more than n where there is enough data, and fewer than n where there is less.
        """
        n_batches = -(-n // self.batch_size)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), CANDIDATES), step)
        if isinstance(self.data, Sampler):
            examples = self.data.sample(key, n_batches * self.batch_size)
        else:
            n_rows = len(self.data.train)
            n_batches = min(n_batches, n_rows // self.batch_size)
            rows = permute(key, jnp.arange(n_batches * self.batch_size, dtype=jnp.uint32), n_rows)
            examples = self._examples(self.data.train, np.asarray(rows))
        return self._put(jnp.asarray(examples).reshape(n_batches, self.batch_size, -1).transpose(0, 2, 1))

    def held_out(self, n_examples: int | None = None) -> Iterator[tuple[Array, Array]]:
        """(x [d_in, EVAL_BATCH], weight [EVAL_BATCH]) over the first n_examples held-out ones, or all; 0 is padding."""
        if isinstance(self.data, Sampler):
            n = self.data.n_held_out if n_examples is None else n_examples
            key = jax.random.fold_in(jax.random.key(self.seed), HELD_OUT)
            sample = jax.jit(self.data.sample, static_argnums=1)
        else:
            n = len(self.data.held_out) if n_examples is None else min(n_examples, len(self.data.held_out))
        for start in range(0, n, EVAL_BATCH):
            if isinstance(self.data, Sampler):
                x = sample(jax.random.fold_in(key, start // EVAL_BATCH), EVAL_BATCH)
            else:
                rows = np.minimum(np.arange(start, start + EVAL_BATCH), n - 1)
                x = jnp.asarray(self._examples(self.data.held_out, rows))
            yield self._put((x.T, np.asarray(np.arange(start, start + EVAL_BATCH) < n, np.float32)))

    def close(self) -> None:
        """Stop prefetching."""
        self._prefetch.shutdown(wait=False, cancel_futures=True)

    def _gather(self, step: int) -> Array:
        n = len(self.data.train)
        with jax.default_device(jax.devices("cpu")[0]):
            rows = np.asarray(_block_rows(step, seed=self.seed, batch_size=self.batch_size, n=n, steps=self.steps))
        return self._put(self._examples(self.data.train, rows.reshape(-1)).reshape(*rows.shape, -1))

    def _examples(self, array, rows: np.ndarray) -> np.ndarray:
        # in the order they lie on disk, each once: reading is the cost
        unique, inverse = np.unique(rows, return_inverse=True)
        return self.data.examples(np.asarray(array[unique]))[inverse]


def check(data: Rows | Sampler, batch_size: int) -> None:
    """Raise UserError where there are fewer training examples than one batch takes."""
    if isinstance(data, Rows) and batch_size > len(data.train):
        raise UserError(f"batch_size: got {batch_size}, allowed: at most the {len(data.train)} training examples")


def resident(data: Rows | Sampler, resident_bytes: int = RESIDENT_BYTES) -> bool:
    """Whether all training examples stay on the device."""
    return isinstance(data, Rows) and 4 * len(data.train) * data.d_in <= resident_bytes


def block_steps(d_in: int, batch_size: int, n_steps: int) -> int:
    """Steps whose batches are drawn together: a matter of the definition alone, never of how a run is cut."""
    return int(np.clip(min(BLOCK_BYTES // (4 * batch_size * d_in), n_steps // 20), 1, BLOCK_STEPS))


@functools.partial(jax.jit, static_argnames=("seed", "batch_size", "n", "steps"))
def _block_rows(step, *, seed: int, batch_size: int, n: int, steps: int) -> Array:
    return jax.vmap(lambda s: batch_rows(seed, s, batch_size, n))(step + jnp.arange(steps))

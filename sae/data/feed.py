"""From examples to batches: `[block_steps, d_in, batch]` at a time, the same for every member.

A *block* is the batches of `block_steps` consecutive steps, drawn together inside the compiled program, so that
what depends on examples alone is computed once for all members. The next block is prepared while this one trains.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from sae.core.types import Array, UserError
from sae.data.order import CANDIDATES, HELD_OUT
from sae.data.source import Block, Draw, Examples, Put

RESIDENT_BYTES = 2**31  # data up to this size, as float32, stays on the device
BLOCK_BYTES = 2**25  # most bytes of one block's batches
BLOCK_STEPS = 64
EVAL_BATCH = 1024  # held-out examples at a time, whatever the batch size, so that all members meet the same ones


class Feed:
    """Training and held-out examples of one cohort, on the host's side."""

    def __init__(
        self,
        data: Examples,
        seed: int,
        batch_size: int,
        n_steps: int,
        resident_bytes: int = RESIDENT_BYTES,
        put: Put = jax.device_put,
    ) -> None:
        check(data, batch_size)
        self.data, self.seed, self.batch_size, self._put = data, seed, batch_size, put
        self.steps = block_steps(data.d_in, batch_size, n_steps)
        self._prefetch = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._next: tuple[int, Future[Block]] | None = None
        self._block = data.blocks(Draw(seed, batch_size, self.steps), put, resident_bytes)

    def block(self, step: int, then: int | None = None) -> Block:
        """The block from a step on; `then` is the step of the block that will be asked for next."""
        ready, self._next = self._next, None
        block = ready[1].result() if ready is not None and ready[0] == step else self._block(step)
        if then is not None:
            self._next = (then, self._prefetch.submit(self._block, then))
        return block

    def candidates(self, step: int, n: int) -> Array:
        """n random training examples that belong to a step, each once, in whole batches, [n_batches, d_in, batch].

        Rounding to whole batches adds less than a batch to n where the data has that many examples, and gives fewer
        than n where it has not.
        """
        n_batches = -(-n // self.batch_size)
        if self.data.n_train is not None:
            n_batches = min(n_batches, self.data.n_train // self.batch_size)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), CANDIDATES), step)
        examples = self.data.candidates(key, n_batches * self.batch_size)
        return self._put(jnp.asarray(examples).reshape(n_batches, self.batch_size, -1).transpose(0, 2, 1))

    def held_out(self, n_examples: int | None = None) -> Iterator[Array]:
        """The first n_examples held-out examples, or all, as x [d_in, EVAL_BATCH]; the last batch may be smaller.

        Nothing pads a batch, so no activation can mistake padding for examples.
        """
        key = jax.random.fold_in(jax.random.key(self.seed), HELD_OUT)
        for x in self.data.held_out_batches(key, n_examples, EVAL_BATCH):
            yield self._put(x.T)

    def close(self) -> None:
        """Stop prefetching."""
        self._prefetch.shutdown(wait=False, cancel_futures=True)


def check(data: Examples, batch_size: int) -> None:
    """Raises UserError where a batch needs more training examples than there are."""
    if data.n_train is not None and batch_size > data.n_train:
        raise UserError(f"batch_size: got {batch_size}, allowed: at most the {data.n_train} training examples")


def block_steps(d_in: int, batch_size: int, n_steps: int) -> int:
    """Number of steps whose batches are drawn together. The definition alone decides it, not how a run is cut."""
    return int(np.clip(min(BLOCK_BYTES // (4 * batch_size * d_in), n_steps // 20), 1, BLOCK_STEPS))

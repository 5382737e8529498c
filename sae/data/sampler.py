"""Examples drawn inside the compiled program: every batch is fresh."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sae.core.normalization import Normalization
from sae.core.types import Array, Key, UserError
from sae.data.order import TRAIN
from sae.data.source import Block, Draw, Put


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """Examples from a function of a random key.

    `sample(key, n)` is pure JAX and gives examples [n, d_in]. `mean [d_in]` is their mean, estimated once.
    `features [n_features, d_in]` are the true generating directions, unit rows, and `frequencies [n_features]` says
    how often each is active; both are None where they are not known. `labelled(key, n)` gives the examples of
    `sample(key, n)` beside how much of each feature is in each, [n, n_features], 0 where it is not active. `parents`
    [n_features] is the feature that each needs, -1 where it needs none.
    """

    d_in: int
    sample: Callable[[Key, int], Array]
    mean: np.ndarray
    n_held_out: int
    features: np.ndarray | None = None
    frequencies: np.ndarray | None = None
    labelled: Callable[[Key, int], tuple[Array, Array]] | None = None
    parents: np.ndarray | None = None
    one_by_one: bool = False  # batches of a block are drawn one after another, where each needs much memory
    image_shape: tuple[int, ...] | None = None  # (height, width) or (height, width, channels)
    parts: tuple[int, ...] | None = None  # widths of what stands side by side in an example; None for one
    normalization: Normalization | None = None  # of what the source means by a raw row
    n_train: ClassVar[None] = None  # there is no end of them

    def blocks(self, draw: Draw, put: Put, resident_bytes: int) -> Callable[[int], Block]:
        """One block for every step: the program draws its own examples."""
        block = Sampled(self.sample, draw, self.one_by_one)
        return lambda step: block

    def candidates(self, key: Key, n: int) -> Array:
        """[n, d_in] fresh examples."""
        return self.sample(key, n)

    def held_out_batches(self, key: Key, n: int | None, size: int) -> Iterator[Array]:
        """n examples, None for `n_held_out`, as [size, d_in]; the last batch may be smaller, and is drawn whole."""
        n = self.n_held_out if n is None else n
        sample = jax.jit(self.sample, static_argnums=1)
        for start in range(0, n, size):
            yield sample(jax.random.fold_in(key, start // size), size)[: n - start]

    def training_examples(self) -> np.ndarray:
        """Raises UserError: every batch is fresh."""
        raise UserError("training examples: got a Sampler, whose every batch is fresh; allowed: sae.rows(...)")

    def resident_bytes(self, most: int) -> int:
        """0: nothing is kept."""
        return 0


@struct.dataclass
class Sampled:
    """Fresh examples in every step; one block serves every step."""

    sample: Callable[[Key, int], Array] = struct.field(pytree_node=False)
    draw: Draw = struct.field(pytree_node=False)
    one_by_one: bool = struct.field(pytree_node=False, default=False)

    def batches(self, step: Array) -> Array:
        """[steps, d_in, batch] from a step on."""
        steps = step + jnp.arange(self.draw.steps)
        drawn = jax.lax.map(self.batch, steps) if self.one_by_one else jax.vmap(self.batch)(steps)
        return drawn.transpose(0, 2, 1)

    def batch(self, step: Array) -> Array:
        """[batch, d_in] of one step."""
        key = jax.random.fold_in(jax.random.key(self.draw.seed), TRAIN)
        return self.sample(jax.random.fold_in(key, step), self.draw.batch_size)


def orthonormal(rng: np.random.Generator, n: int) -> np.ndarray:
    """A random orthogonal matrix, [n, n] float32."""
    q, r = np.linalg.qr(rng.standard_normal((n, n)))
    return (q * np.sign(np.diag(r))).T.astype(np.float32)  # the signs make the matrix uniform (Mezzadri 2007)

"""What a source of data is, and what it loads.

A source is a frozen definition with one method, `load`. Its fields are all static, so members with different data
train in different programs. A new source is a file beside this one and its line in `sae/data/__init__.py`.

`load` gives `Examples`: `sae.rows(...)` for examples that exist, a `sae.Sampler` for examples drawn inside the
compiled program, or an object of a class of your own that keeps the protocol.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from sae.core.definitions import Choice
from sae.core.normalization import Normalization
from sae.core.types import Array, Key

Normalize = Literal["none", "centre", "unit-mean-norm", "mean-norm-sqrt-d", "centre-unit-mean-norm", "standardize"]

Put = Callable[[Any], Any]
"""Moves arrays from the host, or from one device, to where training wants them."""


@dataclasses.dataclass(frozen=True)
class Draw:
    """How training batches are drawn: the seed, examples in a batch, and steps in a block."""

    seed: int
    batch_size: int
    steps: int


class Block(Protocol):
    """The batches of `steps` consecutive steps: a pytree that the compiled program takes as an argument."""

    def batches(self, step: Array) -> Array:
        """[steps, d_in, batch_size], the first being that of `step`. Traced inside the compiled program."""
        ...


@runtime_checkable
class Examples(Protocol):
    """What `load` gives: all that training, evaluation and the report ask of data.

    The same seed or key must give the same examples, so that any step can be replayed. An example may be several arrays
    side by side, (input, target) for a transcoder and one for each source of a crosscoder: their widths are then in
    `parts`, a tuple whose sum is `d_in`.
    """

    @property
    def d_in(self) -> int:
        """Width of an example."""
        ...

    @property
    def mean(self) -> np.ndarray:
        """[d_in] mean of the training examples."""
        ...

    @property
    def n_train(self) -> int | None:
        """Number of training examples; None where every batch is fresh."""
        ...

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """(height, width) or (height, width, channels) where examples are pictures, else None."""
        ...

    @property
    def features(self) -> np.ndarray | None:
        """[n_features, d_in] true generating directions, unit rows; None where they are not known."""
        ...

    @property
    def frequencies(self) -> np.ndarray | None:
        """[n_features] share of examples in which each true feature is active; known where `features` are."""
        ...

    def blocks(self, draw: Draw, put: Put, resident_bytes: int) -> Callable[[int], Block]:
        """A function from a step to the block that begins there.

        One thread at a time calls it, while the device trains on the block before. Data of at most
        `resident_bytes`, as float32, may stay on the device.
        """
        ...

    def candidates(self, key: Key, n: int) -> Array | np.ndarray:
        """[n, d_in] random training examples, each once; n is at most `n_train`."""
        ...

    def held_out_batches(self, key: Key, n: int | None, size: int) -> Iterator[Array]:
        """The first n held-out examples, None for all, as [size, d_in]; the last batch may be smaller."""
        ...

    def training_examples(self) -> np.ndarray:
        """[n_train, d_in] all training examples, float32. Raises UserError where every batch is fresh."""
        ...

    def resident_bytes(self, most: int) -> int:
        """Bytes of training examples that stay on the device where at most `most` may; 0 for none."""
        ...

    @property
    def normalization(self) -> Normalization | None:
        """What made examples of raw rows; None where examples have no other units. It is kept with the weights."""
        ...


def parts_of(data: Examples) -> tuple[int, ...]:
    """The widths of what stands side by side in an example: those in `data.parts`; one where it has no such thing."""
    return tuple(getattr(data, "parts", None) or (data.d_in,))


class Source(Choice):
    """A definition of data. `normalize` is stated in every definition."""

    def load(self) -> Examples:
        """Read or prepare the data, once per run; this may take seconds. Raises UserError for unusable data."""
        raise NotImplementedError

    def fingerprint(self) -> dict[str, str] | None:
        """What tells these data from others that the same definition may name, in words and their values.

        A run keeps it and refuses to go on with other data. {} where the definition says everything. None, the default,
        takes that of what `load` gives; a source that reads files can say it sooner. Raises UserError as `load` does.
        """
        return None

"""What a source of data is: a definition with one method, `load`, that gives `Rows` or a `Sampler`.

A source is a frozen definition whose fields are all static (two members with different data train in
different programs). `load` may read files and take seconds; it is called once per run. Adding a source
is adding a file beside this one and its line in `sae/data/__init__.py`.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Literal, Protocol

import jax.numpy as jnp
import numpy as np

from sae.core.types import Array, Key, UserError

Normalize = Literal["none", "centre", "unit-mean-norm"]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Examples that exist: an array, or anything that is indexed like one (a memory map, shards).

    `train [n_train, d_in]` and `held_out [n_held_out, d_in]` hold raw values of any real dtype; an example
    is `(row - shift) * scale` in float32. `mean [d_in]` is the mean of the training *examples* (after
    normalisation). Build it with `rows`, which measures `shift`, `scale` and `mean` and checks the values.
    """

    train: np.ndarray
    held_out: np.ndarray
    shift: np.ndarray
    scale: float
    mean: np.ndarray
    image_shape: tuple[int, ...] | None = None  # (height, width) or (height, width, channels), to draw W_dec rows

    @property
    def d_in(self) -> int:
        """Width of an example."""
        return self.train.shape[1]

    @functools.cached_property
    def on_device(self) -> Array:
        """All training examples [n_train, d_in] on the device, put there once for every cohort that trains on them."""
        return jnp.asarray(self.examples(self.train[:]))

    def examples(self, rows: np.ndarray) -> np.ndarray:
        """Raw rows [n, d_in] -> normalised float32 examples [n, d_in]."""
        return (rows.astype(np.float32) - self.shift) * np.float32(self.scale)


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Examples made on the spot, inside the compiled program: every batch is fresh.

    `sample(key, n)` is pure JAX and gives examples [n, d_in]. `features [n_features, d_in]` are the true
    generating directions, unit rows; `frequencies [n_features]` says how often each is active.
    `mean [d_in]` is the mean of the examples, estimated once.
    """

    d_in: int
    sample: Callable[[Key, int], Array]
    features: np.ndarray
    frequencies: np.ndarray
    mean: np.ndarray
    n_held_out: int


class Source(Protocol):
    """The protocol. `normalize` is stated in every definition."""

    def load(self) -> Rows | Sampler:
        """Read or prepare the data. Raises UserError where it is missing or unusable."""
        ...


def rows(train, held_out, normalize: Normalize, what: str, image_shape: tuple[int, ...] | None = None) -> Rows:
    """Measure and check raw rows, once, in pieces (they may be larger than memory).

    normalize: `none` leaves rows as they are; `centre` subtracts the training mean; `unit-mean-norm`
    divides by the mean Euclidean norm of the training rows. `what` names the data in error messages.
    Raises UserError for wrong shapes, an empty split, NaN or infinite values, and data with no variance.
    """
    for split, array in (("train", train), ("held-out", held_out)):
        if len(array.shape) != 2 or 0 in array.shape:
            raise UserError(f"{what}: {split} has shape {tuple(array.shape)}; allowed: [n >= 1, d_in >= 1]")
    if train.shape[1] != held_out.shape[1]:
        raise UserError(f"{what}: train has {train.shape[1]} columns and held-out {held_out.shape[1]}; they must agree")

    n, d_in = train.shape
    total, norms = np.zeros(d_in), 0.0
    first, varies = np.asarray(train[:1]).astype(np.float32), False
    for start, piece in _pieces(train):
        _check_finite(piece, start, f"{what} (train)")
        varies = varies or bool(np.any(piece != first))
        total += piece.sum(0, dtype=np.float64)
        norms += np.linalg.norm(piece, axis=1).sum(dtype=np.float64)
    for start, piece in _pieces(held_out):
        _check_finite(piece, start, f"{what} (held-out)")
    if not varies:
        raise UserError(f"{what}: all {n} training rows are equal, so there is no variance to explain")

    mean = total / n
    shift = mean if normalize == "centre" else np.zeros(d_in)
    scale = n / norms if normalize == "unit-mean-norm" else 1.0
    return Rows(
        train=train,
        held_out=held_out,
        shift=shift.astype(np.float32),
        scale=float(scale),
        mean=((mean - shift) * scale).astype(np.float32),
        image_shape=image_shape,
    )


def _pieces(array, n_bytes: int = 2**26) -> Iterator[tuple[int, np.ndarray]]:
    """Pieces of rows in the float32 that training sees, each of at most n_bytes (or one row)."""
    size = max(1, n_bytes // (4 * array.shape[1]))
    for start in range(0, array.shape[0], size):
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf, and is reported
            yield start, np.asarray(array[start : start + size]).astype(np.float32)


def _check_finite(piece: np.ndarray, start: int, what: str) -> None:
    bad = ~np.isfinite(piece)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise UserError(
            f"{what}: {piece[row, column]} at row {start + row}, column {column} "
            f"({int(bad.sum())} non-finite values there); remove or replace them first"
        )

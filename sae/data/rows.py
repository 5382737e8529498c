"""Examples that exist: rows in memory or on disk, measured and checked once.

Rows that fit stay on the device. Others stream from the host, a block at a time. Both give the same batches for the
same seed.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Protocol, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sae.core.normalization import Normalization, split
from sae.core.text import nearest
from sae.core.types import Array, Key, UserError
from sae.data.order import batch_rows, permute
from sae.data.source import Block, Draw, Normalize, Put


class Table(Protocol):
    """What is indexed like an array [n, d_in] of real numbers: an array, a memory map, shards."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d_in)."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice | np.ndarray, /) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Joined:
    """Tables of equally many rows, side by side: [n, sum of their widths]."""

    tables: tuple[Table, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, the sum of the widths)."""
        return (len(self.tables[0]), sum(table.shape[1] for table in self.tables))

    def __len__(self) -> int:
        return len(self.tables[0])

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        found = [np.asarray(table[index]) for table in self.tables]
        if len({part.dtype for part in found}) > 1:
            found = [part.astype(np.float32) for part in found]
        return np.concatenate(found, axis=1)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Examples that are rows of a table. `rows` builds it: it measures `normalization` and `mean` and checks values.

    `train [n_train, d_in]` and `held_out [n_held_out, d_in]` hold raw values of any real dtype. An example
    is `(row - shift) * scale` in float32. `mean [d_in]` is the mean of the training *examples* (after
    normalization). `parts` are the widths of the arrays side by side in a row.
    """

    train: Table
    held_out: Table
    normalization: Normalization
    mean: np.ndarray
    norm_max_ratio: float  # the largest norm of a raw row's part, in units of the median norm of training rows
    parts: tuple[int, ...]
    image_shape: tuple[int, ...] | None = None  # (height, width) or (height, width, channels)
    features: ClassVar[None] = None  # not known
    frequencies: ClassVar[None] = None

    @property
    def d_in(self) -> int:
        """Width of an example."""
        return self.train.shape[1]

    def split(self, rows: np.ndarray) -> list[np.ndarray]:
        """Rows [..., d_in] as their parts: a transcoder's inputs and targets, a crosscoder's sources."""
        return split(rows, self.parts)

    @property
    def n_train(self) -> int:
        """Number of training rows."""
        return len(self.train)

    @functools.cached_property
    def on_device(self) -> Array:
        """All training examples [n_train, d_in] on the device, put there once for every cohort that trains on them."""
        return jnp.asarray(self.training_examples())

    def training_examples(self) -> np.ndarray:
        """[n_train, d_in] all training examples, float32."""
        return self.examples(self.train[:])

    def examples(self, rows: np.ndarray) -> np.ndarray:
        """Raw rows [n, d_in] -> normalized float32 examples [n, d_in]."""
        return self.normalization.apply(rows.astype(np.float32))

    @functools.cached_property
    def fingerprint(self) -> dict[str, str]:
        """What tells these rows from others (see `table_fingerprint`)."""
        return table_fingerprint(self.train, "training") | table_fingerprint(self.held_out, "held-out")

    def resident_bytes(self, most: int) -> int:
        """Bytes of all training examples as float32, or 0 where that is above `most`."""
        n_bytes = 4 * self.n_train * self.d_in
        return n_bytes if n_bytes <= most else 0

    def blocks(self, draw: Draw, put: Put, resident_bytes: int) -> Callable[[int], Block]:
        """One block for every step where all rows stay on the device; else each is gathered on the host."""
        if self.resident_bytes(resident_bytes):
            block = Resident(put(self.on_device), draw)
            return lambda step: block
        return lambda step: Streamed(put(self._gather(draw, step)))

    def candidates(self, key: Key, n: int) -> np.ndarray:
        """[n, d_in] random training examples, each once."""
        return self._pick(self.train, np.asarray(_permuted(key, jnp.arange(n, dtype=jnp.uint32), n=self.n_train)))

    def held_out_batches(self, key: Key, n: int | None, size: int) -> Iterator[Array]:
        """The first n held-out rows, None for all, as examples [size, d_in]; the last batch may be smaller."""
        n = len(self.held_out) if n is None else min(n, len(self.held_out))
        for start in range(0, n, size):
            yield jnp.asarray(self._pick(self.held_out, np.arange(start, min(start + size, n))))

    def _gather(self, draw: Draw, step: int) -> np.ndarray:
        with jax.default_device(jax.devices("cpu")[0]):
            places = np.asarray(_rows_of_block(step, draw=draw, n=self.n_train))
        return self._pick(self.train, places.reshape(-1)).reshape(*places.shape, -1)

    def _pick(self, table: Table, places: np.ndarray) -> np.ndarray:
        # Reading is the cost, so each row is read once, in the order on disk.
        unique, inverse = np.unique(places, return_inverse=True)
        return self.examples(np.asarray(table[unique]))[inverse]


@struct.dataclass
class Resident:
    """All training examples on the device, [n_train, d_in] float32; one block serves every step."""

    examples: Array
    draw: Draw = struct.field(pytree_node=False)

    def batches(self, step: Array) -> Array:
        """[steps, d_in, batch] from a step on."""
        places = _places(step, self.draw, self.examples.shape[0])
        return self.examples[places].transpose(0, 2, 1)


@struct.dataclass
class Streamed:
    """One block that the host has gathered, [steps, batch, d_in] float32."""

    block: Array

    def batches(self, step: Array) -> Array:
        """[steps, d_in, batch]: this block, whatever the step."""
        return self.block.transpose(0, 2, 1)


def _places(step: Array | int, draw: Draw, n: int) -> Array:
    """Which of n rows make up each batch of a block, [steps, batch]."""
    return jax.vmap(lambda s: batch_rows(draw.seed, s, draw.batch_size, n))(step + jnp.arange(draw.steps))


_permuted = jax.jit(permute, static_argnames="n")  # outside a program its loop would be compiled anew at every call
_rows_of_block = jax.jit(_places, static_argnames=("draw", "n"))


def rows(
    train: Table | Sequence[Table],
    held_out: Table | Sequence[Table],
    normalize: Normalize,
    what: str,
    image_shape: tuple[int, ...] | None = None,
    max_norm: float | None = None,
) -> Rows:
    """Measure and check raw rows, once, in pieces (they may be larger than memory).

    `train [n_train, d_in]` and `held_out [n_held_out, d_in]` are arrays or are indexed like arrays. Or each is several,
    (input, target) for a transcoder and one for each source of a crosscoder: row i of them belongs together, and each
    is normalized on its own. `what` names the data in error messages. `normalize` says what is done to every row; the
    numbers come from the training rows:

    - `none`: nothing;
    - `centre`: their mean is subtracted;
    - `unit-mean-norm`: rows are divided by the mean of their Euclidean norms;
    - `mean-norm-sqrt-d`: rows are scaled to a mean norm of √d_in, as Anthropic and SAELens do;
    - `centre-unit-mean-norm`: their mean is subtracted, then rows are divided by the mean norm of what is left;
    - `standardize`: their mean is subtracted, and each dimension is divided by its standard deviation. A dimension that
      is constant is only centred.

    `max_norm` leaves out the rows, of both splits, whose norm exceeds that multiple of the median norm of the training
    rows (of those that are not all 0), such as attention sinks; None keeps all rows. Of several arrays, one is enough.

    Raises UserError for an unknown `normalize`, wrong shapes, an empty split, NaN or infinite values, and data with no
    variance.
    """
    if normalize not in (allowed := get_args(Normalize)):
        raise UserError(f"{what}: normalize: got {normalize!r}; {nearest(str(normalize), allowed)}")
    many = [table for table in (train, held_out) if isinstance(table, Sequence)]
    if many and image_shape is not None:
        raise UserError(f"{what}: image_shape: got {image_shape}, allowed: None for several arrays")
    train, held_out, parts = _joined(train, held_out, what)
    if max_norm is not None:
        train, held_out = _without_outliers(train, held_out, parts, max_norm, what)

    n, d_in = train.shape
    total, norms, largest = np.zeros(d_in), np.zeros(len(parts)), np.zeros(len(parts))
    some: list[list[np.ndarray]] = [[] for _ in parts]
    first, varies = np.asarray(train[:1]).astype(np.float32), np.zeros(d_in, bool)
    for start, piece in _pieces(train):
        _check_finite(piece, start, parts, f"{what} (train)")
        varies |= np.any(piece != first, axis=0)
        total += piece.sum(0, dtype=np.float64)
        for i, sizes in enumerate(_norms(piece, parts)):
            norms[i] += sizes.sum(dtype=np.float64)
            some[i].append(_some(sizes, start, train))
            largest[i] = max(largest[i], sizes.max())
    for start, piece in _pieces(held_out):
        _check_finite(piece, start, parts, f"{what} (held-out)")
        largest = np.maximum(largest, [sizes.max() for sizes in _norms(piece, parts)])
    for i, varied in enumerate(split(varies, parts), 1):
        if not varied.any():
            which = f" of array {i}" if len(parts) > 1 else ""
            raise UserError(f"{what}: all {n} training rows{which} are equal, so there is no variance to explain")

    mean, shift, scale = total / n, np.zeros(d_in), np.ones(d_in)
    if normalize in ("centre", "centre-unit-mean-norm", "standardize"):
        shift = mean
    if normalize in ("unit-mean-norm", "mean-norm-sqrt-d"):
        wanted = np.ones(len(parts)) if normalize == "unit-mean-norm" else np.sqrt(parts)
        scale *= np.repeat(wanted * n / norms, parts)
    elif normalize in ("centre-unit-mean-norm", "standardize"):  # deviations, in a second pass: data may be far from 0
        squares, norms = np.zeros(d_in), np.zeros(len(parts))
        for _, piece in _pieces(train):
            deviation = piece - mean
            squares += np.square(deviation).sum(0)
            norms += [sizes.sum() for sizes in _norms(deviation, parts)]
        deviation = np.sqrt(squares / n)
        constant = deviation <= 1e-6 * np.abs(mean)  # what float32 can tell from a constant
        unit = 1 / np.where(constant, 1, deviation)
        scale = np.where(constant, 1, unit) if normalize == "standardize" else np.repeat(n / norms, parts)
    medians = [_median(np.concatenate(norms_of_part)) for norms_of_part in some]
    return Rows(
        train=train,
        held_out=held_out,
        normalization=Normalization(shift.astype(np.float32), scale.astype(np.float32)),
        mean=((mean - shift) * scale.astype(np.float32)).astype(np.float32),
        norm_max_ratio=float(np.max(largest / medians)),
        parts=parts,
        image_shape=image_shape,
    )


def _joined(
    train: Table | Sequence[Table], held_out: Table | Sequence[Table], what: str
) -> tuple[Table, Table, tuple[int, ...]]:
    """Training and held-out rows as one table each, and the widths of what stands side by side. Raises UserError."""
    found = {"train": train, "held-out": held_out}
    tables = {name: tuple(one) if isinstance(one, Sequence) else (one,) for name, one in found.items()}
    for name, several in tables.items():
        for table in several:
            if len(table.shape) != 2 or 0 in table.shape:
                raise UserError(f"{what}: {name} has shape {tuple(table.shape)}; allowed: [n >= 1, d_in >= 1]")
        if len({len(table) for table in several}) != 1:
            got = " and ".join(f"{len(table):,}" for table in several) or "no"
            raise UserError(f"{what}: {name}: got {got} rows, allowed: equally many, as row i is one example")
    parts, others = ([table.shape[1] for table in several] for several in tables.values())
    if parts != others:
        columns, theirs = (" + ".join(map(str, widths)) for widths in (parts, others))
        raise UserError(f"{what}: train has {columns} columns and held-out {theirs}; they must agree")
    one = lambda several: several[0] if len(several) == 1 else Joined(several)
    return one(tables["train"]), one(tables["held-out"]), tuple(parts)


def _norms(piece: np.ndarray, parts: Sequence[int]) -> list[np.ndarray]:
    """Norms of every part of some rows, [n] each."""
    return [np.linalg.norm(part, axis=1) for part in split(piece, parts)]


def table_fingerprint(table: Table, what: str, n_rows: int = 256, of: str = "") -> dict[str, str]:
    """What tells a table from another: its shape, its dtype and the hash of a fixed sample of rows, first and last too.

    Only these rows are read, so it is cheap for large files; a change in other rows alone is not seen. `of` says in
    the names which of several tables it is.
    """
    places = np.unique(np.linspace(0, len(table) - 1, n_rows).astype(np.int64))
    some = np.ascontiguousarray(table[places])
    digest = hashlib.sha256(some.tobytes()).hexdigest()[:16]
    shape = " x ".join(map(str, table.shape))
    return {f"{what} rows{of}": f"{shape} {some.dtype}", f"sample of {what} rows{of}": digest}


@dataclasses.dataclass(frozen=True)
class _Kept:
    """Some rows of a table, [len(places), d_in]."""

    table: Table
    places: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.places), self.table.shape[1])

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        return self.table[self.places[index]]


def _without_outliers(
    train: Table, held_out: Table, parts: Sequence[int], max_norm: float, what: str
) -> tuple[Table, Table]:
    pieces = [[_some(sizes, start, train) for sizes in _norms(piece, parts)] for start, piece in _pieces(train)]
    most = [max_norm * _median(np.concatenate(norms)) for norms in zip(*pieces, strict=True)]
    too_long = lambda piece: np.any([a > b for a, b in zip(_norms(piece, parts), most, strict=True)], axis=0)
    kept = []
    for name, table in (("train", train), ("held-out", held_out)):
        # what is not finite is kept, to be reported
        inside = np.concatenate([~too_long(piece) for _, piece in _pieces(table)])
        if not inside.any():
            raise UserError(f"{what}: max_norm = {max_norm:g} leaves no {name} row; allowed: a larger one, or None")
        kept.append(table if inside.all() else _Kept(table, np.flatnonzero(inside)))
    return kept[0], kept[1]


def _median(norms: np.ndarray) -> float:
    """The median of norms that are not 0: rows of zeros are padding."""
    return float(np.median(norms[norms > 0])) if np.any(norms > 0) else 1.0


def _some(norms: np.ndarray, start: int, table: Table, most: int = 2**20) -> np.ndarray:
    """At most so many of a table's norms, evenly spaced, those of a piece: enough for a median."""
    step = -(-len(table) // most)
    return norms[-start % step :: step]


def _pieces(table: Table, n_bytes: int = 2**26) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, float32 rows) over a table, in pieces of at most n_bytes, or of one row."""
    size = max(1, n_bytes // (4 * table.shape[1]))
    for start in range(0, len(table), size):
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf, and is reported
            yield start, np.asarray(table[start : start + size]).astype(np.float32)


def _check_finite(piece: np.ndarray, start: int, parts: Sequence[int], what: str) -> None:
    bad = ~np.isfinite(piece)
    if bad.any():
        row, column = map(int, np.argwhere(bad)[0])
        array = int(np.searchsorted(np.cumsum(parts), column, side="right"))
        place = f"column {column - sum(parts[:array])}" + (f" of array {array + 1}" if len(parts) > 1 else "")
        raise UserError(
            f"{what}: {piece[row, column]} at row {start + row}, {place} "
            f"({int(bad.sum())} non-finite values there); remove or replace them first"
        )

"""Arrays of your own, memory-mapped: .npy, .npz or .safetensors files, or a folder of .npy shards."""

import functools
import json
import math
import os
import re
import zipfile
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np

from sae.core.files import expanded
from sae.core.text import nearest
from sae.core.types import UserError, definition, static
from sae.data.rows import Rows, rows, table_fingerprint
from sae.data.source import Normalize, Source

SUFFIXES = (".npy", ".npz", ".safetensors")
SAFETENSORS_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


@definition
class Arrays(Source):
    """Rows of your own, such as a model's activations: an array [..., d_in] of real numbers.

    Leading axes are flattened to rows, so activations [text, position, d_in] give text · position examples. Files
    are memory-mapped and may be larger than memory, except .npz, which is read whole. The .npy files of a folder are
    shards, joined in the order of their names; numbers in names count as numbers (9 before 10).
    """

    path: str = static()
    """A .npy, .npz or .safetensors file, or a folder of .npy shards."""
    key: str | None = static(None)
    """Name of the array in an .npz or .safetensors file; None where the file holds only one."""
    held_out_path: str | None = static(None)
    """File or folder of held-out rows, in the same forms; None to hold out the last rows of `path`."""
    held_out_fraction: float = static(0.1, min=0, max=1)
    """Share of `path` that is held out: the last rows, in one piece, so that neighbours in a text do not leak."""
    normalize: Normalize = static("centre")
    """What is done to rows: none, centre, unit-mean-norm, centre-unit-mean-norm or standardize (see `sae.rows`)."""

    max_norm: float | None = static(None, min=1)
    """Leave out rows whose norm exceeds this multiple of the median norm, such as attention sinks; None for none."""

    def load(self) -> Rows:
        """Map the files and measure their rows in one pass. Raises UserError for a file that cannot be mapped."""
        train, held_out = self._tables()
        return rows(train, held_out, self.normalize, f"Arrays {self.path}", max_norm=self.max_norm)

    def fingerprint(self) -> dict[str, str]:
        """Shapes, dtypes and the hash of a fixed sample of rows."""
        train, held_out = self._tables()
        return table_fingerprint(train, "training") | table_fingerprint(held_out, "held-out")

    def _tables(self) -> "tuple[np.ndarray | Shards, np.ndarray | Shards]":
        """Raw training and held-out rows."""
        train = _open(self.path, self.key)
        if self.held_out_path is not None:
            if expanded(self.held_out_path).resolve() == expanded(self.path).resolve():
                raise UserError(
                    f"{self.path}: held_out_path is the same as path; leave it out to hold out the last rows"
                )
            return train, _open(self.held_out_path, self.key)
        n = len(train)
        n_train = n - max(1, round(n * self.held_out_fraction))
        if n_train < 1:
            raise UserError(
                f"{self.path}: none of its {n} rows are left to train on with held_out_fraction = "
                f"{self.held_out_fraction:g}; give more rows, a smaller fraction or held_out_path"
            )
        return _part(train, 0, n_train), _part(train, n_train, n)


class Shards:
    """Arrays [n_i, d_in] of one dtype, joined and read like one array [n, d_in].

    `shards[rows]` with a slice or integer indices [m] reads those rows, in the order asked for. Nothing is read before.
    """

    def __init__(self, paths: list[Path]) -> None:
        # A map holds a file descriptor, and a process often has only 1,024; reopening a map costs 0.1 ms.
        self._map = functools.lru_cache(maxsize=256)(_map_npy)
        self.paths, lengths = paths, []
        for path in paths:
            shard = self._map(path)
            if path == paths[0]:
                d_in, self.dtype = shard.shape[1], shard.dtype
            elif (shard.shape[1], shard.dtype) != (d_in, self.dtype):
                raise UserError(
                    f"{path}: {shard.dtype} with {shard.shape[1]} columns, where {paths[0].name} is {self.dtype} with "
                    f"{d_in}; all shards of a folder must agree"
                )
            lengths.append(shard.shape[0])
        self._ends = np.cumsum(lengths)
        self._start, self.shape = 0, (int(self._ends[-1]), d_in)

    def __len__(self) -> int:
        return self.shape[0]

    def part(self, start: int, stop: int) -> "Shards":
        """Rows start..stop-1 as shards, without reading them."""
        part = object.__new__(Shards)
        part.__dict__.update(self.__dict__, _start=self._start + start, shape=(stop - start, self.shape[1]))
        return part

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        rows = np.arange(*index.indices(len(self))) if isinstance(index, slice) else np.asarray(index)
        if rows.ndim != 1 or rows.dtype.kind not in "iu":
            raise TypeError(f"shards are indexed by a slice or integers [m], got {rows.dtype} {list(rows.shape)}")
        if rows.size and not -len(self) <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"row {rows.min()} or {rows.max()} is outside 0..{len(self) - 1}")
        rows = np.where(rows < 0, rows + len(self), rows) + self._start
        order = np.argsort(rows, kind="stable")  # the order on disk
        cuts = np.searchsorted(rows[order], self._ends)
        out = np.empty((len(rows), self.shape[1]), self.dtype)
        for path, end, start, stop in zip(self.paths, self._ends, [0, *cuts], cuts, strict=False):
            if start < stop:
                shard, inside = self._map(path), order[start:stop]
                out[inside] = shard[rows[inside] - (end - len(shard))]
        return out


def _part(table: np.ndarray | Shards, start: int, stop: int) -> np.ndarray | Shards:
    return table.part(start, stop) if isinstance(table, Shards) else table[start:stop]


def _open(name: str, key: str | None) -> np.ndarray | Shards:
    """The table [n, d_in] at a path, not yet read (but for .npz)."""
    path = expanded(name)
    if not path.exists():
        names = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        where = f"in {path.parent}, {nearest(path.name, names[:20])}" if names else f"nothing is in {path.parent}"
        raise UserError(f"{name}: no such file or folder; {where}")
    kind = "folder" if path.is_dir() else path.suffix
    if kind not in ("folder", *SUFFIXES):
        raise UserError(f"{name}: got {kind or 'no suffix'}, allowed: {', '.join(SUFFIXES)} or a folder of .npy shards")
    if key is not None and kind in ("folder", ".npy"):
        raise UserError(f"{name}: key: got {key!r}, but only .npz and .safetensors hold named arrays; leave it out")
    if kind == ".npy":
        return _map_npy(path)
    if kind == ".npz":
        return _read_npz(path, key)
    if kind == ".safetensors":
        return _map_safetensors(path, key)
    shards = sorted(path.glob("*.npy"), key=_natural)
    if not shards:
        raise UserError(f"{name}: a folder without .npy files; allowed: a folder of .npy shards")
    return Shards(shards)


def _natural(path: Path) -> list:
    """A sorting key that puts shard_9 before shard_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _map_npy(path: Path) -> np.ndarray:
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # refuses pickles
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: not a whole .npy file of numbers ({_brief(error)}); write it with np.save") from None
    return _as_rows(array, str(path))


def _read_npz(path: Path, key: str | None) -> np.ndarray:
    try:
        with np.lib.npyio.NpzFile(open(path, "rb"), own_fid=True, allow_pickle=False) as arrays:
            key = _choose(path, key, arrays.files)
            array = arrays[key]
    except (ValueError, EOFError, OSError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a whole .npz file of numbers ({_brief(error)}); write it with np.savez") from None
    return _as_rows(array, f"{path}: {key}")


def _map_safetensors(path: Path, key: str | None) -> np.ndarray:
    """Map one tensor. A file holds the uint64 length of a JSON header, the header, then the bytes of all tensors.

    The safetensors library reads whole tensors or slices, but training gathers rows.
    """
    size = os.path.getsize(path)
    try:
        with open(path, "rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            if start > min(size, 10**8):  # the limit that the format sets
                raise ValueError(f"a header of {start - 8} bytes in a file of {size}")
            header = json.loads(file.read(start - 8))
        key = _choose(path, key, [name for name in header if name != "__metadata__"])
        tensor = header[key]
        shape, (begin, end) = tuple(tensor["shape"]), tensor["data_offsets"]
        if tensor["dtype"] not in SAFETENSORS_DTYPES:
            raise UserError(f"{path}: {key} is {tensor['dtype']}; allowed: {', '.join(SAFETENSORS_DTYPES)}")
        dtype = np.dtype(SAFETENSORS_DTYPES[tensor["dtype"]])
        n_bytes = math.prod(shape) * dtype.itemsize
        if min((0, *shape)) < 0 or not 0 <= begin <= begin + n_bytes == end <= size - start:
            raise ValueError(f"{key} {list(shape)} at bytes {begin}..{end} of {size - start}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a whole .safetensors file ({_brief(error)}); write or copy it again") from None
    if n_bytes == 0:  # nothing to map
        return _as_rows(np.empty(shape, dtype), f"{path}: {key}")
    return _as_rows(np.memmap(path, dtype, mode="r", offset=start + begin, shape=shape), f"{path}: {key}")


def _choose(path: Path, key: str | None, keys: list[str]) -> str:
    if key is None and len(keys) == 1:
        return keys[0]
    if key is None:
        raise UserError(f"{path}: holds {len(keys)} arrays; set key to one of: {', '.join(keys)}")
    if key not in keys:
        raise UserError(f"{path}: key: got {key!r}; {nearest(key, keys)}")
    return key


def _as_rows(array: np.ndarray, what: str) -> np.ndarray:
    """An array [..., d_in] as rows [n, d_in], still mapped."""
    if array.dtype.kind not in "biuf" and array.dtype != ml_dtypes.bfloat16:
        fix = "; bfloat16 needs .safetensors, since .npy does not keep it" if array.dtype.kind == "V" else ""
        raise UserError(f"{what}: dtype {array.dtype}, allowed: real numbers (float16/32/64, integers){fix}")
    if array.ndim < 2 or 0 in array.shape:
        raise UserError(f"{what}: shape {list(array.shape)}, allowed: [..., n >= 1, d_in >= 1]; reshape it first")
    if array.ndim > 2 and not array.flags.c_contiguous:  # a reshape would copy the array into memory
        raise UserError(f"{what}: {array.ndim} axes in Fortran order; save it after np.ascontiguousarray")
    return array.reshape(-1, array.shape[-1])


def _brief(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]

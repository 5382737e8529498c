"""Files of arrays, opened as rows [n, d_in]: .npy, .npz, .safetensors and .pt files, and folders of such shards.

All but .npz are memory-mapped: nothing is read before it is asked for. No pickle is read, but
for the tensors of a .pt file, which torch reads without running code (`weights_only`).
"""

import errno
import importlib
import json
import math
import os
import re
import resource
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import psutil

from sae.core.files import Written, located
from sae.core.text import nearest
from sae.core.types import UserError

SAFETENSORS_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
MOST_MAPS = 4_096  # of shards that are kept; the system, too, has a limit of its own


class Shards:
    """Arrays [n_i, d_in] of one dtype in files of one kind, joined and read like one array [n, d_in].

    `shards[rows]` with a slice or integer indices [m] reads those rows, in the order asked for. Nothing is read before.
    """

    def __init__(self, paths: list[Path], key: str | None = None) -> None:
        # A map holds a file open. Half of the files that a process may open are left for all else, and shards beyond
        # the other half are mapped again each time, which costs 0.1 ms.
        self._most = max(0, min(_limit() // 2, MOST_MAPS) - psutil.Process().num_fds())
        self._maps: dict[Path, np.ndarray] = {}
        self.paths, self.key, lengths = paths, key, []
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

    def _map(self, path: Path) -> np.ndarray:
        shard = self._maps.get(path)
        if shard is None:
            shard = open_file(path, self.key)
            if len(self._maps) < self._most:
                self._maps[path] = shard
        return shard

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


def existing(name: str | Path) -> Path:
    """Where a path leads. Raises UserError where nothing is there."""
    path = located(name) if isinstance(name, str) else name
    if not path.exists():
        folders = dict.fromkeys([*([name.folder / path.parent] if isinstance(name, Written) else []), path.parent])
        names = sorted(p.name for folder in folders if folder.is_dir() for p in folder.iterdir())
        there = " and ".join(map(str, folders))
        where = f"in {there}, {nearest(path.name, names[:20])}" if names else f"nothing is in {there}"
        raise UserError(f"{name}: no such file or folder; {where}")
    return path


def open_table(path: Path, key: str | None) -> np.ndarray | Shards:
    """The rows [n, d_in] of a file or a folder of shards, not yet read (but for .npz). Raises UserError."""
    if not path.is_dir():
        return open_file(path, key)
    shards = sorted((file for file in path.iterdir() if file.suffix in SHARDS and file.is_file()), key=_natural)
    kinds = sorted({file.suffix for file in shards})
    if not shards:
        raise UserError(f"{path}: a folder without {', '.join(SHARDS)} files; allowed: a folder of such shards")
    if len(kinds) > 1:
        raise UserError(f"{path}: a folder of {' and '.join(kinds)} files; allowed: shards of one kind")
    if key is not None and kinds == [".npy"]:
        raise _no_key(path, key)
    return Shards(shards, key)


def open_file(path: Path, key: str | None) -> np.ndarray:
    """The rows [n, d_in] of a file, not yet read (but for .npz). Raises UserError."""
    if path.suffix not in OPENED:
        kinds = f"{', '.join(OPENED)} or a folder of shards"
        raise UserError(f"{path}: got {path.suffix or 'no suffix'}, allowed: {kinds}")
    try:
        array, what = OPENED[path.suffix](path, key)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise UserError(f"{path}: {error.strerror or error}") from None
        raise UserError(
            f"{path}: this process may have {_limit()} files open, and has; raise the limit first: "
            f"ulimit -n {4 * _limit()}"
        ) from None
    return _as_rows(array, what)


def _limit() -> int:
    """How many files this process may have open."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


def _natural(path: Path) -> list:
    """A sorting key that puts shard_9 before shard_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _map_npy(path: Path, key: str | None) -> tuple[np.ndarray, str]:
    if key is not None:
        raise _no_key(path, key)
    try:
        return np.lib.format.open_memmap(path, mode="r"), str(path)  # refuses pickles
    except (ValueError, EOFError) as error:
        raise UserError(f"{path}: not a whole .npy file of numbers ({_brief(error)}); write it with np.save") from None


def _read_npz(path: Path, key: str | None) -> tuple[np.ndarray, str]:
    with open(path, "rb") as file:
        try:
            with np.lib.npyio.NpzFile(file, allow_pickle=False) as arrays:
                key = _choose(path, key, arrays.files)
                return arrays[key], f"{path}: {key}"
        except (ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            fix = "write it with np.savez"
            raise UserError(f"{path}: not a whole .npz file of numbers ({_brief(error)}); {fix}") from None


def _map_safetensors(path: Path, key: str | None) -> tuple[np.ndarray, str]:
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
        return np.empty(shape, dtype), f"{path}: {key}"
    return np.memmap(path, dtype, mode="r", offset=start + begin, shape=shape), f"{path}: {key}"


def _map_pt(path: Path, key: str | None) -> tuple[np.ndarray, str]:
    """Map one tensor of a file that torch.save wrote: a tensor, or tensors by name."""
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        raise UserError(f"{path}: .pt files need PyTorch; pip install -e '.[torch]', or save as .safetensors") from None
    try:
        saved: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError:
        raise
    except Exception as error:  # torch's own, pickle's, zipfile's
        fix = "write a tensor, or tensors by name, with torch.save"
        raise UserError(f"{path}: not a whole .pt file of tensors ({_brief(error)}); {fix}") from None
    if isinstance(saved, dict):
        key = _choose(path, key, [str(name) for name, value in saved.items() if isinstance(value, torch.Tensor)])
        saved = {str(name): value for name, value in saved.items()}[key]
    elif key is not None:
        raise _no_key(path, key)
    if not isinstance(saved, torch.Tensor) or saved.layout != torch.strided or saved.is_quantized:
        raise UserError(f"{path}: holds {type(saved).__name__}; allowed: a dense tensor, or such tensors by name")
    tensor = saved.detach()
    if tensor.dtype == torch.bfloat16:  # numpy's own types lack it
        array = tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    else:
        try:
            array = tensor.numpy()
        except TypeError:  # float8 and the like
            raise UserError(f"{path}: {tensor.dtype}, allowed: real numbers (float16/32/64, bfloat16)") from None
    return array, f"{path}: {key}" if key else str(path)


Opened = Callable[[Path, str | None], tuple[np.ndarray, str]]
OPENED: dict[str, Opened] = {
    ".npy": _map_npy, ".npz": _read_npz, ".safetensors": _map_safetensors, ".pt": _map_pt
}  # fmt: skip
SHARDS = (".npy", ".safetensors", ".pt")


def _no_key(path: Path, key: str) -> UserError:
    return UserError(f"{path}: key: got {key!r}, but there are no names in it; leave key out")


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
    return (str(error) or type(error).__name__).splitlines()[0][:120]

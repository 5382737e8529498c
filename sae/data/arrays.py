"""Arrays of your own, memory-mapped: .npy, .npz, .safetensors or .pt files, or a folder of shards."""

from typing import Any

import numpy as np

from sae.core.files import located
from sae.core.types import UserError, definition, static
from sae.data.formats import Shards, existing, open_table
from sae.data.harvested import CARD
from sae.data.rows import Rows, rows, table_fingerprint
from sae.data.source import Normalize, Source


@definition
class Arrays(Source):
    """Rows of your own, such as a model's activations: an array [..., d_in] of real numbers.

    Leading axes are flattened to rows, so activations [text, position, d_in] give text · position examples. Files
    are memory-mapped and may be larger than memory, except .npz, which is read whole. The .npy, .safetensors or .pt
    files of a folder are shards, joined in the order of their names; numbers in names count as numbers (9 before 10).
    """

    path: str | tuple[str, ...] = static(path=True)
    """A .npy, .npz, .safetensors or .pt file, or a folder of shards. A relative path in a definition file is looked for
    beside that file first, then from the working directory. Several hold a transcoder's inputs and its targets, or each
    a source of a crosscoder: row i of all of them is one example."""
    key: str | tuple[str, ...] | None = static(None)
    """Name of the array in an .npz, .safetensors or .pt file; None where the file holds only one. Several are those of
    several paths, or all in one file."""
    held_out_path: str | tuple[str, ...] | None = static(None, path=True)
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
        what = f"Arrays {' and '.join(dict.fromkeys(_several(self.path)))}"
        one = lambda tables: tables if len(tables) > 1 else tables[0]
        return rows(one(train), one(held_out), self.normalize, what, max_norm=self.max_norm)

    def fingerprint(self) -> dict[str, str]:
        """Shapes, dtypes and the hash of a fixed sample of rows, of every file."""
        names = [f" of array {i}" for i in range(2, len(self._paths(self.path)) + 1)]
        found = {}
        for train, held_out, name in zip(*self._tables(), ["", *names], strict=True):
            found |= table_fingerprint(train, "training", of=name) | table_fingerprint(held_out, "held-out", of=name)
        return found

    def check(self, experiment: Any) -> str | None:
        """As many keys and held-out paths as paths."""
        n = len(self._paths(self.path))
        for name, value in (("key", self.key), ("held_out_path", self.held_out_path)):
            if value is not None and not (name == "key" and isinstance(value, str)) and len(_several(value)) != n:
                return f"{name}: got {len(_several(value))}, allowed: as many as arrays, {n}"
        return None if n else "path: got none, allowed: one or more"

    def _paths(self, path: str | tuple[str, ...]) -> tuple[str, ...]:
        """A path for every array."""
        paths, keys = _several(path), self.key
        return paths * len(keys) if isinstance(keys, tuple) and len(paths) == 1 else paths

    def _tables(self) -> "tuple[list[np.ndarray | Shards], list[np.ndarray | Shards]]":
        """Raw training and held-out rows of every array."""
        paths = self._paths(self.path)
        keys = self.key if isinstance(self.key, tuple) else (self.key,) * len(paths)
        tables = [_open(path, key) for path, key in zip(paths, keys, strict=True)]
        if self.held_out_path is not None:
            others = self._paths(self.held_out_path)
            for path, other in zip(paths, others, strict=True):
                if located(other).resolve() == located(path).resolve():
                    raise UserError(
                        f"{path}: held_out_path is the same as path; leave it out to hold out the last rows"
                    )
            return tables, [_open(path, key) for path, key in zip(others, keys, strict=True)]
        n = len(tables[0])
        if len({len(table) for table in tables}) > 1:
            got = " and ".join(f"{path} {len(table):,}" for path, table in zip(paths, tables, strict=True))
            raise UserError(f"data.path: rows: got {got}, allowed: equally many, as row i of all is one example")
        n_train = n - max(1, round(n * self.held_out_fraction))
        if n_train < 1:
            raise UserError(
                f"{paths[0]}: none of its {n} rows are left to train on with held_out_fraction = "
                f"{self.held_out_fraction:g}; give more rows, a smaller fraction or held_out_path"
            )
        return [_part(table, 0, n_train) for table in tables], [_part(table, n_train, n) for table in tables]


def _several(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value


def _part(table: np.ndarray | Shards, start: int, stop: int) -> np.ndarray | Shards:
    return table.part(start, stop) if isinstance(table, Shards) else table[start:stop]


def _open(name: str, key: str | None) -> np.ndarray | Shards:
    """The table [n, d_in] at a path, not yet read (but for .npz)."""
    path = existing(name)
    if (path / CARD).is_file():
        raise UserError(f"{name}: the folder of a harvest, allowed: Activations(path={str(name)!r})")
    return open_table(path, key)

"""Arrays of your own, memory-mapped: .npy, .npz, .safetensors or .pt files, or a folder of shards."""

import numpy as np

from sae.core.files import Written, located
from sae.core.text import nearest
from sae.core.types import UserError, definition, static
from sae.data.formats import Shards, open_table
from sae.data.rows import Rows, rows, table_fingerprint
from sae.data.source import Normalize, Source


@definition
class Arrays(Source):
    """Rows of your own, such as a model's activations: an array [..., d_in] of real numbers.

    Leading axes are flattened to rows, so activations [text, position, d_in] give text · position examples. Files
    are memory-mapped and may be larger than memory, except .npz, which is read whole. The .npy, .safetensors or .pt
    files of a folder are shards, joined in the order of their names; numbers in names count as numbers (9 before 10).
    """

    path: str = static(path=True)
    """A .npy, .npz, .safetensors or .pt file, or a folder of shards. A relative path in a definition file is looked for
    beside that file first, then from the working directory."""
    key: str | None = static(None)
    """Name of the array in an .npz, .safetensors or .pt file; None where the file holds only one."""
    held_out_path: str | None = static(None, path=True)
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
            if located(self.held_out_path).resolve() == located(self.path).resolve():
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


def _part(table: np.ndarray | Shards, start: int, stop: int) -> np.ndarray | Shards:
    return table.part(start, stop) if isinstance(table, Shards) else table[start:stop]


def _open(name: str, key: str | None) -> np.ndarray | Shards:
    """The table [n, d_in] at a path, not yet read (but for .npz)."""
    path = located(name)
    if not path.exists():
        folders = dict.fromkeys([*([name.folder / path.parent] if isinstance(name, Written) else []), path.parent])
        names = sorted(p.name for folder in folders if folder.is_dir() for p in folder.iterdir())
        there = " and ".join(map(str, folders))
        where = f"in {there}, {nearest(path.name, names[:20])}" if names else f"nothing is in {there}"
        raise UserError(f"{name}: no such file or folder; {where}")
    return open_table(path, key)

"""What a source does to its rows before anything trains on them, kept with the weights so that it can be undone."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import struct

from sae.core.types import Array


@struct.dataclass
class Normalization:
    """`example = (row - shift) * scale`, per dimension: raw rows of a source to the examples that a Sae is trained on.

    `shift` and `scale` are [d_in] float32; no entry of `scale` is 0.
    """

    shift: Array | np.ndarray
    scale: Array | np.ndarray

    @classmethod
    def none(cls, d_in: int) -> "Normalization":
        """Rows stay as they are."""
        return cls(np.zeros(d_in, np.float32), np.ones(d_in, np.float32))

    def part(self, start: int, stop: int) -> "Normalization":
        """That of some columns, start to stop."""
        if (start, stop) == (0, self.shift.shape[-1]):
            return self
        return Normalization(self.shift[..., start:stop], self.scale[..., start:stop])

    def apply(self, rows: Any) -> Any:
        """Raw rows [..., d_in], float32 -> examples [..., d_in]."""
        return (rows - self.shift) * self.scale

    def undo(self, examples: Any) -> Any:
        """Examples [..., d_in] -> raw rows [..., d_in]: `apply`, undone."""
        return examples / self.scale + self.shift


def split(rows: Any, parts: Sequence[int]) -> list[Any]:
    """Rows [..., sum of parts] as their parts, [..., part] each."""
    if len(parts) == 1:
        return [rows]
    return [rows[..., a:b] for a, b in itertools.pairwise(itertools.accumulate(parts, initial=0))]

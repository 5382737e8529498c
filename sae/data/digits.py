"""scikit-learn's 8x8 handwritten digits, few enough to look at every one."""

import importlib.util
from pathlib import Path

import numpy as np

from sae.core.files import sha256
from sae.core.types import UserError, definition, static
from sae.data.rows import Rows, rows
from sae.data.source import Normalize, Source

FILE = "datasets/data/digits.csv.gz"


@definition
class Digits(Source):
    """1,797 handwritten digits, 8x8 pixels in [0, 1] (d_in = 64), in a seeded random split. Alpaydin & Kaynak 1998.

    This is the test part of UCI's "Optical Recognition of Handwritten Digits", as scikit-learn ships it. Each pixel
    counts the ink in a 4x4 block, 0 to 16, and is divided by 16. Some border pixels are blank in every image, so the
    data has fewer than 64 dimensions.
    """

    n_held_out: int = static(397, min=1, max=1796)
    """Number of held-out images; the rest of the 1,797 are for training."""
    split_seed: int = static(0, min=0)
    """Seed of the choice of held-out images."""
    normalize: Normalize = static("centre")
    """What is done to rows: none, centre, unit-mean-norm, centre-unit-mean-norm or standardize (see `sae.rows`)."""

    def fingerprint(self) -> dict[str, str]:
        """The hash of the file in scikit-learn."""
        return {FILE: sha256(_path())[:16]}

    def load(self) -> Rows:
        """Training rows [1797 - n_held_out, 64] and held-out rows [n_held_out, 64]."""
        train, held_out = self._split((_table()[:, :-1] / 16).astype(np.float32))
        return rows(train, held_out, self.normalize, "Digits", image_shape=(8, 8))

    def labels(self) -> tuple[np.ndarray, np.ndarray]:
        """The digit, 0 to 9, of every training row and of every held-out row, in the order of `load`."""
        return self._split(_table()[:, -1].astype(int))

    def _split(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not 0 < self.n_held_out < len(values):
            raise UserError(f"Digits: n_held_out is {self.n_held_out}; allowed: 1 to {len(values) - 1}")
        order = np.random.default_rng(self.split_seed).permutation(len(values))
        held_out, train = np.split(order, [self.n_held_out])
        return values[train], values[held_out]


def _table() -> np.ndarray:
    """scikit-learn's own table, [1797, 65]: the ink of 64 pixels, and the digit."""
    return np.loadtxt(_path(), delimiter=",")


def _path() -> Path:
    spec = importlib.util.find_spec("sklearn")  # importing it takes as long as importing JAX
    if spec is None or spec.origin is None or not (path := Path(spec.origin).parent / FILE).is_file():
        raise UserError(f"Digits: the installed scikit-learn has no {FILE}; use the version that constraints.txt names")
    return path

"""scikit-learn's 8x8 handwritten digits: small enough to look at every row."""

import numpy as np
from sklearn.datasets import load_digits

from sae.core.types import UserError, definition, static
from sae.data.rows import Rows, rows
from sae.data.source import Normalize


@definition
class Digits:
    """1,797 handwritten digits, 8x8 pixels in [0, 1] (d_in = 64), in a seeded random split. Alpaydin & Kaynak 1998.

    The test part of UCI's "Optical Recognition of Handwritten Digits" as scikit-learn ships it: each pixel counts
    the ink in a 4x4 block, 0 to 16, and is divided by 16 here. Some border pixels are blank in every image, so the
    data has fewer than 64 dimensions.
    """

    n_held_out: int = static(397, min=1, max=1796)
    """Held-out images, of 1,797; the others are for training."""
    split_seed: int = static(0, min=0)
    """Seed of which images are held out."""
    normalize: Normalize = static("centre")
    """none, centre (subtract the training mean) or unit-mean-norm (divide by the mean norm)."""

    def load(self) -> Rows:
        """Training rows [1797 - n_held_out, 64] and held-out rows [n_held_out, 64]."""
        train, held_out = self._split((load_digits().data / 16).astype(np.float32))
        return rows(train, held_out, self.normalize, "Digits", image_shape=(8, 8))

    def labels(self) -> tuple[np.ndarray, np.ndarray]:
        """The digits, 0 to 9, of the training and of the held-out rows, in the order of `load`."""
        return self._split(load_digits().target)

    def _split(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not 0 < self.n_held_out < len(values):
            raise UserError(f"Digits: n_held_out is {self.n_held_out}; allowed: 1 to {len(values) - 1}")
        order = np.random.default_rng(self.split_seed).permutation(len(values))
        held_out, train = np.split(order, [self.n_held_out])
        return values[train], values[held_out]

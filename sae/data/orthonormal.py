"""Sparse sums of orthonormal features, one per dimension: without superposition, closed forms hold."""

import jax
import jax.numpy as jnp
import numpy as np

from sae.core.types import Array, Key, UserError, definition, static
from sae.data.sampler import Sampler, orthonormal
from sae.data.source import Source


@definition
class Orthonormal(Source):
    """Sums of features that do not overlap, so that each feature is a one-dimensional problem of its own.

    x = sum_i active_i magnitude_i feature_i [d_in], i below d_in. Features are the rows of a random orthogonal matrix.
    Each is active independently with probability `frequency`; magnitudes are U[low, high). The closed form of L1
    shrinkage holds on this data (Wright & Sharkey 2024; `sae.analysis.recovery.shrinkage`).
    """

    d_in: int = static(64, min=1)
    """Width of an example, and number of features."""
    frequency: float = static(0.05, min=0, max=1)
    """Probability that a feature is active."""
    low: float = static(0.5, min=0)
    """Smallest magnitude."""
    high: float = static(1.5, min=0)
    """Largest magnitude."""
    feature_seed: int = static(0, min=0)
    """Seed of the features."""
    n_held_out: int = static(16_384, min=1)
    """Number of held-out examples."""

    def fingerprint(self) -> dict[str, str]:
        """{}: the definition says everything."""
        return {}

    def load(self) -> Sampler:
        """The sampler. Raises UserError for frequency 0, and for low not below high."""
        if not self.frequency > 0:
            raise UserError(f"Orthonormal: frequency is {self.frequency}; allowed: above 0, at most 1")
        if not self.low < self.high:
            raise UserError(f"Orthonormal: low is {self.low} and high {self.high}; allowed: low below high")
        features = orthonormal(np.random.default_rng(self.feature_seed), self.d_in)

        def labelled(key: Key, n: int) -> tuple[Array, Array]:
            active_key, magnitude_key = jax.random.split(key)
            active = jax.random.bernoulli(active_key, self.frequency, (n, self.d_in))
            magnitudes = jax.random.uniform(magnitude_key, (n, self.d_in), minval=self.low, maxval=self.high)
            values = jnp.where(active, magnitudes, 0)
            return jnp.matmul(values, features, precision="highest"), values

        mean = self.frequency * (self.low + self.high) / 2 * features.sum(axis=0)
        return Sampler(
            d_in=self.d_in,
            sample=lambda key, n: labelled(key, n)[0],
            labelled=labelled,
            features=features,
            frequencies=np.full(self.d_in, self.frequency, np.float32),
            mean=mean,
            n_held_out=self.n_held_out,
        )

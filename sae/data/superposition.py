"""Sparse sums of known features, sampled inside the program: the data of "Taking features out of superposition"."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr

from sae.core.normalization import Normalization
from sae.core.types import Array, Key, UserError, definition, static
from sae.data.sampler import Sampler
from sae.data.source import Normalize, Source

UNCENTRED = ("none", "unit-mean-norm", "mean-norm-sqrt-d")  # ways of `normalize` that keep the mean


@definition
class Superposition(Source):
    """Sparse sums of known features, which may outnumber the dimensions. Sharkey, Braun & Millidge 2022.

    x = sum_i active_i magnitude_i feature_i [d_in]. Features are random unit rows [n_features, d_in], magnitudes are
    U[0, 1), and feature i (from 0) is active with a probability p_i that depends on a correlated Gaussian z. Public
    re-implementations differ in p_i. There are two here; Phi is the normal distribution function:

    - A: p_i ∝ Phi(z_i) decay^i, with one z for `examples_per_z` consecutive examples. The covariance of z is the
      symmetric part of a matrix of U[0, 1) entries, with 1.001 times the size of its lowest eigenvalue added to
      the diagonal (z_i has standard deviation 3.1 at 512 features). This is HoagyC/sparse_coding 2023, except that
      there magnitudes are products of two uniforms and an example without active features is given one.
    - B: p_i ∝ Phi(z_i)^(decay i), with a fresh z ~ N(0, M M^T) for each example; M has N(0, 1) entries. This is
      tim-lawson/superposition, the code of Heap et al. 2025 (arXiv 2501.17727). M is *not* rescaled: z_i has
      standard deviation sqrt(n_features), so Phi(z_i) is nearly always close to 0 or 1, the exponent matters
      little, and an example draws its features from a random half of them.

    Given z, p is rescaled so that it sums to `n_active`, the mean number of active features.

    The ratio of the highest to the lowest frequency of a feature, measured at 512 features, n_active 5 and decay .99,
    is 168 to 169 for A (decay^-511 is 170) and 2.3 for B. At 128 features and n_active 3 it is 3.6 and 2.6. At 512
    features a z of unit variance would give B about 600, and Phi(z_i)^(decay^i) would give it 1.5.
    """

    d_in: int = static(64, min=1)
    """Width of an example."""
    n_features: int = static(128, min=1)
    """Number of true features."""
    n_active: float = static(3.0, min=0)
    """Mean number of active features in an example."""
    generator: Literal["A", "B"] = static("B")
    """A: frequencies fall exponentially and examples share z. B: frequencies are nearly uniform, one z per example."""
    decay: float = static(0.99, min=0, max=1)
    """A: p_i is proportional to decay^i. B: p_i is proportional to Phi(z_i) to the power decay * i."""
    examples_per_z: int = static(256, min=1)
    """A: this many consecutive examples of a batch share one z; 256 is the papers' batch."""
    feature_seed: int = static(0, min=0)
    """Seed of the features and of the covariance of z."""
    n_held_out: int = static(16_384, min=1)
    """Number of held-out examples."""
    normalize: Normalize = static("none")
    """What is done to examples (see `sae.rows`), by estimated numbers: none, centre, unit-mean-norm, ..."""

    def fingerprint(self) -> dict[str, str]:
        """{}: the definition says everything."""
        return {}

    def load(self) -> Sampler:
        """The sampler. Frequencies, mean and mean norm are estimated once, from fixed keys."""
        if self.generator not in ("A", "B"):
            raise UserError(f"Superposition: generator is '{self.generator}'; allowed: A, B")
        rng = np.random.default_rng(self.feature_seed)
        features = rng.standard_normal((self.n_features, self.d_in))
        features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
        mixing = _mixing(self.generator, self.n_features, rng).astype(np.float32)
        index = np.arange(self.n_features, dtype=np.float32)
        per_z = self.examples_per_z if self.generator == "A" else 1

        def probabilities(key: Key, n: int) -> Array:
            """[n, n_features] probability of each feature, given each of n draws of z."""
            phi = ndtr(jax.random.normal(key, (n, self.n_features)) @ mixing.T)
            p = phi * self.decay**index if self.generator == "A" else phi ** (self.decay * index)
            return jnp.minimum(1, p * (self.n_active / jnp.sum(p, axis=1, keepdims=True)))

        def magnitudes(key: Key, n: int) -> Array:
            z_key, u_key = jax.random.split(key)
            p = jnp.repeat(probabilities(z_key, -(-n // per_z)), per_z, axis=0)[:n]
            # Given u < p, u / p is uniform on [0, 1) again: one draw says whether a feature is active and how much.
            u = jax.random.uniform(u_key, (n, self.n_features))
            return jnp.where(u < p, u, 0) / jnp.maximum(p, 1e-30)

        sums = lambda values: jnp.matmul(values, features, precision="highest")

        frequencies = estimated(probabilities)
        if not 0 < self.n_active <= 1.01 * frequencies.sum():
            raise UserError(
                f"Superposition: n_active is {self.n_active} and {self.n_features} features reach a mean of "
                f"{frequencies.sum():.3g}, as no probability exceeds 1; allowed: above 0 and lower, or more features"
            )
        mean = 0.5 * frequencies @ features  # a magnitude is independent of its being active
        normalization = measured(lambda key, n: sums(magnitudes(key, n)), mean, self.normalize)

        def labelled(key: Key, n: int) -> tuple[Array, Array]:
            values = magnitudes(key, n)
            return normalization.apply(sums(values)), values

        return Sampler(
            d_in=self.d_in,
            sample=lambda key, n: labelled(key, n)[0],
            labelled=labelled,
            features=features,
            frequencies=frequencies,
            mean=normalization.apply(mean),
            n_held_out=self.n_held_out,
            normalization=normalization,
        )


def measured(draw: Callable[[Key, int], Array], mean: np.ndarray, normalize: Normalize) -> Normalization:
    """The normalization of `sae.rows` for draws [n, d_in] with this mean; what it divides by is estimated."""
    plain = Normalization.none(len(mean))
    shift = np.asarray(mean, np.float32) if normalize not in UNCENTRED else plain.shift
    if normalize.endswith(("mean-norm", "mean-norm-sqrt-d")):
        wanted = np.sqrt(len(mean)) if normalize == "mean-norm-sqrt-d" else 1.0
        scale = wanted / estimated(lambda key, n: jnp.linalg.norm(draw(key, n) - shift, axis=1))
    elif normalize == "standardize":
        scale = 1 / np.sqrt(estimated(lambda key, n: (draw(key, n) - shift) ** 2))
    else:
        scale = 1.0
    return Normalization(shift, scale * plain.scale)


def _mixing(generator: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """[n, n] M such that z = M e has the generator's covariance, for e ~ N(0, I)."""
    if generator == "B":
        return rng.standard_normal((n, n))
    square = rng.random((n, n))
    covariance = (square + square.T) / 2
    lift = 1.001 * max(0.0, -np.linalg.eigvalsh(covariance).min())
    return np.linalg.cholesky(covariance + lift * np.eye(n))


def estimated(draw, n: int = 1024, n_batches: int = 64) -> np.ndarray:
    """The mean of draw(key, n) over its rows, from fixed keys."""
    keys = jax.random.split(jax.random.key(0), n_batches)
    return np.asarray(jax.jit(lambda: jax.lax.map(lambda key: jnp.mean(draw(key, n), axis=0), keys).mean(0))())

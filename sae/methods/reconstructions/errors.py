"""Reconstructions of one decode, and how their error is measured."""

import jax.numpy as jnp

from sae.core.model import Sae, decode
from sae.core.types import Array, definition
from sae.methods.contract import Reconstruction


@definition
class SquaredError(Reconstruction):
    """mean_b ‖y - x̂‖², summed over `d_in`."""

    def __call__(self, sae: Sae, latents: Array, y: Array, step: Array | int) -> tuple[Array, Array]:
        """One decode."""
        x_hat = decode(sae, latents)
        return jnp.sum((x_hat - y) ** 2) / y.shape[1], x_hat


@definition
class Fvu(Reconstruction):
    """Σ_b ‖y - x̂‖² / Σ_b ‖y - ȳ‖², ȳ the batch's mean: the fraction of variance unexplained, EleutherAI sparsify's.

    A penalty's coefficient is as much smaller than with `SquaredError` as the batch's variance is large.
    """

    def __call__(self, sae: Sae, latents: Array, y: Array, step: Array | int) -> tuple[Array, Array]:
        """One decode."""
        x_hat = decode(sae, latents)
        return unexplained(y, x_hat), x_hat


@definition
class NormalizedMse(Reconstruction):
    """mean_b (‖y - x̂‖² / ‖y‖²), OpenAI's `loss.py`. Gao et al. 2024, arXiv 2406.04093.

    Each example counts alike, whatever its norm. Examples that are 0 count nothing.
    """

    def __call__(self, sae: Sae, latents: Array, y: Array, step: Array | int) -> tuple[Array, Array]:
        """One decode."""
        x_hat = decode(sae, latents)
        squared = jnp.sum(y * y, axis=0)
        share = jnp.sum((x_hat - y) ** 2, axis=0) / jnp.where(squared > 0, squared, 1.0)
        return jnp.sum(jnp.where(squared > 0, share, 0.0)) / y.shape[1], x_hat


@definition
class Cosine(Reconstruction):
    """mean_b (1 - cos(y, x̂)): the direction of a reconstruction counts, and not its norm.

    Nothing sets the scale of x̂, so its squared error means little. What has a norm of 1e-6 or less has no direction:
    its cosine is 0, and so is its gradient.
    """

    def __call__(self, sae: Sae, latents: Array, y: Array, step: Array | int) -> tuple[Array, Array]:
        """One decode."""
        x_hat = decode(sae, latents)
        squares = jnp.sum(y * y, axis=0), jnp.sum(x_hat * x_hat, axis=0)
        there = jnp.minimum(*squares) > 1e-12
        norms = [jnp.sqrt(jnp.where(there, square, 1.0)) for square in squares]
        cosines = jnp.where(there, jnp.sum(y * x_hat, axis=0), 0.0) / (norms[0] * norms[1])
        return jnp.sum(1 - cosines) / y.shape[1], x_hat


def unexplained(y: Array, x_hat: Array) -> Array:
    """The fraction of a batch's variance that a reconstruction leaves unexplained, []; 0 where there is no variance."""
    variation = jnp.sum((y - jnp.mean(y, axis=1, keepdims=True)) ** 2)
    return jnp.where(variation > 0, jnp.sum((x_hat - y) ** 2) / jnp.where(variation > 0, variation, 1.0), 0.0)

"""Penalties that charge a large latent little more than a middling one."""

import jax.numpy as jnp

from sae.core.model import Pass
from sae.core.types import Array, definition, leaf, static
from sae.methods.contract import Penalty
from sae.methods.penalties.norms import charged


@definition
class LogPenalty(Penalty):
    """`weight * mean_b sum_i log(1 + (f_bi / scale)²)`. Olshausen & Field 1996, "Emergence of simple-cell ..."."""

    weight: float = leaf(0.1, min=0, arm=True)
    """Coefficient."""
    scale: float = leaf(1.0, min=1e-6)
    """The latent's size, σ, around which the penalty bends."""
    weighted: bool = static(False)
    """Weight each latent by its decoder row's norm."""

    def cost(self, out: Pass) -> Array:
        """The cost, []."""
        return self.weight * jnp.sum(jnp.log1p((charged(out, self.weighted) / self.scale) ** 2)) / out.batch


@definition
class TanhPenalty(Penalty):
    """`weight * mean_b sum_i tanh(scale · abs(f_bi))`, near the count of active latents where latents are large.

    Anthropic's, "Circuits Updates - January 2025", with the scale 4 and `weighted`, for `JumpRelu`; SAELens calls it
    the sparsity loss mode "tanh".
    """

    weight: float = leaf(0.1, min=0, arm=True)
    """Coefficient."""
    scale: float = leaf(4.0, min=0)
    """Slope at 0."""
    weighted: bool = static(True)
    """Weight each latent by its decoder row's norm."""

    def cost(self, out: Pass) -> Array:
        """The cost, []."""
        return self.weight * jnp.sum(jnp.tanh(self.scale * jnp.abs(charged(out, self.weighted)))) / out.batch


@definition
class Hoyer(Penalty):
    """`weight * mean_b (sum_i abs(f_bi))² / sum_i f_bi²`, from 1 for one active latent to d_sae for equal ones.

    The Hoyer-Square measure, Yang, Wen & Li 2020, arXiv 1908.09979, after Hoyer 2004. It does not see the scale of
    latents. Examples of norm up to `floor` cost nothing, as its derivative has no bound there.
    """

    weight: float = leaf(0.1, min=0, arm=True)
    """Coefficient."""
    floor: float = leaf(1e-5, min=0)
    """Norm of an example's latents up to which it is not charged."""
    weighted: bool = static(False)
    """Weight each latent by its decoder row's norm."""

    def cost(self, out: Pass) -> Array:
        """The cost, []."""
        size = jnp.abs(charged(out, self.weighted))
        squares = jnp.sum(size * size, axis=0)
        counted = squares > self.floor * self.floor
        ratio = jnp.sum(size, axis=0) ** 2 / jnp.where(counted, squares, 1.0)
        return self.weight * jnp.sum(jnp.where(counted, ratio, 0.0)) / out.batch

"""Averages: the weights that are evaluated and kept."""

import jax
import jax.numpy as jnp

from sae.core.model import Sae, select
from sae.core.types import Array, definition, leaf
from sae.methods.contract import Average


@definition
class Last(Average):
    """The weights after the last step."""


@definition
class Ema(Average):
    """An exponential moving average over steps, corrected for its start at 0. Gao et al. 2024 use it with decay .999.

    `Σ_t decay^(T-t) W_t / Σ_t decay^(T-t)` for the weights W_t after each of T steps.
    """

    decay: float = leaf(0.999, min=0, max=1)
    """Decay rate per step."""

    def init(self, sae: Sae) -> tuple[Sae, Array]:
        """(the sum, the sum of its weights), both 0."""
        return jax.tree.map(jnp.zeros_like, sae), jnp.zeros(())

    def settle(self, state: tuple[Sae, Array], sae: Sae) -> tuple[Sae, Array]:
        """One step later."""
        return jax.tree.map(lambda total, new: self.decay * total + new, state, (sae, jnp.ones(())))

    def revive(self, state: tuple[Sae, Array], dead: Array, sae: Sae) -> tuple[Sae, Array]:
        """The mean of a revived latent is what it starts again with."""
        total, weight = state
        return select(dead, jax.tree.map(lambda new: weight * new, sae), total), weight

    def weights(self, state: tuple[Sae, Array], sae: Sae) -> Sae:
        """The mean; the present weights before the first step."""
        total, weight = state
        mean = lambda total, last: jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1.0), last)
        return jax.tree.map(mean, total, sae)

"""Auxiliary losses: costs that give dead latents a gradient."""

from typing import Literal

import jax
import jax.numpy as jnp

from sae.core.model import Pass, matmul
from sae.core.types import Array, definition, leaf, static
from sae.methods.activations import relu
from sae.methods.contract import Auxiliary
from sae.methods.top_k import k_largest


@definition
class NoAuxiliary(Auxiliary):
    """No auxiliary loss."""

    def cost(self, out: Pass) -> float:
        """0."""
        return 0.0


@definition
class AuxK(Auxiliary):
    """The k dead latents with the largest pre-activations reconstruct the error. Gao et al. 2024, arXiv 2406.04093.

    With e = y - x̂ held fixed and ê = W_decᵀ of those latents, without b_dec:
    "openai" (and dictionary_learning): `weight * Σ_b ‖e - ê‖² / Σ_b ‖e - ē‖²`, latents through a ReLU;
    "saelens": `weight * min(n_dead / k, 1) * mean_b ‖e - ê‖²`, latents as they are.
    """

    weight: float = leaf(1 / 32, min=0)
    """Coefficient; 1/32 is Gao et al.'s, SAELens has 1."""
    k: int | None = static(None, min=1)
    """Dead latents per example; None for half of d_in."""
    form: Literal["openai", "saelens"] = static("openai")
    """Whose definition."""

    def cost(self, out: Pass) -> Array:
        """The cost, []; 0 where no latent is dead."""
        k = self.k or max(1, out.y.shape[0] // 2)
        dead, n_dead = out.dead[:, None], jnp.sum(out.dead)
        error = jax.lax.stop_gradient(out.y - out.x_hat)
        chosen = k_largest(jnp.where(dead, out.pre_acts, -jnp.inf), min(k, out.dead.shape[0])) & dead
        values = relu(out.pre_acts) if self.form == "openai" else out.pre_acts
        rest = error - matmul(out.sae.W_dec[...].T, jnp.where(chosen, values, 0.0), out.sae.precision)
        squared = jnp.sum(rest**2)
        if self.form == "saelens":
            return self.weight * jnp.minimum(n_dead / k, 1.0) * squared / out.batch
        variation = jnp.sum((error - jnp.mean(error, axis=1, keepdims=True)) ** 2)
        some = (n_dead > 0) & (variation > 0)
        return self.weight * jnp.where(some, squared / jnp.where(some, variation, 1.0), 0.0)

"""Penalties: what the latents of a batch cost, beside the squared error."""

import jax.numpy as jnp

from sae.core.types import Array, definition, leaf, static


@definition
class ElasticNet:
    """L1 and L2 on the latents; the name is Zou & Hastie's, 2005.

    `l1 * mean_b sum_i abs(f_bi) + l2 * mean_b sum_i f_bi²` for latents f, a mean over the examples b. L1 charges
    every non-zero value at the same rate, so few latents stay active; L2 lets many small values live. With
    `weighted`, f_bi is replaced by `f_bi ‖W_dec,i‖` (Conerly et al. 2024, "April update"), which makes the penalty
    independent of the decoder's scale; else use it with a unit-norm decoder.
    """

    l1: float = leaf(0.0, min=0, arm=True)
    """Coefficient on the sum of absolute latents."""
    l2: float = leaf(0.0, min=0, arm=True)
    """Coefficient on the sum of squared latents."""
    warmup_steps: int = leaf(0, min=0)
    """Steps over which both coefficients rise in equal parts; 0 for none."""
    weighted: bool = static(False)
    """Weight each latent by its decoder row's norm."""

    def __call__(self, latents: Array, norms: Array, step: Array) -> Array:
        """latents [d_sae, batch], decoder norms [d_sae], step [] -> cost [], a mean over the batch."""
        if self.weighted:
            latents = latents * norms[:, None]
        size = jnp.abs(latents)
        cost = jnp.sum(self.l1 * size + self.l2 * size * size) / latents.shape[1]
        return cost * jnp.minimum(1.0, (step + 1) / jnp.maximum(self.warmup_steps, 1))

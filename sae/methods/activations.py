"""Activations: pre-activations to latents. Feature-major: axis 0 is the latents, axis 1 the batch."""

import jax
import jax.numpy as jnp

from sae.core.types import Array, definition, static


@definition
class Relu:
    """max(0, z). Bricken et al. 2023, "Towards Monosemanticity"."""

    def __call__(self, pre_acts: Array) -> Array:
        """pre_acts [d_sae, batch] -> latents [d_sae, batch]."""
        return relu(pre_acts)


@definition
class TopK:
    """The k largest pre-activations of each example, through a ReLU; the rest are 0. Gao et al. 2024, arXiv 2406.04093.

    After Makhzani & Frey 2013, "k-Sparse Autoencoders". Without Gao et al.'s auxiliary loss: dead latents are
    the business of `revival`. The penalty is usually 0 with it.
    """

    k: int = static(32, min=1)
    """Latents kept per example."""

    def __call__(self, pre_acts: Array) -> Array:
        """pre_acts [d_sae, batch] -> latents [d_sae, batch], at most k of each column non-zero."""
        values, which = jax.lax.top_k(pre_acts.T, self.k)  # [batch, k]
        examples = jnp.arange(pre_acts.shape[1])[:, None]
        return jnp.zeros_like(pre_acts).at[which, examples].set(relu(values))


@jax.custom_jvp
def relu(z: Array) -> Array:
    """max(0, z), whose derivative reads the result and not z, so that z need not be kept (or computed again)."""
    return jnp.maximum(z, 0)


@relu.defjvp
def _relu_jvp(primals, tangents):
    latents = relu(*primals)
    return latents, jnp.where(latents > 0, *tangents, 0)

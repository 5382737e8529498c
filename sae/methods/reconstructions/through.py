"""Reconstructions judged by what follows them."""

import dataclasses

import jax
import jax.numpy as jnp

from sae.core.model import Sae, decode
from sae.core.types import Array, leaf
from sae.methods.contract import Reconstruction


@dataclasses.dataclass(frozen=True, kw_only=True)
class Through(Reconstruction):
    """End to end: what follows a reconstruction is to be what follows the target. Braun et al. 2024, arXiv 2405.12241.

    `mean_b KL(softmax(follows(y)) ‖ softmax(follows(x̂))) + weight * mean_b ‖y - x̂‖²`. It is a base for a class of your
    own, which writes `follows`; without an error of its own (`weight` 0), the loss is the paper's "e2e".
    """

    weight: float = leaf(0.0, min=0)
    """Coefficient of the squared error."""

    def follows(self, x_hat: Array) -> Array:
        """x_hat [d_in, batch], normalized as the data are -> logits of what follows, [n, batch]."""
        raise NotImplementedError

    def __call__(self, sae: Sae, latents: Array, y: Array, step: Array | int) -> tuple[Array, Array]:
        """One decode, and two passes through what follows."""
        x_hat = decode(sae, latents)
        wanted = jax.nn.log_softmax(jax.lax.stop_gradient(self.follows(y)), axis=0)
        got = jax.nn.log_softmax(self.follows(x_hat), axis=0)
        apart = jnp.sum(jnp.exp(wanted) * (wanted - got)) + self.weight * jnp.sum((x_hat - y) ** 2)
        return apart / y.shape[1], x_hat

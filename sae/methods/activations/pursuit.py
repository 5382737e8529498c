"""Activations that encode with the decoder, in several rounds."""

from typing import Any

import jax
import jax.numpy as jnp

from sae.core import model
from sae.core.model import Sae, matmul
from sae.core.types import Array, definition, static
from sae.methods.activations.largest import TopK
from sae.methods.tasks import Transcoder


@definition
class MatchingPursuit(TopK):
    """Latents chosen one by one, each for what those before it leave unexplained. Costa et al. 2025, arXiv 2506.03093.

    After Mallat & Zhang 1993. With the decoder rows w_i and r = x - b_dec, k times: the latent with the largest w_iᵀr
    is chosen, its value grows by w_iᵀr, and r loses w_i w_iᵀr. An example ends where no w_iᵀr is positive. The
    pre-activations are those before the first round, w_iᵀ(x - b_dec), whatever `apply_b_dec_to_input` says; `W_enc`
    and `b_enc` are not used.

    Rows are taken as they are. The constraint `UnitNorm` makes it the method of the literature. With `Free`, as in
    SAELens, rows have norms of their own, and a round with a row longer than √2 leaves more than it finds. SAELens also
    ends an example at ‖r‖ < .01.

    Choices are held fixed and all else is differentiated, through every round.

    Later rounds need only the products w_iᵀw_j, [d_sae, d_sae], which are computed once for a batch.
    """

    stop_on_repeat: bool = static(True)
    """End an example once a latent is chosen again (SAELens); else its values add up."""

    def pre_acts(self, sae: Sae, x: Array, origin: Array | None = None) -> Array:
        """x [d_in, batch] -> w_iᵀ(x - b_dec), [d_sae, batch]."""
        W, b_dec = sae.W_dec[...], sae.b_dec[...]
        tied = Sae(W, jnp.zeros(W.shape[0]), W, b_dec, self, precision=sae.precision, own={})
        return model.pre_acts(tied, x, origin)

    def __call__(self, sae: Sae, pre_acts: Array) -> Array:
        """pre_acts [d_sae, batch] -> latents [d_sae, batch], at most k of each column non-zero."""
        d_sae, batch = pre_acts.shape
        W, rounds = sae.W_dec[...], self.k_max or (self.k if isinstance(self.k, int) else d_sae)
        chosen, sizes = _chosen(jax.lax.stop_gradient(W), jax.lax.stop_gradient(pre_acts), rounds)  # [rounds, batch]
        counted = (sizes > 0) & (jnp.arange(rounds)[:, None] < self.k)
        earlier = jnp.tril(jnp.ones((rounds, rounds), bool), -1)  # [round, earlier round]
        if self.stop_on_repeat:
            again = jnp.any((chosen[:, None] == chosen) & earlier[:, :, None], axis=1)
            counted &= jnp.cumsum(again, axis=0) - again == 0

        # a round's value is its first product, less what the values of earlier rounds explain of it
        first = jnp.take_along_axis(pre_acts, chosen, axis=0) * counted
        rows = W[chosen.T]  # [batch, rounds, d_in]
        products = matmul(rows, rows.transpose(0, 2, 1))
        explained = jnp.where(earlier & counted.T[:, :, None] & counted.T[:, None], products, 0.0)
        values = jax.lax.linalg.triangular_solve(
            explained, first.T[:, :, None], left_side=True, lower=True, unit_diagonal=True
        )[:, :, 0].T  # fmt: skip
        return jnp.zeros_like(pre_acts).at[chosen, jnp.arange(batch)].add(values)

    def check(self, experiment: Any) -> str | None:
        """What is encoded is what is reconstructed."""
        if isinstance(experiment.task, Transcoder):
            return "MatchingPursuit encodes with the decoder, got the task transcoder, allowed: autoencoder, crosscoder"
        return super().check(experiment)


def _chosen(W: Array, pre_acts: Array, rounds: int) -> tuple[Array, Array]:
    """The latent of each round, and how large its product with what is left is, both [rounds, batch]."""
    products = matmul(W, W.T)

    def one(left: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        latent, size = jnp.argmax(left, axis=1), jnp.maximum(jnp.max(left, axis=1), 0.0)
        return left - size[:, None] * products[latent], (latent, size)

    return jax.lax.scan(one, pre_acts.T, length=rounds)[1]

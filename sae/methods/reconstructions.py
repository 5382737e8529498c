"""Reconstructions: latents to reconstructions, and their error."""

import itertools
from typing import Any

import jax.numpy as jnp

from sae.core.model import Sae, base, decode, matmul
from sae.core.types import Array, definition, static
from sae.methods.contract import Reconstruction


@definition
class SquaredError(Reconstruction):
    """mean_b ‖y - x̂‖², summed over `d_in`."""

    def __call__(self, sae: Sae, latents: Array, y: Array, step: Array | int) -> tuple[Array, Array]:
        """One decode."""
        x_hat = decode(sae, latents)
        return jnp.sum((x_hat - y) ** 2) / y.shape[1], x_hat


@definition
class Matryoshka(Reconstruction):
    """The squared errors of several prefixes of the latents, and of all. Bussmann et al. 2025, arXiv 2503.17547.

    `Σ_w mean_b ‖y - x̂_w‖²`, x̂_w the reconstruction from the first w latents; x̂ is that from all. Each width adds its
    latents to the reconstruction of the width before, so all of them together cost one decode.
    """

    widths: tuple[int, ...] | None = static(None)
    """The prefixes, rising and below d_sae; None for 1/16, 1/8, 1/4 and 1/2 of d_sae. All latents always count too."""
    mean: bool = static(False)
    """Take the mean over widths, not the sum. dictionary_learning's loss is this divided by the number of widths."""

    def prefixes(self, d_sae: int) -> tuple[int, ...]:
        """The numbers of first latents, d_sae the last."""
        halves = [d_sae // part for part in (16, 8, 4, 2) if d_sae // part]
        return (*(dict.fromkeys(halves) if self.widths is None else self.widths), d_sae)

    def __call__(self, sae: Sae, latents: Array, y: Array, step: Array | int) -> tuple[Array, Array]:
        """One decode, in parts."""
        ends, W_dec = self.prefixes(latents.shape[0]), sae.W_dec[...]
        parts = [matmul(W_dec[a:b].T, latents[a:b], sae.precision) for a, b in itertools.pairwise((0, *ends))]
        x_hats = list(itertools.accumulate(parts, initial=base(sae)))[1:]
        costs = [jnp.sum((x_hat - y) ** 2) / y.shape[1] for x_hat in x_hats]
        return jnp.sum(jnp.stack(costs)) / (len(ends) if self.mean else 1), x_hats[-1]

    def check(self, experiment: Any) -> str | None:
        """Widths rise, from 1 to less than d_sae."""
        ends = (0, *self.prefixes(experiment.d_sae))
        if all(a < b for a, b in itertools.pairwise(ends)):
            return None
        return f"widths: got {self.widths}, allowed: rising numbers from 1 to less than d_sae = {experiment.d_sae}"

"""Activations that keep the largest latents: of each example, of each group, of a whole batch."""

from typing import Any

import jax
import jax.numpy as jnp

from sae.core.model import Pass, Sae, decoder_norms, own
from sae.core.types import Array, definition, leaf, static
from sae.methods import top_k
from sae.methods.activations.pointwise import relu
from sae.methods.contract import Activation


@definition
class TopK(Activation):
    """The k largest pre-activations of each example, through a ReLU; the rest are 0. Gao et al. 2024, arXiv 2406.04093.

    After Makhzani & Frey 2013, "k-Sparse Autoencoders". Gao et al.'s loss for dead latents is `AuxK`. The penalty is
    usually 0 with it.
    """

    k: int = leaf(32, min=1, arm=True)
    """Latents kept per example."""
    k_max: int | None = static(None, min=1, most_of="k")
    """The largest k of one compiled program, which sorts so many; None finds it."""

    def __call__(self, sae: Sae, pre_acts: Array) -> Array:
        """pre_acts [d_sae, batch] -> latents [d_sae, batch], at most k of each column non-zero."""
        kept = top_k.k_largest(relu(pre_acts), self.k, self.k_max) & (pre_acts > 0)
        return jnp.where(kept, pre_acts, 0.0)  # one selection, and one in its gradient

    def check(self, experiment: Any) -> str | None:
        """k is at most d_sae, and at most k_max."""
        for name, most in (("d_sae", experiment.d_sae), ("activation.k_max", self.k_max)):
            if most is not None and self.k > most:
                return f"k: got {self.k}, allowed: at most {name} = {most}"
        return None


@definition
class BatchTopK(Activation):
    """The k · batch largest latents of a whole batch, however many per example. Bussmann et al. 2024, arXiv 2412.06410.

    A latent is compared by its contribution, the latent times the norm of its decoder row. Outside training each
    example stands alone: contributions above `threshold` are kept. The threshold is a running mean over training steps
    of the smallest contribution that was kept.
    """

    k: float = leaf(32.0, min=0, arm=True)
    """Latents kept per example, on average over the batch."""
    decay: float = leaf(0.99, min=0, max=1)
    """Decay rate of the threshold's running mean, which starts at 0."""

    def init(self, d_sae: int) -> dict[str, Array]:
        """One threshold for all latents, 0."""
        return {"threshold": jnp.zeros(())}

    def __call__(self, sae: Sae, pre_acts: Array) -> Array:
        """pre_acts [d_sae, batch] -> the latents whose contribution exceeds the threshold."""
        latents = relu(pre_acts)
        return jnp.where(_contribution(sae, latents) > own(sae)["threshold"], latents, 0.0)

    def training(self, sae: Sae, pre_acts: Array) -> tuple[Array, Array]:
        """pre_acts [d_sae, batch] -> the largest of the batch; equal ones at the border are all kept."""
        latents = relu(pre_acts)
        contribution = _contribution(sae, latents)
        n = jnp.round(self.k * pre_acts.shape[1]).astype(jnp.int32)
        threshold = top_k.nth_largest(contribution, n, guess=own(sae)["threshold"])
        kept = jnp.where(contribution >= threshold, latents, 0.0)
        return kept, kept

    def settle(self, own: dict[str, Array], out: Pass) -> dict[str, Array]:
        """The threshold follows the smallest contribution that was kept; no gradient moves it."""
        contribution = _contribution(out.sae, out.latents)
        smallest = jnp.min(jnp.where(contribution > 0, contribution, jnp.inf))
        before = out.sae.own["threshold"][...]
        after = self.decay * before + (1 - self.decay) * smallest
        return {**own, "threshold": jnp.where(jnp.isfinite(smallest), after, before)}

    def check(self, experiment: Any) -> str | None:
        """k is at most d_sae."""
        too_large = self.k > experiment.d_sae
        return f"k: got {self.k}, allowed: at most d_sae = {experiment.d_sae}" if too_large else None


def _contribution(sae: Sae, latents: Array) -> Array:
    """Each latent times the norm of its decoder row, without a gradient."""
    return jax.lax.stop_gradient(latents * decoder_norms(sae)[:, None])

"""Activations that keep the largest latents: of each example, of each group, of a whole batch."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from sae.core.model import Pass, Sae, decode, decoder_norms, encoder_input, own
from sae.core.types import Array, definition, leaf, static
from sae.methods import top_k
from sae.methods.activations.pointwise import relu
from sae.methods.contract import Activation
from sae.methods.reconstructions import unexplained


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
        kept = top_k.k_largest(pre_acts, self.k, self.k_max, above=0.0)
        return jnp.where(kept, pre_acts, 0.0)  # one selection, and one in its gradient

    def few(self, sae: Sae, pre_acts: Array) -> tuple[Array, Callable[[Array], Array]] | None:
        """The k_max largest; through a ReLU, the first k of them."""
        if self.k_max is None:
            return None
        counts = jnp.arange(self.k_max)[:, None] < self.k
        return top_k.largest(pre_acts, self.k_max), lambda z: jnp.where(counts, relu(z), 0.0)

    def check(self, experiment: Any) -> str | None:
        """k is at most d_sae, and at most k_max."""
        for name, most in (("d_sae", experiment.d_sae), ("activation.k_max", self.k_max)):
            if most is not None and self.k > most:
                return f"k: got {self.k}, allowed: at most {name} = {most}"
        return None


@definition
class AbsTopK(TopK):
    """The k pre-activations of each example with the largest absolute values, signs kept; the rest are 0.

    Zhu, Khalili & Zhu 2025, arXiv 2510.00404: one latent may stand for two opposite concepts.
    """

    def __call__(self, sae: Sae, pre_acts: Array) -> Array:
        """pre_acts [d_sae, batch] -> latents [d_sae, batch], at most k of each column non-zero."""
        return jnp.where(top_k.k_largest(jnp.abs(pre_acts), self.k, self.k_max, above=0.0), pre_acts, 0.0)

    def few(self, sae: Sae, pre_acts: Array) -> tuple[Array, Callable[[Array], Array]] | None:
        """The k_max largest by absolute value; the first k of them as they are."""
        if self.k_max is None:
            return None
        counts = jnp.arange(self.k_max)[:, None] < self.k
        return top_k.largest(jnp.abs(pre_acts), self.k_max), lambda z: jnp.where(counts, z, 0.0)


@definition
class MultiTopK(TopK):
    """`TopK` with a cost: the error of what the `factor · k` largest reconstruct. Gao et al. 2024, arXiv 2406.04093.

    `weight * mean_b ‖y - ŷ‖²`, ŷ the reconstruction from the `factor · k` largest pre-activations through a ReLU.
    "fvu" takes `weight * Σ_b ‖y - ŷ‖² / Σ_b ‖y - ȳ‖²` in its place, as sparsify does: use it with `Fvu`. It keeps
    reconstructions good where more latents are used than in training. Gao et al. combine it with `AuxK`.
    """

    weight: float = leaf(1 / 8, min=0)
    """Coefficient of the second error; the first has 1."""
    factor: int = static(4, min=2)
    """How many times k the second reconstruction has."""
    form: Literal["squared-error", "fvu"] = static("squared-error")
    """How the second error is measured."""

    def cost(self, out: Pass) -> Array:
        """The error from more latents, []."""
        d_sae, z = out.pre_acts.shape[0], out.pre_acts
        most = None if self.k_max is None else min(self.factor * self.k_max, d_sae)
        kept = top_k.k_largest(z, jnp.minimum(self.factor * self.k, d_sae), most, above=0.0)
        y_hat = decode(out.sae, jnp.where(kept, z, 0.0))
        error = unexplained(out.y, y_hat) if self.form == "fvu" else jnp.sum((y_hat - out.y) ** 2) / out.batch
        return self.weight * error


@definition
class GroupMax(Activation):
    """The largest pre-activation of each of k groups, through a ReLU; the rest are 0. EleutherAI sparsify's.

    A group is d_sae / k latents that follow each other, so no sort is needed. Of equal ones the first counts.
    """

    k: int = static(32, min=1)
    """Groups, and so the most latents that are active on an example."""

    def __call__(self, sae: Sae, pre_acts: Array) -> Array:
        """pre_acts [d_sae, batch] -> latents [d_sae, batch], at most one of each group non-zero."""
        groups = pre_acts.reshape(self.k, -1, pre_acts.shape[1])
        largest = jnp.argmax(groups, axis=1)[:, None] == jnp.arange(groups.shape[1])[:, None]
        return jnp.where(largest & (groups > 0), groups, 0.0).reshape(pre_acts.shape)

    def check(self, experiment: Any) -> str | None:
        """Groups are of one size."""
        if experiment.d_sae % self.k == 0:
            return None
        return f"k: got {self.k}, allowed: a number that divides d_sae = {experiment.d_sae}"


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
        """pre_acts [d_sae, batch] -> the largest of the batch; of equal ones at the border the first latents count."""
        latents = relu(pre_acts)
        n = jnp.round(self.k * pre_acts.shape[1]).astype(jnp.int32)
        chosen = top_k.n_largest(_contribution(sae, latents), n, guess=own(sae)["threshold"])
        kept = jnp.where(chosen, latents, 0.0)
        return kept, kept

    def settle(self, own: dict[str, Array], out: Pass) -> dict[str, Array]:
        """The threshold follows the smallest contribution that was kept; no gradient moves it."""
        contribution = _contribution(out.sae, out.latents)
        smallest = jnp.min(jnp.where(contribution > 0, contribution, jnp.inf))
        before = out.sae.own["threshold"][...]
        after = self.decay * before + (1 - self.decay) * smallest
        return {**own, "threshold": jnp.where(jnp.isfinite(smallest), after, before)}

    def check(self, experiment: Any) -> str | None:
        """k is at most d_sae, and a batch keeps a latent."""
        if self.k > experiment.d_sae:
            return f"k: got {self.k:g}, allowed: at most d_sae = {experiment.d_sae}"
        if round(self.k * experiment.batch_size) < 1:
            return f"k: got {self.k:g}, allowed: at least 1 / batch_size = {1 / experiment.batch_size:g}"
        return None


@definition
class TopAfa(Activation):
    """As many of an example's largest latents as have the norm of the input. Lee et al. 2025, arXiv 2503.24277.

    Latents f = relu(z) are ordered by their contributions c_i = f_i ‖W_dec,i‖. The first k are kept, and each example
    has its own k >= 1: the one that brings √Σ c_i² nearest to ‖x - b_dec‖ (‖x‖ where b_dec is not subtracted). Nearly
    orthogonal directions would need just that norm, which the authors call the approximate feature activation (AFA). So
    no k and no penalty is set. Contributions that are equal are kept together.

    The cost is `weight * d_in * mean_b (‖f‖ - ‖x‖)²`, f the kept latents. d_in stands in it because the authors' error
    is a mean over the numbers of an input, where `SquaredError` sums over them. Their inputs have mean 0 and variance 1
    each.
    """

    weight: float = leaf(1 / 16, min=0, arm=True)
    """Coefficient of the cost: how strongly the norms of latents are drawn to those of inputs."""

    def __call__(self, sae: Sae, pre_acts: Array) -> Array:
        """pre_acts [d_sae, batch] -> latents [d_sae, batch]; `sae` is at a batch (see `sae.core.model.at`)."""
        latents = relu(pre_acts)
        norms = jnp.sqrt(jnp.sum(encoder_input(sae) ** 2, axis=0))
        return jnp.where(top_k.up_to_norm(_contribution(sae, latents), norms), latents, 0.0)

    def cost(self, out: Pass) -> Array:
        """The squared difference between the norms of latents and of inputs, []."""
        norm = lambda columns: jnp.sqrt(jnp.maximum(jnp.sum(columns**2, axis=0), 1e-30))
        return self.weight * out.x.shape[0] * jnp.mean((norm(out.latents) - norm(out.x)) ** 2)


def _contribution(sae: Sae, latents: Array) -> Array:
    """Each latent times the norm of its decoder row, without a gradient."""
    return jax.lax.stop_gradient(latents * decoder_norms(sae)[:, None])

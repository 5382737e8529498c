"""Penalties on how many latents are active, and how often."""

from typing import Any, Literal

import jax.numpy as jnp

from sae.core.definitions import is_own
from sae.core.model import Pass
from sae.core.types import Array, definition, leaf, static
from sae.methods.activations import Sigmoid
from sae.methods.contract import Activation, Penalty


@definition
class L0(Penalty):
    """`weight * mean_b #(active latents of b)`. Rajamanoharan et al. 2024, arXiv 2407.14435.

    Its gradient is the one that the activation gives to a latent's being active, as `JumpRelu` does.
    """

    weight: float = leaf(0.1, min=0, arm=True)
    """Coefficient."""

    def cost(self, out: Pass) -> Array:
        """The count, []."""
        return self.weight * jnp.sum(out.active) / out.batch

    def check(self, experiment: Any) -> str | None:
        """The activation has a gradient of the count."""
        return _without_gradient(self, experiment.activation)


@definition
class QuadraticL0(Penalty):
    """The squared distance of L0 from a target T, by the gradient that the activation gives to the count.

    "saelens": `weight * mean_b (2/T) (L0_b - T)²`, of each example, its loss mode "quadratic";
    "dictionary_learning": `weight * (L0 / T - 1)²`, L0 the mean over the batch, its JumpReLU trainer.
    """

    weight: float = leaf(1.0, min=0)
    """Coefficient."""
    target: float = leaf(20.0, min=1e-2, arm=True)
    """The target T."""
    form: Literal["saelens", "dictionary_learning"] = static("dictionary_learning")
    """Whose definition."""

    def cost(self, out: Pass) -> Array:
        """The squared distance, []."""
        l0 = jnp.sum(out.active, axis=0)
        if self.form == "saelens":
            return self.weight * 2 / self.target * jnp.sum((l0 - self.target) ** 2) / out.batch
        return self.weight * (jnp.sum(l0) / out.batch / self.target - 1) ** 2

    def coefficients(self) -> dict[str, Any]:
        """The weight: the target is no coefficient."""
        return {"weight": self.weight}

    def check(self, experiment: Any) -> str | None:
        """The target is at most d_sae, and the activation has a gradient of the count."""
        if self.target > experiment.d_sae:
            return f"target: got {self.target:g}, allowed: at most d_sae = {experiment.d_sae}"
        return _without_gradient(self, experiment.activation)


@definition
class FiringRateKL(Penalty):
    """`weight * sum_i KL(ρ ‖ ρ̂_i)`, ρ̂_i the batch's mean of latent i. Ng 2011, "CS294A Lecture notes".

    `KL(ρ ‖ ρ̂) = ρ log(ρ / ρ̂) + (1 - ρ) log((1 - ρ) / (1 - ρ̂))`, for latents between 0 and 1 (`Sigmoid`). It pulls
    the mean of every latent over examples to ρ, where other penalties act within an example. Means are held within
    [1e-30, 1 - 1e-6].
    """

    weight: float = leaf(0.1, min=0, arm=True)
    """Coefficient."""
    rate: float = leaf(0.05, min=1e-6, max=1 - 1e-6)
    """The firing rate ρ that each latent is to have."""

    def cost(self, out: Pass) -> Array:
        """The divergence, []."""
        # a mean may be tiny: its gradient ρ / ρ̂ is what wakes a latent whose sigmoid is nearly flat
        mean = jnp.clip(jnp.sum(out.charged, axis=1) / out.batch, 1e-30, 1 - 1e-6)
        of_active, of_silent = jnp.log(self.rate) - jnp.log(mean), jnp.log1p(-self.rate) - jnp.log1p(-mean)
        return self.weight * jnp.sum(self.rate * of_active + (1 - self.rate) * of_silent)

    def check(self, experiment: Any) -> str | None:
        """Latents lie between 0 and 1."""
        cls = type(experiment.activation)
        if cls is Sigmoid or is_own(cls):
            return None
        return f"FiringRateKL needs latents between 0 and 1, got {cls.__name__}, allowed: Sigmoid, or one of your own"


def _without_gradient(penalty: Penalty, activation: Activation) -> str | None:
    cls, name = type(activation), type(penalty).__name__
    if cls.active is not Activation.active:
        return None
    return f"{name} has no gradient with {cls.__name__}, allowed: an activation that has, such as JumpRelu"

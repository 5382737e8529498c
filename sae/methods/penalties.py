"""Penalties: the cost of a batch's latents, beside the error of the reconstruction."""

from typing import Any

import jax.numpy as jnp

from sae.core.model import Pass
from sae.core.types import Array, definition, leaf, static
from sae.methods.contract import Activation, Penalty
from sae.methods.schedules import anneal


@definition
class ElasticNet(Penalty):
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

    def cost(self, out: Pass) -> Array:
        """L1 and L2, []."""
        size = jnp.abs(charged(out, self.weighted))
        return jnp.sum(self.l1 * size + self.l2 * size * size) / out.batch


@definition
class Lp(Penalty):
    """`weight * mean_b sum_i f_bi^p`: the smaller p, the closer to a count of the active latents.

    p falls in a straight line from `p_start` to `p`, from the share `anneal_from` of training to its end, after
    Karvonen et al. 2024, arXiv 2408.00113; they also rescale the coefficient as p falls, which is not done here.
    Latents up to `floor` cost nothing, as f^p has no bounded derivative at 0.
    """

    weight: float = leaf(0.1, min=0, arm=True)
    """Coefficient."""
    p: float = leaf(0.5, min=0.01, max=2)
    """Exponent at the end of training."""
    p_start: float = leaf(1.0, min=0.01, max=2)
    """Exponent at the start."""
    anneal_from: float = leaf(0.0, min=0, max=1)
    """Share of training after which p begins to fall."""
    floor: float = leaf(1e-5, min=0)
    """Smallest latent that is charged."""
    root: bool = static(False)
    """Charge (sum_i f_bi^p)^(1/p), as SAELens does."""
    weighted: bool = static(False)
    """Weight each latent by its decoder row's norm."""

    def tied_to_length(self) -> str | None:
        """The exponent falls over a share of the run."""
        falls = self.p != self.p_start
        return f"p falls from {self.p_start:g} to {self.p:g} over a share of the run" if falls else None

    def exponent(self, out: Pass) -> Array:
        """p at this step, []."""
        share = (out.step / out.n_steps - self.anneal_from) / jnp.maximum(1 - self.anneal_from, 1e-9)
        return anneal(self.p_start, self.p, share)

    def cost(self, out: Pass) -> Array:
        """The cost at this step's p, []."""
        p, size = self.exponent(out), jnp.abs(charged(out, self.weighted))
        counted = size > self.floor
        powers = jnp.where(counted, jnp.where(counted, size, 1.0) ** p, 0.0)
        if not self.root:
            return self.weight * jnp.sum(powers) / out.batch
        total = jnp.sum(powers, axis=0)
        roots = jnp.where(total > 0, jnp.where(total > 0, total, 1.0) ** (1 / p), 0.0)
        return self.weight * jnp.sum(roots) / out.batch


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
        cls = type(experiment.activation)
        if cls.active is not Activation.active:
            return None
        return f"L0 has no gradient with {cls.__name__}, allowed: an activation that has, such as JumpRelu"


def charged(out: Pass, weighted: bool) -> Array:
    """The values that a penalty charges, [d_sae, batch]; weighted, times the norms of the decoder rows."""
    return out.charged * out.norms[:, None] if weighted else out.charged

"""Penalties on the size of latents: sums of their powers."""

import jax
import jax.numpy as jnp

from sae.core.model import Pass
from sae.core.types import Array, definition, leaf, static
from sae.methods.contract import Penalty
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
class NormalizedL1(Penalty):
    """`weight * mean_b (sum_i abs(f_bi) / ‖x_b‖)`: L1 as a share of the input's norm, of OpenAI's `loss.py`.

    Gao et al. 2024, arXiv 2406.04093. Inputs that are 0 cost nothing. It goes with `NormalizedMse`.
    """

    weight: float = leaf(0.1, min=0, arm=True)
    """Coefficient."""
    weighted: bool = static(False)
    """Weight each latent by its decoder row's norm."""

    def cost(self, out: Pass) -> Array:
        """The cost, []."""
        squared = jnp.sum(out.x**2, axis=0)
        scale = jnp.where(squared > 0, jax.lax.rsqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)
        return self.weight * jnp.sum(jnp.abs(charged(out, self.weighted)) * scale) / out.batch


@definition
class Lp(Penalty):
    """`weight * mean_b sum_i f_bi^p`: the smaller p, the closer to a count of the active latents.

    p falls in a straight line from `p_start` to `p`, from the share `anneal_from` of training to its end, after
    Karvonen et al. 2024, arXiv 2408.00113. Latents up to `floor` cost nothing, as f^p has no bounded derivative at 0.

    `rescaled` multiplies the coefficient by `sum_bi f_bi^p_start / sum_bi f_bi^p`, held fixed: the penalty keeps the
    size that it has at p_start. dictionary_learning's PAnneal changes p some ten times and multiplies by the ratio of
    the sums at the old and the new p, over the batches before each change. That needs a state; its ratios multiply to
    this one where latents do not change, and else this one also follows the latents.
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
    rescaled: bool = static(False)
    """Keep the penalty's size as p falls."""
    root: bool = static(False)
    """Charge (sum_i f_bi^p)^(1/p), as SAELens does."""
    weighted: bool = static(False)
    """Weight each latent by its decoder row's norm."""

    def tied_to_length(self) -> str | None:
        """The exponent falls over a share of the run."""
        if self.p != self.p_start:
            return f"p falls from {self.p_start:g} to {self.p:g} over a share of the run"
        return super().tied_to_length()

    def exponent(self, out: Pass) -> Array:
        """p at this step, []."""
        share = (out.step / out.n_steps - self.anneal_from) / jnp.maximum(1 - self.anneal_from, 1e-9)
        return anneal(self.p_start, self.p, share)

    def cost(self, out: Pass) -> Array:
        """The cost at this step's p, []."""
        size = jnp.abs(charged(out, self.weighted))
        norms = lambda p: self._norms(size, p)
        total = jnp.sum(norms(self.exponent(out)))
        if self.rescaled:
            at_start = jnp.sum(norms(self.p_start))
            safe = jnp.where(total > 0, total, 1.0)
            total = total * jax.lax.stop_gradient(jnp.where(total > 0, at_start / safe, 1.0))
        return self.weight * total / out.batch

    def _norms(self, size: Array, p: Array | float) -> Array:
        """sum_i f_i^p of each example, or its 1/p-th power, [batch]."""
        total = jnp.sum(powers(size, p, self.floor), axis=0)
        return powers(total, 1 / p) if self.root else total


@definition
class SquareRoot(Penalty):
    """`weight * mean_b sum_i sqrt(f_bi)`, as in saex; `Lp` with p = 1/2 throughout.

    Latents up to `floor` cost nothing, as the root has no bounded derivative at 0.
    """

    weight: float = leaf(0.1, min=0, arm=True)
    """Coefficient."""
    floor: float = leaf(1e-5, min=0)
    """Smallest latent that is charged."""
    weighted: bool = static(False)
    """Weight each latent by its decoder row's norm."""

    def cost(self, out: Pass) -> Array:
        """The cost, []."""
        return self.weight * jnp.sum(powers(jnp.abs(charged(out, self.weighted)), 0.5, self.floor)) / out.batch


def charged(out: Pass, weighted: bool) -> Array:
    """The values that a penalty charges, [d_sae, batch]; weighted, times the norms of the decoder rows."""
    return out.charged * out.norms[:, None] if weighted else out.charged


def powers(size: Array, p: Array | float, floor: Array | float = 0.0) -> Array:
    """size^p, elementwise, where size exceeds the floor, else 0; its gradient is finite everywhere."""
    counted = size > floor
    return jnp.where(counted, jnp.where(counted, size, 1.0) ** p, 0.0)

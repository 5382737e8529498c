"""Auxiliary losses: costs that give dead latents a gradient, and a cost of the weights."""

import functools
import itertools
from typing import Literal

import jax
import jax.numpy as jnp

from sae.core.model import Pass, matmul, own
from sae.core.sparse import undivided
from sae.core.types import Array, definition, leaf, static
from sae.methods.activations import relu
from sae.methods.contract import Auxiliary
from sae.methods.lazily import cost_where, run_where
from sae.methods.top_k import k_largest

FEW = 4  # up to d_sae / 4 dead latents are computed alone


@definition
class NoAuxiliary(Auxiliary):
    """No auxiliary loss."""

    def cost(self, out: Pass) -> float:
        """0."""
        return 0.0


@definition
class SquaredWeights(Auxiliary):
    """`weight * (sum of W_enc² + sum of W_dec²)`: weight decay in the loss, as in Ng 2011, "CS294A Lecture notes".

    Ng has λ/2 before the sum, so `weight` is half of his λ.

    The minimum then has a formula. The optimizer's `weight_decay` is decoupled instead: Adam
    does not divide it by the size of the gradients.
    """

    weight: float = leaf(1e-4, min=0)
    """Coefficient."""

    def cost(self, out: Pass) -> Array:
        """The cost, []."""
        return self.weight * (jnp.sum(out.sae.W_enc[...] ** 2) + jnp.sum(out.sae.W_dec[...] ** 2))


@definition
class AuxK(Auxiliary):
    """The k dead latents with the largest pre-activations reconstruct the error. Gao et al. 2024, arXiv 2406.04093.

    With e = y - x̂ held fixed and ê = W_decᵀ of those latents, without b_dec:
    "openai" (and dictionary_learning): `weight * Σ_b ‖e - ê‖² / Σ_b ‖e - ē‖²`, latents through a ReLU;
    "saelens": `weight * min(n_dead / k, 1) * mean_b ‖e - ê‖²`, latents as they are.
    Beside `AbsTopK` too it is the largest that count, not the most negative. SAELens' BatchTopK takes the largest
    `z_i ‖W_dec,i‖`, which are the same where decoder rows have norm 1.
    """

    weight: float = leaf(1 / 32, min=0)
    """Coefficient; 1/32 is Gao et al.'s, SAELens has 1."""
    k: int | None = static(None, min=1)
    """Dead latents per example; None for half of d_out, which is d_in but for a transcoder."""
    form: Literal["openai", "saelens"] = static("openai")
    """Whose definition."""

    def cost(self, out: Pass) -> Array:
        """The cost, []; 0 where no latent is dead, and nothing is computed where none is in any lane."""
        d_sae, n_dead = out.dead.shape[0], jnp.sum(out.dead)
        error = jax.lax.stop_gradient(out.y - out.x_hat)
        k = min(self.k or max(1, out.y.shape[0] // 2), d_sae)
        sizes = (max(1, d_sae // FEW), d_sae) if undivided() else (d_sae,)
        cost = functools.partial(_cost, k=k, form=self.form, precision=out.sae.precision)
        costs = tuple(functools.partial(cost, slots=size) for size in sizes)
        needed = tuple((n_dead > few) & (n_dead <= most) for few, most in itertools.pairwise((0, *sizes)))
        return self.weight * cost_where(costs, needed, (out.sae.W_dec[...], out.pre_acts), (error, out.dead))


@definition
class GhostGradients(Auxiliary):
    """Dead latents reconstruct half of the error through an exponential. Jermyn & Templeton 2024, Anthropic.

    "Circuits Updates - January 2024". With e = y - x̂ and g = W_decᵀ exp(z) of the dead latents, without b_dec, g scaled
    in each example to the norm ‖e‖ / 2: `weight * c * mean_b ‖e - g‖²`. The number c makes the cost as large as the
    squared error mean_b ‖e‖² itself. e, the scales and c are held fixed. SAELens, which had it, took a c for each
    example and dimension, which changes the gradient's direction; this one is a single number, as in the text.
    """

    weight: float = leaf(1.0, min=0)
    """Coefficient."""

    def cost(self, out: Pass) -> Array:
        """The cost, []; 0 where no latent is dead, and nothing is computed where none is in any lane."""
        error = jax.lax.stop_gradient(out.y - out.x_hat)
        cost = functools.partial(_ghost, precision=out.sae.precision)
        inputs = (out.sae.W_dec[...], out.pre_acts)
        return self.weight * cost_where((cost,), (jnp.any(out.dead),), inputs, (error, out.dead))


@definition
class PreActivationLoss(Auxiliary):
    """Latents below their threshold θ are pulled up: `weight * mean_b sum_i max(θ_i - z_bi, 0) ‖W_dec,i‖`.

    For `JumpRelu`, whose thresholds it also moves; θ is 0 for activations without a threshold of each latent.
    "anthropic" takes all latents, "Circuits Updates - January 2025"; "saelens" takes the dead ones alone.
    """

    weight: float = leaf(3e-6, min=0)
    """Coefficient; 3e-6 is Anthropic's."""
    form: Literal["saelens", "anthropic"] = static("saelens")
    """Whose definition."""

    def cost(self, out: Pass) -> Array:
        """The cost, []."""
        threshold = own(out.sae).get("threshold", jnp.zeros(()))
        below = relu((threshold[:, None] if threshold.ndim else 0.0) - out.pre_acts) * out.norms[:, None]
        charged = below if self.form == "anthropic" else jnp.where(out.dead[:, None], below, 0.0)
        return self.weight * jnp.sum(charged) / out.batch


def _cost(
    W_dec: Array, pre_acts: Array, error: Array, dead: Array, k: int, slots: int, form: str, precision: str
) -> Array:
    """AuxK's cost without its weight, [], where some latents are dead, and no more than `slots`."""
    n_dead = jnp.sum(dead)
    if slots < dead.shape[0]:  # the products of the dead latents alone
        rows = jnp.nonzero(dead, size=slots, fill_value=0)[0]
        W_dec, pre_acts, dead = W_dec[rows], pre_acts[rows], jnp.arange(slots) < n_dead
    dead, nothing = dead[:, None], 0.0 if form == "openai" else -jnp.inf
    # all dead latents are chosen where there are no more than k
    every = jnp.broadcast_to(dead, pre_acts.shape)
    largest = lambda: k_largest(jnp.where(dead, pre_acts, -jnp.inf), min(k, slots), above=nothing)
    chosen = run_where(n_dead > k, largest, every)
    values = relu(pre_acts) if form == "openai" else pre_acts
    rest = error - matmul(W_dec.T, jnp.where(chosen, values, 0.0), precision)
    squared = jnp.sum(rest**2)
    if form == "saelens":
        return jnp.minimum(n_dead / k, 1.0) * squared / error.shape[1]
    variation = jnp.sum((error - jnp.mean(error, axis=1, keepdims=True)) ** 2)
    return jnp.where(variation > 0, squared / jnp.where(variation > 0, variation, 1.0), 0.0)


def _ghost(W_dec: Array, pre_acts: Array, error: Array, dead: Array, precision: str) -> Array:
    """The cost of `GhostGradients` without its weight, [], where some latent is dead."""
    z = jnp.where(dead[:, None], pre_acts, -jnp.inf)
    # an example's scale is set afterwards, so its largest exponential may be 1
    values = jnp.exp(z - jax.lax.stop_gradient(jnp.max(z, axis=0)))
    ghost, norm = matmul(W_dec.T, values, precision), lambda a: jnp.sqrt(jnp.sum(a * a, axis=0))
    scale = norm(error) / jnp.maximum(2 * norm(ghost), 1e-30)
    squared = jnp.sum((error - ghost * jax.lax.stop_gradient(scale)) ** 2)
    whole = jnp.sum(error**2)
    share = jnp.where(squared > 0, whole / jnp.where(squared > 0, squared, 1.0), 0.0)
    return jax.lax.stop_gradient(share) * squared / error.shape[1]

"""Auxiliary losses: costs that give dead latents a gradient."""

import functools
import itertools
from collections.abc import Callable
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp

from sae.core.model import Pass, matmul
from sae.core.sparse import undivided
from sae.core.types import Array, definition, leaf, static
from sae.methods.activations import relu
from sae.methods.contract import Auxiliary
from sae.methods.top_k import k_largest

T = TypeVar("T")
FEW = 4  # up to d_sae / 4 dead latents are computed alone


@definition
class NoAuxiliary(Auxiliary):
    """No auxiliary loss."""

    def cost(self, out: Pass) -> float:
        """0."""
        return 0.0


@definition
class AuxK(Auxiliary):
    """The k dead latents with the largest pre-activations reconstruct the error. Gao et al. 2024, arXiv 2406.04093.

    With e = y - x̂ held fixed and ê = W_decᵀ of those latents, without b_dec:
    "openai" (and dictionary_learning): `weight * Σ_b ‖e - ê‖² / Σ_b ‖e - ē‖²`, latents through a ReLU;
    "saelens": `weight * min(n_dead / k, 1) * mean_b ‖e - ê‖²`, latents as they are.
    """

    weight: float = leaf(1 / 32, min=0)
    """Coefficient; 1/32 is Gao et al.'s, SAELens has 1."""
    k: int | None = static(None, min=1)
    """Dead latents per example; None for half of d_in."""
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
        return self.weight * _where(costs, needed, (out.sae.W_dec[...], out.pre_acts), (error, out.dead))


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
    chosen = _run(n_dead > k, largest, every)
    values = relu(pre_acts) if form == "openai" else pre_acts
    rest = error - matmul(W_dec.T, jnp.where(chosen, values, 0.0), precision)
    squared = jnp.sum(rest**2)
    if form == "saelens":
        return jnp.minimum(n_dead / k, 1.0) * squared / error.shape[1]
    variation = jnp.sum((error - jnp.mean(error, axis=1, keepdims=True)) ** 2)
    return jnp.where(variation > 0, squared / jnp.where(variation > 0, variation, 1.0), 0.0)


def _run(needed: Array, function: Callable[[], T], otherwise: T) -> T:
    """function(), or `otherwise` where it is not needed. Over lanes it runs if any of them needs it.

    `lax.cond` would compute both sides there.
    """
    return jax.lax.while_loop(lambda args: args[0], lambda args: (args[0] & False, function()), (needed, otherwise))[1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _where(
    costs: tuple[Callable[..., Array], ...], needed: tuple[Array, ...], inputs: tuple[Array, ...], fixed: tuple
) -> Array:
    """The one of some costs(*inputs, *fixed) that is needed, [], or 0; differentiable by the inputs. See `_run`."""
    value = jnp.zeros_like(inputs[0][0, 0])
    for cost, wanted in zip(costs, needed, strict=True):
        value = _run(wanted, lambda cost=cost: cost(*inputs, *fixed), value)
    return value


def _where_forward(
    costs: tuple[Callable[..., Array], ...], needed: tuple[Array, ...], inputs: tuple[Array, ...], fixed: tuple
) -> tuple[Array, tuple]:
    value, gradients = jax.tree.map(jnp.zeros_like, (inputs[0][0, 0], inputs))
    for cost, wanted in zip(costs, needed, strict=True):
        both = lambda cost=cost: jax.value_and_grad(lambda inputs: cost(*inputs, *fixed))(inputs)
        value, gradients = _run(wanted, both, (value, gradients))
    return value, gradients


def _where_backward(costs: tuple, gradients: tuple, g: Array) -> tuple:
    return None, jax.tree.map(lambda gradient: g * gradient, gradients), None


_where.defvjp(_where_forward, _where_backward)

"""What is computed only where it is needed, under `vmap` too, where `lax.cond` would compute both of its sides."""

import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from sae.core.types import Array

T = TypeVar("T")


def run_where(needed: Array, function: Callable[[], T], otherwise: T) -> T:
    """function(), or `otherwise` where it is not needed. Over lanes it runs if any of them needs it.

    `lax.cond` would compute both sides there.
    """
    return jax.lax.while_loop(lambda args: args[0], lambda args: (args[0] & False, function()), (needed, otherwise))[1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def cost_where(
    costs: tuple[Callable[..., Array], ...], needed: tuple[Array, ...], inputs: tuple[Array, ...], fixed: tuple
) -> Array:
    """The one of some costs(*inputs, *fixed) that is needed, [], or 0; differentiable by the inputs."""
    value = jnp.zeros_like(inputs[0][0, 0])
    for cost, wanted in zip(costs, needed, strict=True):
        value = run_where(wanted, lambda cost=cost: cost(*inputs, *fixed), value)
    return value


def _cost_forward(
    costs: tuple[Callable[..., Array], ...], needed: tuple[Array, ...], inputs: tuple[Array, ...], fixed: tuple
) -> tuple[Array, tuple]:
    value, gradients = jax.tree.map(jnp.zeros_like, (inputs[0][0, 0], inputs))
    for cost, wanted in zip(costs, needed, strict=True):
        both = lambda cost=cost: jax.value_and_grad(lambda inputs: cost(*inputs, *fixed))(inputs)
        value, gradients = run_where(wanted, both, (value, gradients))
    return value, gradients


def _cost_backward(costs: tuple, gradients: tuple, g: Array) -> tuple:
    return None, jax.tree.map(lambda gradient: g * gradient, gradients), None


cost_where.defvjp(_cost_forward, _cost_backward)

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
def cost_where(cost: Callable[..., Array], needed: Array, inputs: tuple[Array, ...], fixed: tuple[Array, ...]) -> Array:
    """cost(*inputs, *fixed), [], or 0 where it is not needed; differentiable by the inputs. See `run_where`."""
    return run_where(needed, lambda: cost(*inputs, *fixed), jnp.zeros_like(inputs[0][0, 0]))


def _cost_forward(cost: Callable[..., Array], needed: Array, inputs: tuple, fixed: tuple) -> tuple[Array, tuple]:
    both = lambda: jax.value_and_grad(lambda inputs: cost(*inputs, *fixed))(inputs)
    value, gradients = run_where(needed, both, jax.tree.map(jnp.zeros_like, (inputs[0][0, 0], inputs)))
    return value, gradients


def _cost_backward(cost: Callable[..., Array], gradients: tuple, g: Array) -> tuple:
    return None, jax.tree.map(lambda gradient: g * gradient, gradients), None


cost_where.defvjp(_cost_forward, _cost_backward)

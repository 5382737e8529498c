"""Activations that look at one pre-activation at a time."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from sae.core.definitions import adopted
from sae.core.model import Sae
from sae.core.types import Array, definition
from sae.methods.contract import Activation

T = TypeVar("T")


@definition
class Relu(Activation):
    """max(0, z). Bricken et al. 2023, "Towards Monosemanticity"."""

    def __call__(self, sae: Sae, pre_acts: Array) -> Array:
        """pre_acts [d_sae, batch] -> latents [d_sae, batch]."""
        return relu(pre_acts)


@definition
class Sigmoid(Activation):
    """1 / (1 + e^-z), between 0 and 1, as in the sparse autoencoder of Ng 2011, "CS294A Lecture notes".

    It goes with the penalty `FiringRateKL`. No latent is ever exactly 0, so L0 is d_sae and no latent counts as dead.
    """

    def __call__(self, sae: Sae, pre_acts: Array) -> Array:
        """pre_acts [d_sae, batch] -> latents [d_sae, batch]."""
        return jax.nn.sigmoid(pre_acts)


@definition
class Tanh(Activation):
    """tanh z, between -1 and 1: the other unit of classic autoencoders, Rumelhart, Hinton & Williams 1986.

    No latent is ever exactly 0 in practice, so L0 is d_sae and no latent counts as dead.
    """

    def __call__(self, sae: Sae, pre_acts: Array) -> Array:
        """pre_acts [d_sae, batch] -> latents [d_sae, batch]."""
        return jnp.tanh(pre_acts)


@jax.custom_jvp
def relu(z: Array) -> Array:
    """max(0, z), whose derivative reads the result and not z, so that z need not be kept (or computed again)."""
    return jnp.maximum(z, 0)


@relu.defjvp
def _relu_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    latents = relu(*primals)
    return latents, jnp.where(latents > 0, *tangents, 0)


def elementwise(function: T) -> T:
    """A definition with `__call__(self, pre_acts)` and no base class, made an Activation of the same name and fields.

    A function of the pre-activations alone needs nothing else of the contract. Other values are returned as they are.
    """
    return adopted(function, Activation, "__call__", _called_with_pre_acts)


def _called_with_pre_acts(cls: type) -> dict[str, Any]:
    return {"__call__": lambda self, sae, pre_acts: cls.__call__(self, pre_acts)}

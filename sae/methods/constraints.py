"""Constraints on the parameters: the norms of decoder rows. What else may be held is in `contract.Constraint`."""

import jax.numpy as jnp

from sae.core.model import Sae, replace, unit_rows
from sae.core.types import definition, static
from sae.methods.contract import Constraint


@definition
class Free(Constraint):
    """Decoder rows of any norm. A penalty on latents then leaks into the decoder's scale unless it is `weighted`."""


@definition
class UnitNorm(Constraint):
    """Decoder rows of Euclidean norm 1 after every step. Bricken et al. 2023, Appendix.

    The part of the gradient that is parallel to its row is removed first: it only changes the norm, which
    is reset anyway, and would otherwise disturb Adam's moments.
    """

    def gradient(self, sae: Sae, gradient: Sae) -> Sae:
        """g_i - (g_i · W_dec,i) W_dec,i for every decoder row i (rows are unit)."""
        g, W = gradient.W_dec[...], sae.W_dec[...]
        return replace(gradient, W_dec=g - jnp.sum(g * W, axis=1, keepdims=True) * W)

    def project(self, sae: Sae) -> Sae:
        """Decoder rows scaled to norm 1."""
        return replace(sae, W_dec=unit_rows(sae.W_dec[...]))


@definition
class AtMostUnitNorm(Constraint):
    """Decoder rows of Euclidean norm 1 at most: longer ones are scaled to 1, W_dec,i / max(1, ‖W_dec,i‖).

    It is the projection of Mairal et al. 2009, "Online dictionary learning", and keeps the gradient as it is.
    """

    def project(self, sae: Sae) -> Sae:
        """Decoder rows scaled to norm 1 where they are longer."""
        W = sae.W_dec[...]
        return replace(sae, W_dec=W / jnp.sqrt(jnp.maximum(1.0, jnp.sum(W * W, axis=1, keepdims=True))))


@definition
class UnitNormNoBias(UnitNorm):
    """`UnitNorm` without a decoder bias: x̂ = W_decᵀ latents, as in Sharkey, Braun & Millidge 2022."""

    b_dec: bool = static(False)
    """Have a decoder bias; without one it is 0."""

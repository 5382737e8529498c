"""Constraints on the parameters, kept by the gradient before each update and by the parameters after it."""

import jax.numpy as jnp

from sae.model import Sae, replace, unit_rows
from sae.types import definition


@definition
class Free:
    """No constraint. A penalty on latents then leaks into the decoder's scale unless it is `weighted`."""

    def gradient(self, sae: Sae, gradient: Sae) -> Sae:
        """The gradient as it is."""
        return gradient

    def project(self, sae: Sae) -> Sae:
        """The parameters as they are."""
        return sae


@definition
class UnitNorm:
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

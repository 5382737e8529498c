"""Constraints on the parameters, kept by the gradient before each update and by the parameters after it."""

from typing import Any

import jax.numpy as jnp

from sae.core.model import Sae, replace, unit_rows
from sae.core.types import definition, static
from sae.methods.contract import Constraint
from sae.methods.tasks import Transcoder


@definition
class Free(Constraint):
    """No constraint. A penalty on latents then leaks into the decoder's scale unless it is `weighted`."""


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
class UnitNormNoBias(Constraint):
    """`UnitNorm`, and no decoder bias: x̂ = W_decᵀ latents, as in Sharkey, Braun & Millidge 2022. Start it at zero.

    With `tied`, the encoder is the decoder, W_enc = W_dec: one matrix with the gradients of both.
    """

    tied: bool = static(False)
    """Hold W_enc = W_dec."""

    def check(self, experiment: Any) -> str | None:
        """A transcoder's encoder and decoder are of two spaces."""
        if self.tied and isinstance(experiment.task, Transcoder):
            return "tied: got True, allowed: False with transcoder, whose encoder and decoder are of two spaces"
        return None

    def gradient(self, sae: Sae, gradient: Sae) -> Sae:
        """`UnitNorm`'s gradient with 0 for b_dec; if tied, W_dec gets the sum of both matrices' and W_enc gets 0."""
        if self.tied:
            both = gradient.W_enc[...] + gradient.W_dec[...]
            gradient = replace(gradient, W_dec=both, W_enc=jnp.zeros_like(both))
        return replace(UnitNorm().gradient(sae, gradient), b_dec=jnp.zeros_like(gradient.b_dec[...]))

    def project(self, sae: Sae) -> Sae:
        """Decoder rows scaled to norm 1, b_dec zero; if tied, the encoder's rows are the decoder's."""
        sae = replace(UnitNorm().project(sae), b_dec=jnp.zeros_like(sae.b_dec[...]))
        return replace(sae, W_enc=sae.W_dec[...]) if self.tied else sae

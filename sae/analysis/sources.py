"""To which sources does a crosscoder's latent write? (Lindsey et al. 2024, "Sparse crosscoders".)"""

import jax
import jax.numpy as jnp

from sae.core.model import Sae, part_norms, unit_rows
from sae.core.normalization import split
from sae.core.types import Array, UserError


@jax.jit
def norm_shares(sae: Sae) -> Array:
    """‖W_dec,i^s‖ / Σ_t ‖W_dec,i^t‖ of every latent i and source s, [d_sae, n_sources].

    Of two models, a share near 0 or 1 is a latent of one of them alone, near 1/2 one that they share.
    """
    norms = jnp.stack(part_norms(sae), axis=1)
    return norms / jnp.sum(norms, axis=1, keepdims=True)


@jax.jit
def source_cosines(sae: Sae) -> Array:
    """cos(W_dec,i^s, W_dec,i^t) of every latent i between sources s and t, [d_sae, n_sources, n_sources].

    Raises UserError where sources have different widths.
    """
    if len(set(sae.parts)) > 1:
        raise UserError(f"source_cosines: got sources of widths {sae.parts}, allowed: of one width")
    directions = jnp.stack([unit_rows(W) for W in split(sae.W_dec[...], sae.parts)], axis=1)
    return jnp.einsum("isd,itd->ist", directions, directions, precision="highest")

"""How many of the active latents are small? (Founding question, claim S4 c: L2 lets many small values contribute.)"""

import jax
import jax.numpy as jnp

from sae.analysis.members import over_examples
from sae.model import Sae
from sae.types import Array


@jax.jit
def small_latents(sae: Sae, x: Array, below: float = 0.1) -> dict[str, Array]:
    """Latents i of example b with 0 < abs f_bi < `below` max_j abs f_bj.

    `count` [n]: of each example of x [n, d_in]. `share` []: of all non-zero latents of all examples; NaN if there
    are none.
    """

    def of(rows):
        size = jnp.abs(sae.encode(rows))
        active = size > 0
        return jnp.sum(active & (size < below * jnp.max(size, axis=1, keepdims=True)), axis=1), jnp.sum(active, axis=1)

    small, active = over_examples(of, x)
    return {"count": small, "share": jnp.sum(small) / jnp.sum(active)}

"""How many of the active latents are small? (Founding question, claim S4 c: L2 lets many small values contribute.)"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import pandas as pd

from sae.analysis import members
from sae.analysis.ask import by_cohort
from sae.analysis.members import over_examples
from sae.core.model import Sae
from sae.core.types import Array


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


def _means(sae: Sae, x: Array) -> dict[str, Array]:
    found = small_latents(sae, x)
    return {"analysis/small_latents": jnp.mean(found["count"]), "analysis/small_share": found["share"]}


@dataclasses.dataclass(frozen=True)
class SmallLatents:
    """How many of the active latents are small, for a sweep's members: `Sweep(..., measures=[SmallLatents()])`."""

    n: int = 4_096
    """Held-out examples, the first ones."""

    columns: ClassVar = {
        "analysis/small_latents": "active latents below 10 % of the example's largest, mean per held-out example",
        "analysis/small_share": "share of them among all active latents of all held-out examples",
    }

    def __call__(self, results) -> pd.DataFrame:
        """The results of a run -> a row per member. Raises UserError where data or weights cannot be read."""
        return by_cohort(results, lambda saes, data, _: members.each(_means, saes, data.held_out[: self.n]))

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
from sae.store.results import Results


@jax.jit
def small_latents(sae: Sae, x: Array, below: float = 0.1) -> dict[str, Array]:
    """Count the small latents of examples x [n, d_in]: latents i with 0 < abs f_i < `below` max_j abs f_j.

    `count` [n] is their number on each example, `share` [] their share of all non-zero latents of all examples; NaN if
    there are none.
    """

    def counts(rows: Array) -> tuple[Array, Array]:
        size = jnp.abs(sae.encode(rows))
        active = size > 0
        return jnp.sum(active & (size < below * jnp.max(size, axis=1, keepdims=True)), axis=1), jnp.sum(active, axis=1)

    small, active = over_examples(counts, x)
    return {"count": small, "share": jnp.sum(small) / jnp.sum(active)}


def _means(sae: Sae, x: Array) -> dict[str, Array]:
    found = small_latents(sae, x)
    return {"analysis/small_latents": jnp.mean(found["count"]), "analysis/small_share": found["share"]}


@dataclasses.dataclass(frozen=True)
class SmallLatents:
    """How many of the active latents are small, for a sweep's members: `Sweep(..., measures=[SmallLatents()])`."""

    n: int = 4_096
    """Number of held-out examples, the first ones."""

    columns: ClassVar[dict[str, str]] = {
        "analysis/small_latents": "active latents below 10 % of the example's largest, mean per held-out example",
        "analysis/small_share": "share of them among all active latents of all held-out examples",
    }

    def __call__(self, results: Results) -> pd.DataFrame:
        """The results of a run -> a row per member. Raises UserError if data or weights cannot be read."""
        ask = lambda saes, data, _: members.each(_means, saes, data.held_out[: self.n, : saes.d_in])
        return by_cohort(results, ask, of_inputs=True)

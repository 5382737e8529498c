"""How much of the error is wrong magnitudes on the right latents? (Claim P5 C.)

The support of each example, its active latents, is held fixed, and their values are chosen anew. What the error loses
then was shrinkage, or another fault of the encoder's values; what is left, the choice of latents or the dictionary has.
After Gated SAEs (Rajamanoharan et al. 2024, arXiv 2404.16014), who rescale latents, and Wright & Sharkey 2024, who
train the values again.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import pandas as pd

from sae.analysis import members
from sae.analysis.ask import Data, by_cohort
from sae.analysis.members import over_examples
from sae.core.model import Sae
from sae.core.types import Array
from sae.store.results import Results


def nonnegative(W: Array, y: Array, latents: Array, sweeps: int = 50) -> Array:
    """argmin_f ‖y - Wᵀ f‖² over f >= 0 that is 0 wherever `latents` is, for each column: [d_sae, batch].

    W [d_sae, d_in], y [d_in, batch]; the search begins at latents [d_sae, batch], none below 0. Each sweep minimises
    over one latent after the other, of all columns at once, which never raises the error.
    """
    precise = lambda a, b: jnp.matmul(a, b, precision="highest")
    support, gram, target = latents != 0, precise(W, W.T), precise(W, y)
    scale = jnp.maximum(jnp.diagonal(gram), 1e-12)

    def minimise(i: Array, f: Array) -> Array:
        j = i % len(W)
        better = jnp.maximum(f[j] + (target[j] - precise(gram[j], f)) / scale[j], 0.0)
        return f.at[j].set(jnp.where(support[j], better, 0.0))

    return jax.lax.fori_loop(0, sweeps * len(W), minimise, latents)


def refit(sae: Sae, x: Array, sweeps: int = 50) -> dict[str, Array]:
    """What non-negative values that fit best would gain on examples x [n, d_in], supports and decoder fixed: [] each.

    `fvu` is that of the autoencoder, `fvu_refit` that of its refitted latents, `drop` = 1 - fvu_refit / fvu. Latents
    below 0 begin at 0 and stay there.
    """
    W, b_dec = sae.W_dec[...], sae.b_dec[...]

    def errors(rows: Array) -> tuple[Array, Array]:
        latents, y = jnp.maximum(sae.encode(rows), 0).T, (rows - b_dec).T
        error = lambda f: jnp.sum((y - jnp.matmul(W.T, f, precision="highest")) ** 2, axis=0)
        return error(latents), error(nonnegative(W, y, latents, sweeps))

    before, after = (jnp.sum(error) for error in over_examples(errors, x))
    variation = jnp.sum((x - jnp.mean(x, axis=0)) ** 2)
    return {"fvu": before / variation, "fvu_refit": after / variation, "drop": 1 - after / before}


@dataclasses.dataclass(frozen=True)
class Refit:
    """How much lower each member's FVU would be with the best non-negative values: `Sweep(..., measures=[Refit()])`."""

    n: int = 1_024
    """Number of held-out examples, the first ones."""
    sweeps: int = 50
    """Sweeps of coordinate descent."""

    columns: ClassVar[dict[str, str]] = {
        "analysis/fvu_refit": "FVU with each example's active latents refitted by non-negative least squares",
        "analysis/refit_drop": "1 - fvu_refit / FVU, both on the examples of the measure",
    }

    def __call__(self, results: Results) -> pd.DataFrame:
        """The results of a run -> a row per member. Raises UserError if data or weights cannot be read."""

        def ask(saes: Sae, data: Data, _: pd.DataFrame) -> dict[str, Array]:
            found = members.each(refit, saes, data.held_out[: self.n], sweeps=self.sweeps)
            return {"analysis/fvu_refit": found["fvu_refit"], "analysis/refit_drop": found["drop"]}

        return by_cohort(results, ask)

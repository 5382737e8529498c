"""Is it a one-to-one mapping of pixels, which would reproduce anything? (Founding question, claim S3.)

An autoencoder that copies gives back what no training example looks like, passes every direction on, and has latents
that are single pixels. A ReLU autoencoder with W_dec = [I; -I] does: 0, 1, 1 by the three measures below.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import pandas as pd

from sae.analysis import members
from sae.analysis.ask import by_cohort
from sae.analysis.members import over_examples
from sae.core.model import Sae, unit_rows
from sae.core.types import Array, Key


@jax.jit
def fvu(sae: Sae, x: Array) -> Array:
    """sum_b ‖x_b - x̂_b‖² / sum_b ‖x_b - x̄‖² of examples x [n, d_in], []: the `eval/fvu` of the tables."""
    errors = over_examples(lambda rows: jnp.sum((rows - sae(rows)) ** 2, axis=1), x)
    return jnp.sum(errors) / jnp.sum((x - jnp.mean(x, axis=0)) ** 2)


@jax.jit
def permute_pixels(key: Key, x: Array) -> Array:
    """Examples [n, d_in], the pixels of each in a random order of its own: the same values, no structure."""
    return jax.random.permutation(key, x, axis=1, independent=True)


@jax.jit
def degrees_of_freedom(sae: Sae, x: Array) -> Array:
    """tr(∂x̂/∂x) / d_in at each example of x [n, d_in], [n]: the share of directions that pass.

    Exact: d_in backward passes, the i-th giving row i of the Jacobian. 1 for the identity, r / d_in for a projection on
    r directions, 0 for k-means. The effective degrees of freedom of a smoother (Hastie, Tibshirani & Friedman 2009,
    section 7.6).
    """

    def trace(rows):
        # backwards: bfloat16 products have no forward derivative
        _, pull = jax.vjp(sae, rows)
        row = lambda i: pull(jnp.zeros_like(rows).at[:, i].set(1))[0][:, i]
        return jnp.sum(jax.lax.map(row, jnp.arange(rows.shape[1])), axis=0) / rows.shape[1]

    return over_examples(trace, x)


def copy_index(sae: Sae) -> Array:
    """mean_j max_i W_dec,ji², rows scaled to norm 1, []: 1 if every latent writes one pixel, 1 / d_in if all alike."""
    return jnp.mean(jnp.max(unit_rows(sae.W_dec[...]) ** 2, axis=1))


def copying(sae: Sae, x: Array, key: Key) -> dict[str, Array]:
    """The measures of examples x [n, d_in], [] each: `fvu`, `fvu_permuted`, `degrees_of_freedom`, `copy_index`."""
    return {
        "fvu": fvu(sae, x),
        "fvu_permuted": fvu(sae, permute_pixels(key, x)),
        "degrees_of_freedom": jnp.mean(degrees_of_freedom(sae, x)),
        "copy_index": copy_index(sae),
    }


@dataclasses.dataclass(frozen=True)
class Copying:
    """The measures of held-out examples, for a sweep's members: `Sweep(..., measures=[Copying()])`."""

    n: int = 512
    """Held-out examples, the first ones: d_in backward passes of each."""
    seed: int = 0
    """Of the order of pixels."""

    columns: ClassVar = {
        "analysis/fvu_permuted": "FVU on held-out examples with their pixels permuted, each in an order of its own",
        "analysis/degrees_of_freedom": "tr(∂x̂/∂x) / d_in, mean over held-out examples: 1 passes every direction",
        "analysis/copy_index": "mean over latents of the largest share of a decoder row's power on one pixel",
    }

    def __call__(self, results) -> pd.DataFrame:
        """The results of a run -> a row per member. Raises UserError where data or weights cannot be read."""

        def ask(saes, data, _):
            found = members.each(copying, saes, data.held_out[: self.n], jax.random.key(self.seed))
            return {name: found[name.removeprefix("analysis/")] for name in self.columns}

        return by_cohort(results, ask)

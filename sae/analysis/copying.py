"""Is an autoencoder a one-to-one mapping of pixels, which would reproduce anything? (Founding question, claim S3.)

An autoencoder that copies reconstructs inputs unlike any training example, passes every direction, and has latents that
are single pixels. A ReLU autoencoder with W_dec = [I; -I] copies: its `fvu_permuted` is 0, its `degrees_of_freedom` and
`copy_index` are 1.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import pandas as pd

from sae.analysis import members
from sae.analysis.ask import Data, by_cohort
from sae.analysis.members import over_examples
from sae.core.model import Sae, unit_rows
from sae.core.types import Array, Key
from sae.store.results import Results


@jax.jit
def fvu(sae: Sae, x: Array) -> Array:
    """The fraction of variance unexplained on examples x [n, d_in], sum_b ‖x_b - x̂_b‖² / sum_b ‖x_b - x̄‖², [].

    The same as `eval/fvu`.
    """
    errors = over_examples(lambda rows: jnp.sum((rows - sae(rows)) ** 2, axis=1), x)
    return jnp.sum(errors) / jnp.sum((x - jnp.mean(x, axis=0)) ** 2)


@jax.jit
def permute_pixels(key: Key, x: Array) -> Array:
    """Examples x [n, d_in] with the pixels of each in its own random order: the same values, no structure."""
    return jax.random.permutation(key, x, axis=1, independent=True)


@jax.jit
def degrees_of_freedom(sae: Sae, x: Array) -> Array:
    """The share of directions that pass: tr(∂x̂/∂x) / d_in at each example of x [n, d_in], [n].

    1 for the identity, r / d_in for a projection on r directions, 0 for k-means. It is exact and takes d_in backward
    passes; the i-th gives row i of the Jacobian. The trace is a smoother's effective degrees of freedom (Hastie,
    Tibshirani & Friedman 2009, section 7.6).
    """

    def trace(rows: Array) -> Array:
        # backward passes, because bfloat16 products have no forward derivative
        _, pull = jax.vjp(sae, rows)
        row = lambda i: pull(jnp.zeros_like(rows).at[:, i].set(1))[0][:, i]
        return jnp.sum(jax.lax.map(row, jnp.arange(rows.shape[1])), axis=0) / rows.shape[1]

    return over_examples(trace, x)


def copy_index(sae: Sae) -> Array:
    """mean_j max_i W_dec,ji², rows scaled to norm 1, []: 1 if each latent writes one pixel, 1 / d_in if all alike."""
    return jnp.mean(jnp.max(unit_rows(sae.W_dec[...]) ** 2, axis=1))


def copying(sae: Sae, x: Array, key: Key) -> dict[str, Array]:
    """`fvu`, `fvu_permuted`, `degrees_of_freedom` (mean) and `copy_index` for examples x [n, d_in], [] each."""
    return {
        "fvu": fvu(sae, x),
        "fvu_permuted": fvu(sae, permute_pixels(key, x)),
        "degrees_of_freedom": jnp.mean(degrees_of_freedom(sae, x)),
        "copy_index": copy_index(sae),
    }


@dataclasses.dataclass(frozen=True)
class Copying:
    """Whether a sweep's members copy their input: `Sweep(..., measures=[Copying()])`."""

    n: int = 512
    """Number of held-out examples, the first ones. Each takes d_in backward passes."""
    seed: int = 0
    """Seed of the orders of pixels."""

    columns: ClassVar[dict[str, str]] = {
        "analysis/fvu_permuted": "FVU on held-out examples with their pixels permuted, each in an order of its own",
        "analysis/degrees_of_freedom": "tr(∂x̂/∂x) / d_in, mean over held-out examples: 1 passes every direction",
        "analysis/copy_index": "mean over latents of the largest share of a decoder row's power on one pixel",
    }

    def __call__(self, results: Results) -> pd.DataFrame:
        """The results of a run -> a row per member. Raises UserError if data or weights cannot be read."""

        def ask(saes: Sae, data: Data, _: pd.DataFrame) -> dict[str, Array]:
            found = members.each(copying, saes, data.held_out[: self.n], jax.random.key(self.seed))
            return {name: found[name.removeprefix("analysis/")] for name in self.columns}

        return by_cohort(results, ask)

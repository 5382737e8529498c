"""How alike are two dictionaries, and how much does L1 shrink what it recovers? (P2 f, P5 A.)"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from sae.analysis import members
from sae.analysis.ask import by_cohort
from sae.analysis.members import over_examples
from sae.core import metrics
from sae.core.model import Sae, unit_rows
from sae.core.types import Array, Key, UserError
from sae.data import Orthonormal


@jax.jit
def mmcs(a: Array, b: Array, key: Key) -> dict[str, Array]:
    """Mean max cosine similarity of two dictionaries a [n, d_in], b [m, d_in], both ways, and its floors, [] each.

    `mmcs` = mean_i max_j cos(a_i, b_j): how well a is found in b, as with a dictionary and one twice as large (Sharkey
    et al. 2022). `mmcs_reverse` = mean_j max_i cos(a_i, b_j). `..._chance`: with a random dictionary in b's place, a
    mean of 16; it grows with m. Signed, as `eval/mmcs`.
    """
    a, alike = unit_rows(a), jnp.ones(len(a))
    found = metrics.mmcs(a, alike, b) | metrics.mmcs_chance(key, a, alike, len(b))
    return {name: value for name, value in found.items() if "weighted" not in name}


def shrinkage(l1: Array, low: float = 0.5, high: float = 1.5) -> Array:
    """gamma = E[â²] / E[a â] for â = max(0, a - λ/2), a ~ U[low, high], λ = l1, of any shape.

    What an L1 penalty λ Σ f beside ‖x - x̂‖² makes of orthonormal features: each has its own one-dimensional problem
    min_f (a - f)² + λ f. gamma is the `eval/shrinkage` of such data, whatever the features' frequency, since sums over
    features and examples are in both parts. With t = λ/2, s = max(low, t):
    ((high - t)³ - (s - t)³) / 3 over (high³ - s³) / 3 - t (high² - s²) / 2. NaN for t >= high, where nothing is left.
    """
    t = jnp.asarray(l1, jnp.float32) / 2
    s = jnp.maximum(low, t)
    squares = ((high - t) ** 3 - (s - t) ** 3) / 3
    products = (high**3 - s**3) / 3 - t * (high**2 - s**2) / 2
    return jnp.where(t < high, squares / products, jnp.nan)


@jax.jit
def shift(sae: Sae, x: Array, features: Array, above: float = 1e-3) -> Array:
    """The mean of a - â over the active features of examples x [n, d_in], []: λ/2 in the closed form.

    features [n_features, d_in] orthonormal rows; a = features·x, â = features·x̂; a feature is active where a > above.
    """
    along = lambda rows: jnp.matmul(rows, features.T, precision="highest")

    def of(rows):
        a = along(rows)
        active = a > above
        return jnp.sum(jnp.where(active, a - along(sae(rows)), 0), axis=1), jnp.sum(active, axis=1)

    differences, active = over_examples(of, x)
    return jnp.sum(differences) / jnp.sum(active)


@dataclasses.dataclass(frozen=True)
class MmcsLarger:
    """How well a member's dictionary is found in one twice as large, which knows the zone without the truth.

    The larger one has twice the latents, the next seed of those the sweep has (the first after the last), and is else
    the same member. Not the same seed: initial rows are drawn one after another, so the larger of one seed begins
    with the rows of the smaller, and two latents that die before they move would be found in each other exactly.
    """

    columns: ClassVar = {
        "analysis/mmcs_larger": "mean over latents of the best cosine of their decoder rows in a dictionary twice as "
        "large, of another seed",
    }

    def __call__(self, results) -> pd.DataFrame:
        """The results of a run -> a row per member; NaN where there is no larger one, or it has diverged.

        Raises UserError where weights cannot be read, or where no member has another of twice its latents.
        """
        finished = results.members.query("status == 'finished'")["member"].tolist()
        pairs = {i: j for i, j in larger(results.definition["members"]).items() if {i, j} <= set(finished)}
        if not pairs:
            raise UserError("MmcsLarger: no member has another of twice its latents and another seed, else the same")
        found = pd.Series(np.nan, index=pd.Index(finished, name="member"))
        widths = {i: results.definition["members"][i]["d_sae"] for i in pairs}
        rows = lambda numbers: jnp.stack([results.sae(i).W_dec[...] for i in numbers])
        for width in set(widths.values()):
            smaller = [i for i in pairs if widths[i] == width]
            both = (rows(smaller), rows([pairs[i] for i in smaller]))
            found[smaller] = np.asarray(members.each(_found_in, both))
        return found.to_frame(*self.columns)


def _found_in(both: tuple[Array, Array]) -> Array:
    smaller, other = both
    return metrics.mmcs(unit_rows(smaller), jnp.ones(len(smaller)), other)["mmcs"]


def larger(flats: list[Mapping[str, Any]]) -> dict[int, int]:
    """Flattened members -> {member: the one with twice its latents and the next seed}, of those that have one."""
    ours = ("name", "d_sae", "seed")
    key = lambda flat, d_sae, seed: (
        d_sae, seed, *(f"{name}={value!r}" for name, value in flat.items() if name not in ours)
    )  # fmt: skip
    known = {key(flat, flat["d_sae"], flat["seed"]): i for i, flat in enumerate(flats)}
    seeds = sorted({flat["seed"] for flat in flats})
    following = dict(zip(seeds, seeds[1:] + seeds[:1], strict=True))
    found = {i: known.get(key(flat, 2 * flat["d_sae"], following[flat["seed"]])) for i, flat in enumerate(flats)}
    return {i: j for i, j in found.items() if j is not None and flats[i]["seed"] != flats[j]["seed"]}


@dataclasses.dataclass(frozen=True)
class Shrinkage:
    """How far members trained on `Orthonormal` data are from the closed form of L1 shrinkage."""

    n: int = 16_384
    """Examples that the shift is measured on, of a key of their own."""
    seed: int = 1_000
    """Of these examples."""

    columns: ClassVar = {
        "analysis/shift": "a - â, mean over the active features of examples: λ/2 in the closed form",
        "analysis/shift_error": "abs(shift / (λ/2) - 1)",
        "analysis/shrinkage_error": "abs(γ - the closed form's), γ the held-out eval/shrinkage",
    }

    def __call__(self, results) -> pd.DataFrame:
        """The results of a run -> a row per member. Raises UserError where data or weights cannot be read."""

        def ask(saes, data, table):
            if not isinstance(data.source, Orthonormal):
                raise UserError(f"Shrinkage: got data of {type(data.source).__name__}, allowed: Orthonormal")
            x = data.rows.sample(jax.random.key(self.seed), self.n)
            found = members.each(shift, saes, x, jnp.asarray(data.rows.features))
            l1 = table["penalty.l1"].to_numpy(float)
            closed = np.asarray(shrinkage(l1, data.source.low, data.source.high))
            return {
                "analysis/shift": found,
                "analysis/shift_error": np.abs(found / np.where(l1 > 0, l1 / 2, np.nan) - 1),
                "analysis/shrinkage_error": np.abs(table["eval/shrinkage"].to_numpy(float) - closed),
            }

        return by_cohort(results, ask)

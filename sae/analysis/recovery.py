"""How alike are two dictionaries, and how much does L1 shrink what it recovers? (Claims P2 f and P5 A.)"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from sae.analysis import members
from sae.analysis.ask import Data, by_cohort
from sae.analysis.members import over_examples
from sae.core import metrics
from sae.core.model import Sae, unit_rows
from sae.core.types import Array, Key, UserError
from sae.data import Orthonormal
from sae.store.results import Results


@jax.jit
def mmcs(a: Array, b: Array, key: Key) -> dict[str, Array]:
    """Mean max cosine similarity of two dictionaries a [n, d_in] and b [m, d_in], both ways, and its floors, [] each.

    `mmcs` = mean_i max_j cos(a_i, b_j) says how well a is found in b, for example in a dictionary twice as large
    (Sharkey et al. 2022). `mmcs_reverse` = mean_j max_i cos(a_i, b_j). `..._chance` has a random dictionary in place of
    b, mean of 16; it grows with m. Cosines are signed, as in `eval/mmcs`.
    """
    a, alike = unit_rows(a), jnp.ones(len(a))
    found = metrics.mmcs(a, alike, b) | metrics.mmcs_chance(key, a, alike, len(b))
    return {name: value for name, value in found.items() if "weighted" not in name}


def shrinkage(l1: Array, low: float = 0.5, high: float = 1.5) -> Array:
    """The closed form of shrinkage under L1: gamma = E[â²] / E[a â] with â = max(0, a - λ/2), a ~ U[low, high], λ = l1.

    l1 may have any shape; gamma has the same. On orthonormal features, a penalty λ Σ f beside ‖x - x̂‖² is a
    one-dimensional problem for each feature, min_f (a - f)² + λ f. gamma is then `eval/shrinkage`, whatever the
    features' frequencies: sums over features and examples are in both parts. With t = λ/2 and s = max(low, t),
    gamma = [((high - t)³ - (s - t)³) / 3] / [(high³ - s³) / 3 - t (high² - s²) / 2]. NaN for t >= high, where no
    latent is active.
    """
    t = jnp.asarray(l1, jnp.float32) / 2
    s = jnp.maximum(low, t)
    squares = ((high - t) ** 3 - (s - t) ** 3) / 3
    products = (high**3 - s**3) / 3 - t * (high**2 - s**2) / 2
    return jnp.where(t < high, squares / products, jnp.nan)


@jax.jit
def shift(sae: Sae, x: Array, features: Array, above: float = 1e-3) -> Array:
    """The mean of a - â over the active features of examples x [n, d_in], []; λ/2 in the closed form.

    features [n_features, d_in] has orthonormal rows; a = features·x, â = features·x̂. A feature is active if a > above.
    """
    along = lambda rows: jnp.matmul(rows, features.T, precision="highest")

    def sums(rows: Array) -> tuple[Array, Array]:
        a = along(rows)
        active = a > above
        return jnp.sum(jnp.where(active, a - along(sae(rows)), 0), axis=1), jnp.sum(active, axis=1)

    differences, active = over_examples(sums, x)
    return jnp.sum(differences) / jnp.sum(active)


@dataclasses.dataclass(frozen=True)
class MmcsLarger:
    """How well a member's dictionary is found in one twice as large, which needs no true features to compare with.

    The larger member has twice the latents and the sweep's next seed (the first seed after the last), and is otherwise
    the same. It must not have the same seed: initial rows are drawn one after another, so the larger member would begin
    with the rows of the smaller one, and latents that die before they move would match exactly.
    """

    columns: ClassVar[dict[str, str]] = {
        "analysis/mmcs_larger": "mean over latents of the best cosine of their decoder rows in a dictionary twice as "
        "large, of another seed",
    }

    def __call__(self, results: Results) -> pd.DataFrame:
        """The results of a run -> a row per member; NaN where there is no larger member, or it has diverged.

        Raises UserError if weights cannot be read, or if no member has a larger one.
        """
        finished = results.members.query("status == 'finished'")["member"].tolist()
        pairs = {i: j for i, j in larger(results.definition["members"]).items() if {i, j} <= set(finished)}
        if not pairs:
            raise UserError("MmcsLarger: no member has another with twice its latents and the next seed")
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
    """Flattened members -> {member: the member with twice its latents and the next seed}, where there is one."""
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
    """Number of fresh examples that the shift is measured on."""
    seed: int = 1_000
    """Seed of these examples."""

    columns: ClassVar[dict[str, str]] = {
        "analysis/shift": "a - â, mean over the active features of examples: λ/2 in the closed form",
        "analysis/shift_error": "abs(shift / (λ/2) - 1)",
        "analysis/shrinkage_error": "abs(γ - the closed form's), γ the held-out eval/shrinkage",
    }

    def __call__(self, results: Results) -> pd.DataFrame:
        """The results of a run -> a row per member. Raises UserError if data or weights cannot be read."""

        def ask(saes: Sae, data: Data, table: pd.DataFrame) -> dict[str, Any]:
            if not isinstance(data.source, Orthonormal):
                raise UserError(f"Shrinkage: got data of {type(data.source).__name__}, allowed: Orthonormal")
            sampler = data.source.load()
            x = sampler.sample(jax.random.key(self.seed), self.n)
            found = members.each(shift, saes, x, jnp.asarray(sampler.features))
            l1 = table["penalty.l1"].to_numpy(float)
            closed = np.asarray(shrinkage(l1, data.source.low, data.source.high))
            return {
                "analysis/shift": found,
                "analysis/shift_error": np.abs(found / np.where(l1 > 0, l1 / 2, np.nan) - 1),
                "analysis/shrinkage_error": np.abs(table["eval/shrinkage"].to_numpy(float) - closed),
            }

        return by_cohort(results, ask)

"""Does the latent of a child feature absorb its parent? (Claim P4, on `Hierarchy` data.)

A parent is absorbed where it is active with its child and its own latent stays silent, as the child's latent writes
both. Which latent belongs to which feature is found by matching (see `match`).
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from sae.analysis import members
from sae.analysis.ask import Data, by_cohort
from sae.analysis.members import over_examples
from sae.core.model import Sae, unit_rows
from sae.core.types import Array, UserError
from sae.data import Hierarchy
from sae.store.results import Results

ACTIVE = 1e-3  # a feature is active where an example has more of it


def match(W_dec: Array, features: Array) -> np.ndarray:
    """The latent of each feature, [n_features]: the assignment, one to one, with the largest sum of cosines.

    W_dec [d_sae, d_in], features [n_features, d_in]. Cosines keep their sign. Raises UserError for too few latents.
    """
    cosines = np.asarray(unit_rows(features) @ unit_rows(W_dec).T)
    if cosines.shape[0] > cosines.shape[1]:
        raise UserError(f"match: got {cosines.shape[1]} latents, allowed: one per feature, {cosines.shape[0]} or more")
    return linear_sum_assignment(cosines, maximize=True)[1]


def absorption(
    sae: Sae, latents: Array, x: Array, features: Array, n_parents: int, n_children: int
) -> dict[str, Array]:
    """How far the latents of children have absorbed parents, on examples x [n, d_in]: numbers, [] each.

    features [n_features, d_in] are orthogonal and in the order of `Hierarchy`, with `n_children` for each parent;
    latents [n_features] is the latent of each.

    | name | definition |
    |---|---|
    | `parent_cosine` | cosine of a child's decoder row with its parent, mean over children |
    | `parent_cosine_size` | the same of absolute cosines |
    | `recall_with_child` | where parent and child are active, share in which the parent's latent is, mean of children |
    | `recall_alone` | where a parent and none of its children is, share in which its latent is, mean of parents |
    | `absorption` | 1 - `recall_with_child` |
    | `family_cosine` | cosine of the decoder row of a parent or child with its own feature, mean |
    | `independent_cosine` | the same for the features that are neither |
    """
    n_family = n_parents * (1 + n_children)
    child, parent = np.arange(n_parents, n_family), np.repeat(np.arange(n_parents), n_children)
    cosines = jnp.matmul(unit_rows(sae.W_dec[...])[latents], unit_rows(features).T, precision="highest")

    def counts(rows: Array) -> tuple[Array, ...]:
        active = jnp.matmul(rows, features.T, precision="highest") > ACTIVE
        fires = sae.encode(rows)[:, latents[:n_parents]] != 0
        both = active[:, child] & active[:, parent]
        alone = active[:, :n_parents] & ~jnp.any(active[:, child].reshape(-1, n_parents, n_children), axis=2)
        return both & fires[:, parent], both, alone & fires, alone

    of_both, both, of_alone, alone = (jnp.sum(count, axis=0) for count in over_examples(counts, x))
    own, to_parent = jnp.diagonal(cosines), cosines[child, parent]
    recall = jnp.mean(of_both / both)
    return {
        "parent_cosine": jnp.mean(to_parent),
        "parent_cosine_size": jnp.mean(jnp.abs(to_parent)),
        "recall_with_child": recall,
        "recall_alone": jnp.mean(of_alone / alone),
        "absorption": 1 - recall,
        "family_cosine": jnp.mean(own[:n_family]),
        "independent_cosine": jnp.mean(own[n_family:]),
    }


def _of_member(member: tuple[Sae, Array], *shared: Array, n_parents: int, n_children: int) -> dict[str, Array]:
    return absorption(*member, *shared, n_parents, n_children)


@dataclasses.dataclass(frozen=True)
class Absorption:
    """How far members trained on `Hierarchy` data absorb parents: `Sweep(..., measures=[Absorption()])`."""

    columns: ClassVar[dict[str, str]] = {
        "analysis/parent_cosine": "cosine of a child's decoder row with its parent, mean over children",
        "analysis/parent_cosine_size": "absolute cosine of a child's decoder row with its parent, mean over children",
        "analysis/recall_with_child": "where a parent and its child are active, share in which the parent's latent is",
        "analysis/recall_alone": "where a parent and none of its children is active, share in which its latent is",
        "analysis/absorption": "1 - recall_with_child",
        "analysis/family_cosine": "cosine of the decoder row of a parent or child with its own feature, mean",
        "analysis/independent_cosine": "the same for the features that are neither",
    }

    def __call__(self, results: Results) -> pd.DataFrame:
        """The results of a run -> a row per member. Raises UserError if data or weights cannot be read."""

        def ask(saes: Sae, data: Data, rows: pd.DataFrame) -> dict[str, Array]:
            source = data.source
            if not isinstance(source, Hierarchy):
                raise UserError(f"Absorption: got data of {type(source).__name__}, allowed: Hierarchy")
            features = jnp.asarray(source.load().features)
            latents = jnp.stack([jnp.asarray(match(W_dec, features)) for W_dec in saes.W_dec[...]])
            shape = {"n_parents": source.n_parents, "n_children": source.n_children}
            found = members.each(_of_member, (saes, latents), data.held_out, features, **shape)
            return {f"analysis/{name}": value for name, value in found.items()}

        return by_cohort(results, ask)

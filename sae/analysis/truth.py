"""Do the latents stand for the true features? Measures for every synthetic source, each beside its floor by chance.

    Sweep(..., measures=[Truth()])
    truth(members.stack([sae]), SynthBench().load())   # the same numbers in a notebook, for autoencoders of examples

The definitions are those of SynthSAEBench (Chanin & Garriga-Alonso 2026, arXiv 2602.14687), but for absorption and
splitting, which it does not measure. A feature is active where its true value is not 0, a latent where it is not 0.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from flax import struct
from scipy.optimize import linear_sum_assignment

from sae.analysis import members
from sae.analysis.ask import Data, by_cohort
from sae.core import metrics, model
from sae.core.metrics import Moments
from sae.core.model import Sae, unit_rows
from sae.core.types import Array, UserError
from sae.data import worlds
from sae.data.sampler import Sampler
from sae.store.results import Results

EXAMPLES_AT_ONCE = 1024
LEAST_NORM = 1e-6  # a shorter example has no ratio of norms

OF_ALL = {
    "mcc": "absolute cosine of decoder rows and features, matched one to one for the largest sum; mean over the pairs",
    "uniqueness": "number of features that are the best of some latent, over the number of latents",
    "recovered": "number of features whose matched latent has an absolute cosine above {found:g} with them",
    "precision": "where a latent is active, share in which its best feature is; mean over latents",
    "recall": "where the best feature of a latent is active, share in which the latent is; mean over latents",
    "f1": "harmonic mean of a latent's precision and recall; mean over latents",
}
OF_LEVEL = {
    "absorbed": "where a feature of level {level} and its parent are active, share in which its latent is and its "
    "parent's is not; mean over features",
    "split": "share of the parents of level {above} that are the best feature of several latents",
}
OF_EXAMPLES = {
    "explained_variance": "1 - Σ‖x − x̂‖² / Σ‖x − ⟨x⟩‖²",
    "l0": "active latents per example",
    "true_l0": "active features per example",
    "dead": "latents that are never active",
    "norm_ratio": "‖x̂‖ / ‖x‖, mean over the examples that are not 0",
}


@struct.dataclass
class Looks:
    """Which feature each latent is compared with, and which latents each child and its parent have.

    The second of each pair, along the first axis, belongs to a random dictionary.
    """

    best: Any  # [2, d_sae] the feature of each latent
    child: Any  # [2, children] the latent of each child
    parent: Any  # [2, children] the latent of its parent


@struct.dataclass
class Counts:
    """Sums over examples of one member, on the device and then on the host."""

    fired: Any  # [d_sae] examples on which a latent is active
    both: Any  # [2, d_sae] and its feature too
    absorbed: Any  # [2, children] child and parent are active, and the latent of the child alone
    error: Any  # [] Σ‖x − x̂‖²
    ratio: Any  # [] Σ ‖x̂‖ / ‖x‖, over examples that are not 0
    n_ratio: Any  # [] their number

    @classmethod
    def zero(cls, n_members: int, d_sae: int, n_children: int) -> "Counts":
        """No examples, [member, ...]."""
        none = lambda *shape: jnp.zeros((n_members, *shape), jnp.int32)
        nothing = jnp.zeros(n_members)
        return cls(none(d_sae), none(2, d_sae), none(2, n_children), nothing, nothing, none())


@jax.jit
def _sizes(W_dec: Array, features: Array) -> Array:
    """[d_sae, n_features] absolute cosines."""
    return jnp.abs(jnp.matmul(unit_rows(W_dec), unit_rows(features).T, precision="highest"))


def truth(
    saes: Sae, sampler: Sampler, n: int = 1_000_000, seed: int = 1_000, levels: int = 0, found: float = 0.8
) -> dict[str, np.ndarray]:
    """The numbers of `Truth` for stacked autoencoders [member, ...] that take a sampler's examples: {name: [member]}.

    Raises UserError where the sampler does not know which features are in an example.
    """
    if sampler.labelled is None or sampler.features is None:
        raise UserError(
            "Truth: got data whose true features are not known; allowed: synthetic data, such as SynthBench"
        )
    features, trees = jnp.asarray(_directions(sampler)), _trees(sampler, levels)
    n_members, d_sae, d_in = saes.W_dec[...].shape
    by_chance = _looked(jax.random.normal(jax.random.key(0), (d_sae, d_in)), features, trees)
    looked = [_looked(W_dec, features, trees) for W_dec in saes.W_dec[...]]
    looks = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *(_beside(one, by_chance) for one in looked))
    labelled, families = sampler.labelled, jnp.asarray(np.stack([trees.children, trees.parents]))

    @jax.jit
    def drawn(key: Array) -> tuple[Array, Array]:
        x, values = labelled(key, EXAMPLES_AT_ONCE)
        return x.T, values.T != 0

    counts = Counts.zero(n_members, d_sae, len(trees.children))
    pivot, moments = jnp.asarray(sampler.mean, jnp.float32), Moments.zero(d_in)
    fired = jnp.zeros(len(features), jnp.int32), jnp.zeros(len(trees.children), jnp.int32)
    for i in range(-(-n // EXAMPLES_AT_ONCE)):
        x, active = drawn(jax.random.fold_in(jax.random.key(seed), i))
        counts = members.each(_count, (saes, looks, counts), x, active, families)
        moments, fired = _shared(moments, fired, x, pivot, active, families)
    counts, fired = jax.device_get((counts, fired))
    n_examples, variation = int(moments.n), float(jnp.sum(moments.variation()))

    rows = []
    for i, one in enumerate(looked):
        own = jax.tree.map(lambda leaf, i=i: leaf[i], counts)
        floor = _numbers(by_chance, own, 1, *fired, trees, found)
        rows.append(
            _numbers(one, own, 0, *fired, trees, found)
            | {f"{name}_chance": value for name, value in floor.items()}
            | {
                "explained_variance": 1 - own.error / variation,
                "l0": own.fired.sum() / n_examples,
                "true_l0": fired[0].sum() / n_examples,
                "dead": (own.fired == 0).sum(),
                "norm_ratio": _share(own.ratio, own.n_ratio),
            }
        )
    return {name: np.array([row[name] for row in rows], float) for name in rows[0]}


@dataclasses.dataclass(frozen=True)
class _Trees:
    """The features that have a parent, and the trees' levels that are asked about."""

    children: np.ndarray  # [children] features
    parents: np.ndarray  # [children] the parent of each
    level: np.ndarray  # [children] the level of each, 1 below a root
    asked: range


def _trees(sampler: Sampler, levels: int) -> _Trees:
    parents = np.full(len(_directions(sampler)), -1) if sampler.parents is None else sampler.parents
    children = np.flatnonzero(parents >= 0)
    return _Trees(children, parents[children], worlds.levels(parents)[children], range(1, levels + 1))


@dataclasses.dataclass(frozen=True)
class _Dictionary:
    """How the rows of one dictionary lie to the features."""

    best: np.ndarray  # [d_sae] the feature of each latent
    child: np.ndarray  # [children] the latent of each child
    parent: np.ndarray  # [children] the latent of its parent
    sizes: np.ndarray  # [m] absolute cosines of the pairs that are matched one to one


def _looked(W_dec: Array, features: Array, trees: _Trees) -> _Dictionary:
    sizes = np.asarray(_sizes(W_dec, features))
    of_feature = sizes.argmax(axis=0)
    pairs = linear_sum_assignment(sizes, maximize=True)
    return _Dictionary(sizes.argmax(axis=1), of_feature[trees.children], of_feature[trees.parents], sizes[pairs])


def _beside(one: _Dictionary, by_chance: _Dictionary) -> Looks:
    both = lambda name: np.stack([getattr(one, name), getattr(by_chance, name)]).astype(np.int32)
    return Looks(both("best"), both("child"), both("parent"))


def _count(member: tuple[Sae, Looks, Counts], x: Array, active: Array, families: Array) -> Counts:
    """The counts after one more batch: x [d_in, batch], active [n_features, batch] bool, families [2, children]."""
    sae, looks, counts = member
    out = model.forward(sae, x)
    fires = out.latents != 0
    family = active[families[0]] & active[families[1]]
    total = lambda rows: jnp.sum(rows, axis=-1, dtype=jnp.int32)
    both = jnp.stack([total(fires & active[best]) for best in looks.best])
    pairs = zip(looks.child, looks.parent, strict=True)
    absorbed = jnp.stack([total(family & fires[child] & ~fires[parent]) for child, parent in pairs])
    norm = lambda rows: jnp.sqrt(jnp.sum(rows**2, axis=0))
    sized = norm(out.y) > LEAST_NORM
    ratio = jnp.where(sized, norm(out.x_hat) / jnp.maximum(norm(out.y), LEAST_NORM), 0.0)
    error = jnp.sum((out.y - out.x_hat) ** 2)
    new = Counts(total(fires), both, absorbed, error, jnp.sum(ratio), total(sized))
    return jax.tree.map(jnp.add, counts, new)


@jax.jit
def _shared(
    moments: Moments, fired: tuple[Array, Array], x: Array, pivot: Array, active: Array, families: Array
) -> tuple[Moments, tuple[Array, Array]]:
    """What depends on examples alone, after one more batch.

    It is the moments of the examples, how often each feature is active, [n_features], and how often each child is
    together with its parent, [children].
    """
    family = active[families[0]] & active[families[1]]
    new = jnp.sum(active, axis=1, dtype=jnp.int32), jnp.sum(family, axis=1, dtype=jnp.int32)
    return jax.tree.map(jnp.add, (moments, fired), (metrics.moments(x, pivot), new))


def _numbers(
    one: _Dictionary,
    counts: Counts,
    which: int,
    active: Any,
    together: Any,
    trees: _Trees,
    found: float,
) -> dict[str, float]:
    """The numbers that a random dictionary has too. `which`: 0 for the member's own, 1 for the random one."""
    both = counts.both[which].astype(float)
    precision, recall = _share(both, counts.fired), _share(both, active[one.best])
    numbers = {
        "mcc": one.sizes.mean(),
        "uniqueness": len(np.unique(one.best)) / len(one.best),
        "recovered": (one.sizes > found).sum(),
        "precision": precision.mean(),
        "recall": recall.mean(),
        "f1": _share(2 * precision * recall, precision + recall).mean(),
    }
    several = np.bincount(one.best, minlength=len(active)) > 1
    for depth in trees.asked:
        seen = (trees.level == depth) & (together > 0)
        numbers[f"absorbed_{depth}"] = _mean(counts.absorbed[which][seen] / together[seen])
        numbers[f"split_{depth}"] = _mean(several[np.unique(trees.parents[trees.level == depth])])
    return numbers


def _share(a: Any, b: Any) -> np.ndarray:
    """a / b, 0 where b is 0."""
    return np.where(b > 0, a / np.where(b > 0, b, 1), 0.0)


def _mean(values: np.ndarray) -> float:
    """The mean; NaN of nothing."""
    return float(values.mean()) if len(values) else float("nan")


def _directions(sampler: Sampler) -> np.ndarray:
    """[n_features, d_in] the directions of the features in what autoencoders see."""
    assert sampler.features is not None
    made = sampler.normalization
    return sampler.features if made is None else sampler.features * np.asarray(made.scale)


@dataclasses.dataclass(frozen=True)
class Truth:
    """How well members trained on synthetic data have found its features, on fresh examples and by streamed counts.

    A latent's *best feature* is the one with the largest absolute cosine with its decoder row, and so is a feature's
    latent. A number that is not defined for a latent, as for a dead one, is 0. What ends in `_chance` has the rows of a
    random dictionary of the same shape in their place: the latents fire as they do, and stand for other features.
    """

    n: int = 1_000_000
    """Fresh examples, rounded up to a multiple of 1,024."""
    seed: int = 1_000
    """Seed of these examples."""
    levels: int = 0
    """Levels below the roots whose absorption and splitting are measured; SynthBench has 3, Hierarchy 1."""
    found: float = 0.8
    """Absolute cosine above which a feature counts as recovered."""

    @property
    def columns(self) -> Mapping[str, str]:
        """The columns, by the number of levels."""
        own = {name: words.format(found=self.found) for name, words in OF_ALL.items()}
        for depth in range(1, self.levels + 1):
            own |= {f"{name}_{depth}": words.format(level=depth, above=depth - 1) for name, words in OF_LEVEL.items()}
        chance = {f"{name}_chance": f"{name} with a random dictionary" for name in own}
        return {f"analysis/{name}": words for name, words in (own | chance | OF_EXAMPLES).items()}

    def __call__(self, results: Results) -> pd.DataFrame:
        """The results of a run -> a row per member. Raises UserError if data or weights cannot be read."""

        def ask(saes: Sae, data: Data, rows: pd.DataFrame) -> dict[str, Any]:
            if not isinstance(data.rows, Sampler):
                raise UserError(
                    f"Truth: got data of {type(data.source).__name__}, allowed: synthetic data, such as SynthBench"
                )
            found = truth(saes, data.rows, self.n, self.seed, self.levels, self.found)
            return {f"analysis/{name}": value for name, value in found.items()}

        return by_cohort(results, ask)

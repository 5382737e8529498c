"""SynthSAEBench: correlated, hierarchical features in superposition, at the rates of a power law, with their truth."""

import functools

import jax.numpy as jnp
import numpy as np

from sae.core import files
from sae.core.types import Array, Key, UserError, definition, static
from sae.data import worlds
from sae.data.sampler import Sampler
from sae.data.source import Normalize, Source
from sae.data.superposition import estimated, measured
from sae.data.worlds import LEAST_RESIDUAL, Normals, World


@definition
class SynthBench(Source):
    """The data of SynthSAEBench-16k, every rule a field. Chanin & Garriga-Alonso 2026, arXiv 2602.14687.

    x = bias + Σ_i value_i feature_i [d_in]. Features are in the order of their base rates, which follow a power law:
    p_r = p_min + (p_max - p_min) (r^-e - n^-e) / (1 - n^-e), r = 1 to n, e = `exponent`. The first of them form trees,
    numbered level by level: `n_roots` roots, then the `n_children` children of the first, of the second, ..., down to
    `depth` levels below the roots. The others are free.

    - A Gaussian copula says which features fire: z = A ε + sqrt(1 - Σ A²) η, A ~ `correlation` · N(0, 1) [n, `rank`],
      rows capped so that what is a feature's own has a variance of .01 at least; i fires where z_i > Φ⁻¹(1 - p_i).
    - A child needs its parent. Of `exclusive` siblings that fire, one drawn uniformly stays, and what is below the
      others falls silent with them. `scale_children` multiplies a child's value by its parent's value over its mean.
    - `compensate` divides a child's p by its parent's base rate and multiplies it by 1 + (base rates of its siblings) /
      (that of the parent), to 1 at most, so that rates end near the base rates.
    - Magnitudes are relu(μ_i + σ_i N(0, 1)), μ in a straight line from `magnitude_first` to `magnitude_last`,
      σ_i = |`deviation` + `deviation_spread` N(0, 1)|, fixed.
    - Features are random unit rows after `orthogonal_steps` of Adam that push them apart (`worlds.orthogonalised`).

    The defaults are SynthSAEBench-16k, about 34 of whose features are active in an example. `world_seed` gives the
    world that SAELens draws from the same seed on a CPU, to rounding. The examples are others: their keys are JAX's.
    """

    d_in: int = static(768, min=1)
    """Width of an example."""
    n_features: int = static(16_384, min=2)
    """Number of true features."""
    exponent: float = static(0.5, min=1e-3)
    """How fast base rates fall with the rank: more is steeper."""
    p_max: float = static(0.4, min=0, max=1)
    """Base rate of the most frequent feature."""
    p_min: float = static(5e-4, min=0, max=1)
    """Base rate of the rarest feature."""
    n_roots: int = static(128, min=0)
    """Number of trees."""
    n_children: int = static(4, min=1)
    """Children of each feature that has some."""
    depth: int = static(3, min=0)
    """Levels below the roots; 0 for no hierarchy."""
    exclusive: bool = static(True)
    """Whether siblings exclude each other."""
    scale_children: bool = static(True)
    """Whether a child's magnitude follows its parent's."""
    compensate: bool = static(True)
    """Whether children fire more often where they may, to come near their base rates."""
    correlation: float = static(0.1, min=0)
    """Standard deviation of the copula's loadings; 0 for features that fire independently."""
    rank: int = static(25, min=1)
    """Number of normal numbers that features share in the copula."""
    magnitude_first: float = static(5.0, min=0)
    """Mean magnitude of the most frequent feature."""
    magnitude_last: float = static(4.0, min=0)
    """Mean magnitude of the rarest feature."""
    deviation: float = static(0.5, min=0)
    """Centre of the magnitudes' standard deviations."""
    deviation_spread: float = static(0.5, min=0)
    """Spread of the magnitudes' standard deviations over features."""
    orthogonal_steps: int = static(100, min=0)
    """Steps of Adam that push directions apart; 0 leaves them random."""
    orthogonal_lr: float = static(3e-4, min=0)
    """Learning rate of these steps."""
    bias_norm: float = static(0.5, min=0)
    """Norm of what is added to every example."""
    world_seed: int = static(0, min=0)
    """Seed of all that is fixed: directions, bias, loadings and deviations."""
    n_held_out: int = static(16_384, min=1)
    """Number of held-out examples."""
    normalize: Normalize = static("none")
    """What is done to examples (see `sae.rows`), by estimated numbers: none, centre, mean-norm-sqrt-d, ..."""

    def fingerprint(self) -> dict[str, str]:
        """{}: the definition says everything."""
        return {}

    @property
    def n_in_trees(self) -> int:
        """The number of features that are in a tree."""
        return self.n_roots * sum(self.n_children**level for level in range(self.depth + 1)) if self.depth else 0

    def world(self) -> World:
        """The world, drawn once per process. Raises UserError for rates or trees that cannot be."""
        return _drawn(self)

    def load(self) -> Sampler:
        """The sampler. Rates, mean and mean norm are estimated once, from fixed keys."""
        return _loaded(self)


@definition
class SynthWorld(Source):
    """A saved world of SynthSAEBench: of `SynthBench(...).world().save(DIR)`, or of SAELens' `SyntheticModel.save`.

    Both are the same files, so that SAELens and this project can train on the very same world.
    """

    path: str = static(path=True)
    """The folder with synthetic_model_config.json and synthetic_model.safetensors."""
    n_held_out: int = static(16_384, min=1)
    """Number of held-out examples."""
    normalize: Normalize = static("none")
    """What is done to examples (see `sae.rows`), by estimated numbers: none, centre, mean-norm-sqrt-d, ..."""

    def fingerprint(self) -> dict[str, str]:
        """The checksum of each file. Raises UserError where there is none."""
        found = worlds.paths(self.path)
        if not found:
            raise UserError(f"{self.path}: no world there; allowed: a folder that SAELens or SynthBench has saved")
        return {path.name: files.sha256(path) for path in found}

    def load(self) -> Sampler:
        """The sampler. Raises UserError for files that are missing or damaged."""
        return _sampler(worlds.read(self.path), self.n_held_out, self.normalize)


def base_rates(n: int, exponent: float, p_max: float, p_min: float) -> np.ndarray:
    """[n] rates by a power law of the rank, from p_max to p_min."""
    powers = np.arange(1, n + 1, dtype=np.float32) ** np.float32(-exponent)
    return p_min + (p_max - p_min) * (powers - powers[-1]) / (powers[0] - powers[-1])


def tree_parents(n: int, n_roots: int, n_children: int, depth: int) -> np.ndarray:
    """[n] the parent of each feature, -1 for none, numbered level by level."""
    parents, width, start = np.full(n, -1), n_roots, 0
    for _ in range(depth):
        below = np.arange(width * n_children)
        parents[start + width + below] = start + below // n_children
        start, width = start + width, width * n_children
    return parents


def compensated(rates: np.ndarray, parents: np.ndarray, exclusive: np.ndarray) -> np.ndarray:
    """[n] probabilities with which features must fire by themselves to come near these rates in their trees."""
    child = parents >= 0
    above = rates[np.maximum(parents, 0)]
    families = np.zeros(len(rates))
    np.add.at(families, parents[child], rates[child].astype(float))
    siblings = families[np.maximum(parents, 0)] - rates
    alone = np.where(exclusive[np.maximum(parents, 0)], 1 + np.maximum(siblings, 0) / above, 1)
    return np.where(child, np.minimum(rates / above * alone, 1), rates)


@functools.lru_cache(maxsize=4)
def _drawn(source: SynthBench) -> World:
    n, name = source.n_features, "SynthBench"
    if not 0 < source.p_min < source.p_max:
        raise UserError(f"{name}: p_min is {source.p_min:g} and p_max {source.p_max:g}; allowed: 0 < p_min < p_max")
    if source.n_in_trees > n:
        raise UserError(
            f"{name}: {source.n_roots} trees have {source.n_in_trees} features and n_features is {n}; "
            f"allowed: n_features of at least {source.n_in_trees}, or fewer or smaller trees"
        )
    if source.scale_children and source.n_in_trees and not min(source.magnitude_first, source.magnitude_last) > 0:
        raise UserError(
            f"{name}: magnitudes from {source.magnitude_first:g} to {source.magnitude_last:g} beside scale_children, "
            "which divides by them; allowed: above 0"
        )
    parents = tree_parents(n, source.n_roots, source.n_children, source.depth if source.n_roots else 0)
    has_child = np.zeros(n, bool)
    has_child[parents[parents >= 0]] = True
    exclusive = has_child & source.exclusive & (source.n_children > 1)
    rates = base_rates(n, source.exponent, source.p_max, source.p_min)
    probabilities = compensated(rates, parents, exclusive) if source.compensate else rates
    seed, normals = source.world_seed, Normals(source.world_seed)  # offsets of the seed are SAELens'
    rows = normals.draw(n, source.d_in)
    bias = normals.draw(source.d_in)
    factor = np.zeros((n, 0), np.float32)
    if source.correlation:
        factor = np.float32(source.correlation) * Normals(seed + 4).draw(n, source.rank)
        shared = np.sum(factor**2, axis=1, keepdims=True)
        factor *= np.sqrt(np.minimum(1, (1 - LEAST_RESIDUAL) / np.maximum(shared, 1e-30)))
    spread = Normals(seed + 1).draw(n) * np.float32(source.deviation_spread) if source.deviation_spread else 0.0
    return World(
        features=worlds.orthogonalised(rows, source.orthogonal_steps, source.orthogonal_lr),
        bias=np.float32(source.bias_norm) * bias / np.linalg.norm(bias),
        probabilities=probabilities.astype(np.float32),
        means=np.linspace(source.magnitude_first, source.magnitude_last, n).astype(np.float32),
        deviations=np.abs(np.float32(source.deviation) + spread) * np.ones(n, np.float32),
        factor=factor,
        residuals=np.sqrt(1 - np.sum(factor**2, axis=1)),
        parents=parents,
        exclusive=exclusive,
        scaling=has_child & source.scale_children,
        config=_config(source),
    )


@functools.lru_cache(maxsize=4)
def _loaded(source: SynthBench) -> Sampler:
    return _sampler(source.world(), source.n_held_out, source.normalize)


def _sampler(world: World, n_held_out: int, normalize: Normalize) -> Sampler:
    values, features, bias = worlds.sampled(world), world.features, world.bias
    norms = np.linalg.norm(features, axis=1, keepdims=True)

    def sums(values: Array) -> Array:
        return jnp.matmul(values, features, precision="highest") + bias

    def known(key: Key, n: int) -> Array:
        """[n, 2, n_features]: values, and 1 where they are above 0."""
        drawn = values(key, n)
        return jnp.stack([drawn, (drawn > 0).astype(jnp.float32)], axis=1)

    amounts, frequencies = estimated(known)
    mean = amounts @ features + bias
    normalization = measured(lambda key, n: sums(values(key, n)), mean, normalize)

    def labelled(key: Key, n: int) -> tuple[Array, Array]:
        drawn = values(key, n)
        return normalization.apply(sums(drawn)), drawn

    return Sampler(
        d_in=features.shape[1],
        sample=lambda key, n: labelled(key, n)[0],
        labelled=labelled,
        features=features / np.maximum(norms, 1e-8),
        frequencies=frequencies,
        parents=world.parents,
        mean=normalization.apply(mean),
        n_held_out=n_held_out,
        normalization=normalization,
        one_by_one=True,
    )


def _config(source: SynthBench) -> dict:
    """The definition as SAELens' config has it."""
    trees = source.n_roots and source.depth
    line = {"generator_name": "linear", "start": source.magnitude_first, "end": source.magnitude_last}
    folded = {"generator_name": "folded_normal", "mean": source.deviation, "std": source.deviation_spread}
    return {
        "num_features": source.n_features,
        "hidden_dim": source.d_in,
        "firing_probability": {
            "generator_name": "zipfian",
            "exponent": source.exponent,
            "max_prob": source.p_max,
            "min_prob": source.p_min,
        },
        "hierarchy": {
            "total_root_nodes": source.n_roots,
            "branching_factor": source.n_children,
            "max_depth": source.depth,
            "mutually_exclusive_portion": float(source.exclusive),
            "mutually_exclusive_min_depth": 0,
            "mutually_exclusive_max_depth": None,
            "compensate_probabilities": source.compensate,
            "scale_children_by_parent": source.scale_children,
        }
        if trees and source.n_children > 1
        else None,
        "orthogonalization": {
            "num_steps": source.orthogonal_steps,
            "lr": source.orthogonal_lr,
            "chunk_size": 1024,
        }
        if source.orthogonal_steps
        else None,
        "correlation": {"rank": source.rank, "correlation_scale": source.correlation, "seed": None}
        if source.correlation
        else None,
        "std_firing_magnitudes": folded | {"min_value": None, "max_value": None}
        if source.deviation_spread
        else source.deviation,
        "mean_firing_magnitudes": line if min(source.magnitude_first, source.magnitude_last) > 0 else 0.0,
        "bias": source.bias_norm or False,
        "dtype": "float32",
        "seed": source.world_seed,
    }

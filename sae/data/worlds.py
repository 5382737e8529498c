"""Worlds of sparse features: directions, firing rates, trees and magnitudes, and the examples that follow from them.

A world is what SAELens calls a `SyntheticModel` (`sae_lens.synthetic`, 6.54). It is saved in SAELens' three files, so
that both tools can train on the very same world; what else is known of it stands beside them.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from scipy.special import ndtri

from sae.core import files
from sae.core.foreign import read_object, read_tensors, write_tensors
from sae.core.types import Array, Key, UserError

CONFIG, WEIGHTS, TREES = "synthetic_model_config.json", "synthetic_model.safetensors", "hierarchy.json"
LEAST_RESIDUAL = 0.01  # of a feature's variance that is its own, whatever the copula
DEEPEST = 64  # levels of a tree that is read
MAGNITUDES = {  # SAELens' generators of magnitudes, and their numbers
    "constant": ("value",),
    "linear": ("start", "end"),
    "exponential": ("start", "end"),
    "folded_normal": ("mean", "std"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """Everything that decides the examples of a world, as arrays of n features; see `sampled` for the formulas."""

    features: np.ndarray
    """[n, d_in] directions, unit rows, float32."""
    bias: np.ndarray
    """[d_in], added to every example."""
    probabilities: np.ndarray
    """[n] how often the copula lets a feature fire, before the hierarchy silences any."""
    means: np.ndarray
    """[n] mean magnitudes."""
    deviations: np.ndarray
    """[n] standard deviations of the magnitudes."""
    factor: np.ndarray
    """[n, rank] the copula's loadings A; rank 0 for independent features."""
    residuals: np.ndarray
    """[n] standard deviations of what is a feature's own in the copula, sqrt(1 - Σ A²)."""
    parents: np.ndarray
    """[n] the parent of each feature, -1 where it has none."""
    exclusive: np.ndarray
    """[n] bool: the children of this feature exclude each other."""
    scaling: np.ndarray
    """[n] bool: the magnitudes of this feature's children are multiplied by its own over its mean."""
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The recipe, as SAELens' config writes it."""

    @property
    def levels(self) -> np.ndarray:
        """[n] the level of each feature in its tree: 0 for roots and for features without a tree."""
        return levels(self.parents)

    def save(self, folder: str | Path) -> None:
        """Write the world into a folder, which is made, in the files that SAELens' `load_from_disk` reads.

        Raises UserError where the folder cannot be made.
        """
        folder = files.expanded(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot be made: {error.strerror}; allowed: a folder") from None
        weights = {
            "feature_vectors": self.features,
            "bias": self.bias,
            "firing_probabilities": self.probabilities,
            # SAELens draws magnitudes from its config again and passes these two over
            "mean_firing_magnitudes": self.means,
            "std_firing_magnitudes": self.deviations,
        }
        if self.factor.shape[1]:
            weights |= {"correlation_factor": self.factor, "correlation_diag": self.residuals**2}
        write_tensors(folder / WEIGHTS, weights)
        files.write_json(folder / CONFIG, dict(self.config))
        if (self.parents >= 0).any():
            files.write_json(folder / TREES, {"roots": _trees(self)})
        else:
            (folder / TREES).unlink(missing_ok=True)


def levels(parents: np.ndarray) -> np.ndarray:
    """[n] how many ancestors each feature has, from the parent of each, -1 for none."""
    level, above = np.zeros(len(parents), int), np.asarray(parents)
    while (above >= 0).any():
        level += above >= 0
        above = np.where(above >= 0, parents[above], -1)
    return level


def sampled(world: World) -> Callable[[Key, int], Array]:
    """A function (key, n) -> values [n, n_features]: how much of each feature is in each of n examples.

    With z = A ε + residual · η, both normal, feature i fires where z_i > Φ⁻¹(1 - p_i), with the magnitude
    relu(mean_i + deviation_i · N(0, 1)). Then, from the roots down: a feature whose parent is silent is silent; it is
    scaled by its parent's value / the parent's mean where the parent scales; of several siblings that exclude each
    other and fire, one drawn uniformly stays. A feature is active where its value is above 0.
    """
    n_features, rank = world.factor.shape
    thresholds = ndtri(1 - world.probabilities.astype(np.float64))
    shift = np.asarray(-thresholds / world.residuals, np.float32)
    loadings = (world.factor / world.residuals[:, None]).astype(np.float32)
    means, deviations = (np.asarray(a, np.float32) for a in (world.means, world.deviations))
    order, places, steps = _plan(world)

    def fire(key: Key, n: int) -> Array:
        """[n, n_features] values before the hierarchy, in `order`."""
        shared_key, own_key = jax.random.split(key)
        above = jnp.broadcast_to(shift[order], (n, n_features))
        if rank:
            shared = jax.random.normal(shared_key, (n, rank))
            above = above + jnp.matmul(shared, loadings[order].T, precision="highest")
        # given ε, feature i fires with probability q: where u < q. Given that, u / q is uniform on (0, 1) again, so
        # that one draw says whether a feature fires and how much
        q = ndtr(above)
        bits = jax.random.bits(own_key, (n, n_features)) >> 9
        u = (bits.astype(jnp.float32) + 0.5) * 2.0**-23
        share = jnp.clip(u / jnp.maximum(q, 1e-30), 1e-7, 1 - 1e-7)
        noise = np.float32(np.sqrt(2)) * jax.lax.erf_inv(2 * share - 1)
        return jnp.where(u < q, jnp.maximum(means[order] + deviations[order] * noise, 0), 0)

    def values(key: Key, n: int) -> Array:
        fired = fire(key, n)
        parts = [fired[:, : steps[0].start]] if steps else [fired]
        above = parts[0]  # the level before, final
        for number, step in enumerate(steps):
            own = fired[:, step.start : step.stop]
            parent = _columns(above, step.parents)
            own = own * jnp.where(step.scales, parent / step.parent_means, jnp.where(parent > 0, 1.0, 0.0))
            if step.table is not None:
                u_key = jax.random.fold_in(key, number)
                own = jnp.where(_stays(u_key, own > 0, step), own, 0)
            parts.append(own)
            above = own
        if steps:
            parts.append(fired[:, steps[-1].stop :])
        return _columns(jnp.concatenate(parts, axis=1), places)

    return values


@dataclasses.dataclass(frozen=True)
class _Step:
    """How a level follows from the one above. Columns start:stop are its features, in the order of `_plan`."""

    start: int
    stop: int
    parents: np.ndarray  # [m] columns of the level above
    parent_means: np.ndarray  # [m]
    scales: np.ndarray  # [m] bool
    table: np.ndarray | None  # [groups, most siblings] columns of this level that exclude each other, -1 for padding
    group: np.ndarray  # [m] a feature's group, -1 for none
    place: np.ndarray  # [m] its place in the group


def _plan(world: World) -> tuple[np.ndarray, np.ndarray, list[_Step]]:
    """(the order in which features are computed, the place of each feature in it, a step for each level below roots).

    The order is by level; a level has siblings side by side. What has neither parent nor children comes last.
    """
    parents, level = world.parents, world.levels
    has_child = np.zeros(len(parents), bool)
    has_child[parents[parents >= 0]] = True
    free = (parents < 0) & ~has_child
    by_level = [np.flatnonzero((level == 0) & ~free)]
    column = np.full(len(parents), -1)
    steps: list[_Step] = []
    start = len(by_level[0])
    for depth in range(1, level.max() + 1):
        column[by_level[-1]] = np.arange(len(by_level[-1]))
        members = np.flatnonzero(level == depth)
        members = members[np.argsort(column[parents[members]], kind="stable")]
        above = parents[members]
        group = np.full(len(members), -1)
        place = np.zeros(len(members), int)
        groups = [np.flatnonzero(above == parent) for parent in dict.fromkeys(above) if world.exclusive[parent]]
        groups = [siblings for siblings in groups if len(siblings) > 1]
        table = np.full((len(groups), max(map(len, groups), default=0)), -1)
        for row, siblings in enumerate(groups):
            table[row, : len(siblings)] = siblings
            group[siblings], place[siblings] = row, np.arange(len(siblings))
        steps.append(
            _Step(
                start=start,
                stop=start + len(members),
                parents=column[above],
                parent_means=world.means[above].astype(np.float32),
                scales=world.scaling[above],
                table=table if len(groups) else None,
                group=group,
                place=place,
            )
        )
        by_level.append(members)
        start += len(members)
    order = np.concatenate([*by_level, np.flatnonzero(free)])
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return order, places, steps


def _columns(values: Array, columns: np.ndarray) -> Array:
    """values[:, columns]; where these are regular, without a gather, which a CPU does slowly."""
    n, width = values.shape
    m = len(columns)
    if m == width and (columns == np.arange(m)).all():
        return values
    if width and m % width == 0 and (columns == np.repeat(np.arange(width), m // width)).all():
        return jnp.repeat(values, m // width, axis=1)
    return values[:, columns]


def _stays(key: Key, active: Array, step: _Step) -> Array:
    """[n, m] bool: which of a level's features stay where siblings exclude each other; active [n, m] bool."""
    table = step.table
    assert table is not None
    n, m = active.shape
    n_groups, most = table.shape
    if table.size == m and (table.ravel() == np.arange(m)).all():
        siblings = active.reshape(n, n_groups, most)
    else:
        siblings = active[:, np.maximum(table, 0)] & (table >= 0)
    rank = jnp.cumsum(siblings, axis=2, dtype=jnp.int32)  # from 1 at the first that is active
    count = rank[:, :, -1]
    u = jax.random.uniform(key, (n, n_groups))
    chosen = jnp.minimum((u * count).astype(jnp.int32) + 1, count)
    stays = siblings & (rank == chosen[:, :, None])
    if table.size == m and (table.ravel() == np.arange(m)).all():
        return stays.reshape(n, m)
    flat = stays.reshape(n, -1)[:, np.maximum(step.group, 0) * most + step.place]
    return flat | (step.group < 0)


def orthogonalised(rows: np.ndarray, steps: int, lr: float) -> np.ndarray:
    """Rows [n, d] pushed apart by so many steps of Adam (betas .9, .999), then of norm 1.

    The loss is Σ_{i≠j} (v_i·v_j)² + n Σ_i (v_i·v_i - 1)². Its gradient, 4 [V VᵀV + (n (g_i - 1) - g_i) v_i] with
    g_i = v_i·v_i, needs VᵀV, [d, d], and never the n × n cosines: at 16,384 rows of 768 that is 20 times less work.
    """
    n = len(rows)
    normal = lambda v: v / jnp.maximum(jnp.linalg.norm(v, axis=1, keepdims=True), 1e-8)
    dot = functools.partial(jnp.matmul, precision="highest")

    def step(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        v, first, second = state
        g = jnp.sum(v * v, axis=1, keepdims=True)
        gradient = 4 * (dot(v, dot(v.T, v)) + (n * (g - 1) - g) * v)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        t = i + 1.0
        unbiased = jnp.sqrt(second / (1 - 0.999**t)) + 1e-8
        return v - lr * first / (1 - 0.9**t) / unbiased, first, second

    def run(v: Array) -> Array:
        v = normal(v)
        return normal(jax.lax.fori_loop(0, steps, step, (v, jnp.zeros_like(v), jnp.zeros_like(v)))[0])

    return np.asarray(jax.jit(run)(jnp.asarray(rows, jnp.float32)))


class Normals:
    """Normal numbers as torch's generator on a CPU gives them for a seed, to seven digits, without torch.

    So a world that is drawn here from a seed is the one that SAELens draws from it. torch draws fewer than 16 numbers
    in another way; for those, this has numbers of its own.
    """

    def __init__(self, seed: int) -> None:
        self._bits = np.random.RandomState(seed & 0xFFFFFFFF)._bit_generator  # MT19937, as torch has

    def draw(self, *shape: int) -> np.ndarray:
        """The next numbers, float32 of this shape: Box and Muller's, from uniform numbers in blocks of 16."""
        n = int(np.prod(shape))
        whole, uniform = n - n % 16, self._uniform(max(n, 16))
        numbers = np.empty(max(n, 16), np.float32)
        numbers[:whole] = _box_muller(uniform[:whole])
        if n % 16:  # the last 16 are drawn again
            numbers[-16:] = _box_muller(self._uniform(16))
        return numbers[:n].reshape(shape)

    def _uniform(self, n: int) -> np.ndarray:
        return (self._bits.random_raw(n) & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)


def _box_muller(uniform: np.ndarray) -> np.ndarray:
    blocks = uniform.reshape(-1, 2, 8)
    radius, angle = np.sqrt(-2 * np.log(1 - blocks[:, 0])), np.float32(2 * np.pi) * blocks[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)


def _trees(world: World) -> list[dict[str, Any]]:
    """SAELens' `roots`: a node for each feature that has a parent or children."""
    nodes: list[dict[str, Any]] = [
        {
            "feature_index": i,
            "mutually_exclusive_children": False,
            "scale_children_by_parent": bool(world.scaling[i]),
            "feature_id": None,
            "children": [],
        }
        for i in range(len(world.parents))
    ]
    for i, parent in enumerate(world.parents):
        if parent >= 0:
            nodes[parent]["children"].append(nodes[i])
    for i, node in enumerate(nodes):  # SAELens allows exclusion from two children on
        node["mutually_exclusive_children"] = bool(world.exclusive[i]) and len(node["children"]) > 1
    return [node for i, node in enumerate(nodes) if world.parents[i] < 0 and node["children"]]


def read(folder: str | Path) -> World:
    """The world in a folder that `World.save` or SAELens' `SyntheticModel.save` has written.

    SAELens keeps no magnitudes: they are drawn from its config again, as SAELens does. Raises UserError for files that
    are missing, damaged or do not fit each other, and for random magnitudes without a seed.
    """
    folder = _located(folder)
    config = read_object(folder / CONFIG)
    weights = read_tensors(folder / WEIGHTS)
    features = _array(weights, "feature_vectors", (None, None), folder)
    n, d_in = features.shape
    factor = np.zeros((n, 0), np.float32)
    variances = np.ones(n, np.float32)
    if "correlation_factor" in weights:
        factor = _array(weights, "correlation_factor", (n, None), folder)
        variances = _array(weights, "correlation_diag", (n,), folder)
        if not (variances > 0).all():
            raise UserError(f"{folder / WEIGHTS}: correlation_diag: got {variances.min():g}, allowed: above 0")
    probabilities = _array(weights, "firing_probabilities", (n,), folder)
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        got = probabilities[(probabilities < 0) | (probabilities > 1)][0]
        raise UserError(f"{folder / WEIGHTS}: firing_probabilities: got {got:g}, allowed: 0 to 1")
    known = lambda name, offset: (
        _array(weights, name, (n,), folder) if name in weights else _magnitudes(config, name, offset, n, folder)
    )
    trees = read_object(folder / TREES) if (folder / TREES).exists() else {"roots": []}
    parents, exclusive, scaling = _read_trees(trees, n, folder / TREES)
    means = known("mean_firing_magnitudes", 2)
    if not (means[scaling] > 0).all():
        raise UserError(f"{folder}: a feature that scales its children has a mean magnitude of 0; allowed: above 0")
    return World(
        features=features,
        bias=_array(weights, "bias", (d_in,), folder),
        probabilities=probabilities,
        means=means,
        deviations=known("std_firing_magnitudes", 1),
        factor=factor,
        residuals=np.sqrt(variances),
        parents=parents,
        exclusive=exclusive,
        scaling=scaling,
        config=config,
    )


def paths(folder: str | Path) -> list[Path]:
    """The files of a world that exist."""
    found = [_located(folder) / name for name in (CONFIG, WEIGHTS, TREES)]
    return [path for path in found if path.is_file()]


def _located(folder: str | Path) -> Path:
    # a text may know the folder of its definition file, and str() would lose that
    return files.located(folder if isinstance(folder, str) else str(folder))


def _array(weights: Mapping[str, np.ndarray], name: str, shape: tuple[int | None, ...], folder: Path) -> np.ndarray:
    """A tensor of a file as float32, of this shape; None in it stands for any size."""
    where = f"{folder / WEIGHTS}: {name}"
    if name not in weights:
        raise UserError(f"{where}: it is missing, got {', '.join(sorted(weights)) or 'nothing'}")
    value = weights[name]
    sized = len(value.shape) == len(shape) and all(b in (None, a) for a, b in zip(value.shape, shape, strict=True))
    if not sized or not value.shape[0]:
        allowed = ", ".join("any" if size is None else str(size) for size in shape)
        raise UserError(f"{where}: got {list(value.shape)}, allowed: [{allowed}]")
    value = value.astype(np.float32)
    if not np.isfinite(value).all():
        raise UserError(f"{where}: got a value that is not finite")
    return value


def _magnitudes(config: Mapping[str, Any], name: str, offset: int, n: int, folder: Path) -> np.ndarray:
    """Magnitudes from SAELens' config: a number, or a generator by its name. `offset` is what is added to its seed."""
    recipe: Any = config.get(name)
    where = f"{folder / CONFIG}: {name}"
    number = lambda value: isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30
    if number(recipe):
        recipe = {"generator_name": "constant", "value": recipe}
    if not isinstance(recipe, dict):
        raise UserError(f"{where}: got {recipe!r}, allowed: a number, or an object with generator_name")
    kind = recipe.get("generator_name")
    if kind not in MAGNITUDES:
        raise UserError(f"{where}: generator_name: got {kind!r}, allowed: {', '.join(MAGNITUDES)}")
    for field in MAGNITUDES[kind]:
        if not number(recipe.get(field)):
            raise UserError(f"{where}: {field}: got {recipe.get(field)!r}, allowed: a number")
    a, b = (float(recipe[field]) for field in (*MAGNITUDES[kind], *MAGNITUDES[kind])[:2])
    if kind in ("constant", "linear"):  # of a constant, a and b are the same
        return np.linspace(a, b, n).astype(np.float32)
    if kind == "exponential":
        if not (a > 0 and b > 0):
            raise UserError(f"{where}: got {a:g} to {b:g}, allowed: start and end above 0")
        return (a * (b / a) ** np.linspace(0, 1, n)).astype(np.float32)
    seed = config.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise UserError(
            f"{where}: random magnitudes without a seed, which SAELens draws anew each time; "
            f"allowed: a config with a seed, or {name} in {WEIGHTS}"
        )
    low, high = (recipe.get(end) for end in ("min_value", "max_value"))
    for end, value in (("min_value", low), ("max_value", high)):
        if value is not None and not number(value):
            raise UserError(f"{where}: {end}: got {value!r}, allowed: a number or null")
    values = np.abs(np.float32(a) + Normals(seed + offset).draw(n) * np.float32(b))
    return np.clip(values, low, high) if low is not None or high is not None else values


def _read_trees(trees: Mapping[str, Any], n: int, path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """SAELens' `hierarchy.json` -> (parents [n], exclusive [n], scaling [n]). Raises UserError."""
    parents, seen = np.full(n, -1), np.zeros(n, bool)
    exclusive, scaling = np.zeros(n, bool), np.zeros(n, bool)
    for node, parent, depth in _nodes(trees.get("roots"), path):
        feature = node.get("feature_index")
        if not isinstance(feature, int) or isinstance(feature, bool) or not 0 <= feature < n:
            raise UserError(f"{path}: feature_index: got {feature!r}, allowed: 0 to {n - 1}, one for every node")
        if seen[feature]:
            raise UserError(f"{path}: feature_index: got {feature} twice, allowed: a feature in one place only")
        if depth > DEEPEST:
            raise UserError(f"{path}: got a tree of more than {DEEPEST} levels")
        seen[feature], parents[feature] = True, parent
        for flags, name in ((exclusive, "mutually_exclusive_children"), (scaling, "scale_children_by_parent")):
            flag = node.get(name, False)
            if not isinstance(flag, bool):
                raise UserError(f"{path}: {name}: got {flag!r}, allowed: true, false")
            flags[feature] = flag
    return parents, exclusive, scaling


def _nodes(roots: Any, path: Path) -> Iterator[tuple[dict[str, Any], int, int]]:
    """(node, its parent's feature or -1, its level) of every node, a parent before its children."""
    waiting = [(roots, -1, 0)]
    while waiting:
        nodes, parent, depth = waiting.pop()
        if not isinstance(nodes, list) or not all(isinstance(node, dict) for node in nodes):
            raise UserError(f"{path}: got something else than a list of nodes, allowed: roots and children as lists")
        for node in nodes:
            yield node, parent, depth
            waiting.append((node.get("children", []), node["feature_index"], depth + 1))

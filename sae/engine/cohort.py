"""Cohorts: the members of a sweep that one compiled program trains.

They are those whose experiments have the same pytree structure: they differ in leaves only.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sae.core.definitions import fields, flatten, replace
from sae.core.types import UserError
from sae.engine.placement import Placement
from sae.experiment import Experiment, method

T = TypeVar("T")

# A matrix product of this many multiply-adds fills the cores of a CPU (measured): members whose products are smaller
# are computed together until they reach it.
FULL_LANE = 2**25
MAX_LANES = 16


@dataclasses.dataclass(frozen=True)
class Cohort:
    """Members of one compiled program: their places in the sweep and their experiments."""

    members: tuple[int, ...]
    experiments: tuple[Experiment, ...]

    @property
    def example(self) -> Experiment:
        """One of them, for what they share (every static field)."""
        return self.experiments[0]

    def stacked(self, placement: Placement) -> Experiment:
        """One experiment whose leaves have a leading member axis, on the devices of a placement."""
        return placement.members(stack(filled([_anonymous(experiment) for experiment in self.experiments])))

    def placement(self, d_in: int, lanes: int | None = None, mesh: Mesh | None = None) -> Placement:
        """The members on a mesh, or on one device, and as many lanes as are asked for or suit it."""
        n, latent = len(self.members), 1 if mesh is None else mesh.shape["latent"]
        if self.example.d_sae % latent:
            raise UserError(f"mesh: latent={latent} does not divide d_sae = {self.example.d_sae}")
        on_a_device = n if mesh is None else -(-n // mesh.shape["member"])
        return Placement(lanes or self.lanes(d_in, on_a_device), mesh, self.example.d_sae)

    def lanes(self, d_in: int, n: int) -> int:
        """Members that a device with n computes at once: all on an accelerator; on a CPU, equal groups that fill it."""
        e = self.example
        if jax.default_backend() != "cpu":
            return n
        most = min(n, MAX_LANES, max(1, FULL_LANE // (e.d_sae * e.batch_size * d_in)))
        divisor = max(lanes for lanes in range(1, most + 1) if n % lanes == 0)
        # a remainder means compiling the step twice: only where equal groups would be small
        return divisor if 2 * divisor >= most else math.ceil(n / math.ceil(n / most))


def plan(members: Sequence[Experiment]) -> list[Cohort]:
    """Group members by the structure of their experiments: a groupby on pytree structures."""
    groups: dict = {}
    for i, experiment in enumerate(members):
        groups.setdefault(jax.tree.structure(_anonymous(experiment)), []).append(i)
    return [Cohort(tuple(ids), tuple(members[i] for i in ids)) for ids in groups.values()]


def divide(cohort: Cohort, parts: int) -> list[Cohort]:
    """A cohort as several of nearly equal size, each trained alone; no member's result depends on its neighbours."""
    n, parts = len(cohort.members), min(parts, len(cohort.members))
    cuts = [n * i // parts for i in range(parts + 1)]
    return [Cohort(cohort.members[a:b], cohort.experiments[a:b]) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]


def splits(cohorts: Sequence[Cohort]) -> list[str]:
    """The dotted names on which the structures of cohorts differ: why they are not one."""
    shapes = []
    for cohort in cohorts:
        example = _anonymous(cohort.example)
        shapes.append(flatten(example) | dict.fromkeys(_leaf_names(example), "a leaf"))
    names = dict.fromkeys(name for shape in shapes for name in shape)
    return [name for name in names if len({repr(shape.get(name, "absent")) for shape in shapes}) > 1]


def filled(experiments: Sequence[Experiment]) -> list[Experiment]:
    """Experiments of one structure, with what they must agree on filled in (see `static(most_of=...)`)."""
    changes = {}
    for name, choice in method(experiments[0]).items():
        for field in fields(choice):
            if (leaf := field.metadata.get("most_of")) and getattr(choice, field.name) is None:
                values = [getattr(getattr(experiment, name), leaf) for experiment in experiments]
                changes[f"{name}.{field.name}"] = max(values)
    return [replace(experiment, changes) for experiment in experiments]


def stack(trees: Sequence[T]) -> T:
    """Trees of one structure -> one tree with a leading member axis on every leaf."""
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *trees)


def unstack(tree: T, i: int) -> T:
    """Member i of a stacked tree."""
    return jax.tree.map(lambda leaf: leaf[i], tree)


def _anonymous(experiment: Experiment) -> Experiment:
    # the name is in the structure, since a string cannot be a leaf, but it decides nothing
    return dataclasses.replace(experiment, name="")


def _leaf_names(experiment: Experiment) -> list[str]:
    paths = jax.tree_util.tree_flatten_with_path(experiment)[0]
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]

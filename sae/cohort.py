"""The member axis, and the only file that has one: plan, stack, map over members in lanes, unstack.

A cohort is the members whose experiments have the same pytree structure: they differ in leaves only, so one
compiled program trains them all. Within it, members are computed `lanes` at a time.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct

from sae import metrics, train
from sae.experiment import Experiment, flatten
from sae.metrics import Moments, Sums
from sae.train import TrainState
from sae.types import Array

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

    def stacked(self) -> Experiment:
        """One experiment whose leaves have a leading member axis."""
        return stack([_anonymous(experiment) for experiment in self.experiments])

    def lanes(self, d_in: int) -> int:
        """Members computed at once: all on an accelerator; on a CPU as many as fill its cores, in equal groups."""
        e, n = self.example, len(self.members)
        if jax.default_backend() != "cpu":
            return n
        most = min(n, MAX_LANES, max(1, FULL_LANE // (e.d_sae * e.batch_size * d_in)))
        divisor = max(lanes for lanes in range(1, most + 1) if n % lanes == 0)
        # a remainder means compiling the step twice: only where equal groups would be small
        return divisor if 2 * divisor >= most else math.ceil(n / math.ceil(n / most))


@struct.dataclass
class CohortState:
    """What training carries: members' states and the metric sums since the chunk began."""

    train: TrainState  # [member, ...]
    sums: Sums  # [member, ...]
    moments: Moments


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


def stack(trees: Sequence):
    """Trees of one structure -> one tree with a leading member axis on every leaf."""
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *trees)


def unstack(tree, i: int):
    """Member i of a stacked tree."""
    return jax.tree.map(lambda leaf: leaf[i], tree)


def over_members(function, members, lanes: int):
    """Apply a function of one member to trees with a leading member axis, `lanes` members at a time."""
    # one at a time needs no vmap: a batched matrix product of one is slower than a matrix product
    return jax.lax.map(function, members, batch_size=lanes if lanes > 1 else None)


@functools.partial(jax.jit, static_argnames="lanes")
def init(experiments: Experiment, sample: Array, *, lanes: int) -> CohortState:
    """States before the first step. sample [d_in, n]."""
    states = over_members(lambda experiment: train.init(experiment, sample), experiments, lanes)
    n, d_sae = states.silent.shape
    return CohortState(states, _broadcast(Sums.zero(d_sae), n), Moments.zero(sample.shape[0]))


@functools.partial(jax.jit, static_argnames="lanes", donate_argnames="state")
def train_block(
    experiments: Experiment, state: CohortState, block, pivot: Array, step: Array, n: Array, *, lanes: int
) -> CohortState:
    """Take n steps, at most a block's, from `step` on. The batches are drawn once, for all members.

    n is traced and the steps run in a loop of that length, so how training is cut into chunks cannot change
    a bit of its results: it is the same program for every n.
    """
    batches = block.batches(step)  # [steps, d_in, batch]
    weight = jnp.ones(batches.shape[2])

    def member(args):
        experiment, state, sums = args

        def one(i, carry):
            state, sums = carry
            state, new = train.step(experiment, state, step + i, batches[i])
            return state, jax.tree.map(jnp.add, sums, new)

        return jax.lax.fori_loop(0, n, one, (state, sums))

    def observe(i, moments):
        return jax.tree.map(jnp.add, moments, metrics.moments(batches[i], pivot, weight))

    trained, sums = over_members(member, (experiments, state.train, state.sums), lanes)
    return CohortState(trained, sums, jax.lax.fori_loop(0, n, observe, state.moments))


@functools.partial(jax.jit, static_argnames="lanes", donate_argnames="state")
def revive(experiments: Experiment, state: CohortState, step: Array, candidates: Array, *, lanes: int) -> CohortState:
    """Bring dead latents back in every member. candidates [n_batches, d_in, batch]."""
    member = lambda args: train.revive(*args, step, candidates)
    return state.replace(train=over_members(member, (experiments, state.train), lanes))


@functools.partial(jax.jit, donate_argnames="state")
def end_chunk(experiments: Experiment, state: CohortState) -> tuple[CohortState, dict[str, Array]]:
    """The chunk's numbers, {name: [member]}, and the state with its sums at zero."""

    def numbers(experiment, sums, trained):
        dead = metrics.dead(trained.silent >= experiment.dead_after)
        return metrics.finish(sums, state.moments) | dead | {"diverged": trained.diverged}

    values = jax.vmap(numbers)(experiments, state.sums, state.train)
    zero = jax.tree.map(jnp.zeros_like, (state.sums, state.moments))
    return state.replace(sums=zero[0], moments=zero[1]), values


@functools.partial(jax.jit, static_argnames="lanes", donate_argnames="window")
def evaluate_batch(saes, window, x: Array, weight: Array, pivot: Array, *, lanes: int):
    """Add one held-out batch x [d_in, batch] to the window (Sums [member, ...], Moments)."""
    sums, moments = window

    def member(args):
        sae, sums = args
        new = metrics.sums(train.model.forward(sae, x), x, weight)
        return jax.tree.map(jnp.add, sums, new)

    sums = over_members(member, (saes, sums), lanes)
    return sums, jax.tree.map(jnp.add, moments, metrics.moments(x, pivot, weight))


@jax.jit
def end_evaluation(window) -> tuple[dict[str, Array], Array]:
    """The window's numbers, {name: [member]}, and firing-rate histograms [member, bins]."""
    sums, moments = window
    numbers = jax.vmap(lambda s: metrics.finish(s, moments) | metrics.dead(s.fired == 0))(sums)
    return numbers, jax.vmap(lambda s: metrics.firing_rate_histogram(s.fired, moments.n))(sums)


@jax.jit
def feature_recovery(saes, features: Array, frequencies: Array) -> dict[str, Array]:
    """`mmcs` of every member, {name: [member]}."""
    return jax.lax.map(lambda sae: metrics.mmcs(features, frequencies, sae.W_dec[...]), saes)


@jax.jit
def recovery_chance(saes, features: Array, frequencies: Array) -> dict[str, Array]:
    """The chance floor of `mmcs`, the same for every member, {name: [member]}."""
    n, d_sae, _ = saes.W_dec[...].shape
    floor = metrics.mmcs_chance(jax.random.key(0), features, frequencies, d_sae)
    return {name: jnp.full(n, value) for name, value in floor.items()}


def new_window(n_members: int, d_sae: int, d_in: int) -> tuple[Sums, Moments]:
    """An evaluation's sums before its first batch."""
    return _broadcast(Sums.zero(d_sae), n_members), Moments.zero(d_in)


def _broadcast(tree, n: int):
    return jax.tree.map(lambda leaf: jnp.zeros((n, *leaf.shape), leaf.dtype), tree)


def _anonymous(experiment: Experiment) -> Experiment:
    # the name is in the structure, since a string cannot be a leaf, but it decides nothing
    return dataclasses.replace(experiment, name="")


def _leaf_names(experiment: Experiment) -> list[str]:
    paths = jax.tree_util.tree_flatten_with_path(experiment)[0]
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]

"""The member axis, and the only file that has one: plan, stack, place on devices, map over members in lanes, unstack.

A cohort is the members whose experiments have the same pytree structure: they differ in leaves only, so one
compiled program trains them all. On several devices each has members of its own, which never meet another's; a
member too large for one device lies across several, in slices of its latents. On a device, members are computed
`lanes` at a time.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sae import train
from sae.core import metrics
from sae.core.metrics import Moments, Sums
from sae.core.types import Array, UserError
from sae.experiment import Experiment, flatten
from sae.train import TrainState

# A matrix product of this many multiply-adds fills the cores of a CPU (measured): members whose products are smaller
# are computed together until they reach it.
FULL_LANE = 2**25
MAX_LANES = 16
LATENT = {"W_enc", "W_dec", "b_enc", "silent", "fired"}  # arrays [member, d_sae, ...], Adam's moments of them too


@dataclasses.dataclass(frozen=True)
class Placement:
    """How the members of a cohort lie: how many a device computes at once, and over which devices they are spread.

    None is one device. A mesh has two axes, "member" and "latent" (see `make_mesh`).
    """

    lanes: int
    mesh: Mesh | None = None

    def padded(self, n: int) -> int:
        """How many members n become, so that every device has as many."""
        return n if self.mesh is None else -(-n // self.mesh.shape["member"]) * self.mesh.shape["member"]

    def shardings(self, tree):
        """Where the leaves [member, ...] of a tree lie on the mesh."""

        def of(path, _):
            latent = any(getattr(key, "name", getattr(key, "key", None)) in LATENT for key in path)
            return NamedSharding(self.mesh, P("member", "latent") if latent else P("member"))

        return jax.tree_util.tree_map_with_path(of, tree)

    def members(self, tree):
        """A tree of leaves [n, ...] on the devices, [padded(n), ...]: the last member is there more than once."""

        def padded(leaf):
            rows = np.minimum(np.arange(self.padded(len(leaf))), len(leaf) - 1)
            return np.asarray(leaf)[rows]

        return tree if self.mesh is None else put(jax.tree.map(padded, tree), self.shardings(tree))

    def state(self, host: "CohortState") -> "CohortState":
        """A state that `fetch_state` gave, on the devices."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, host)
        train, sums = self.members((host.train, host.sums))
        return CohortState(train, sums, self.shared(host.moments))

    def laid(self, tree):
        """Inside a program, a tree of leaves [member, ...] that is to lie on the mesh as `members` would put it."""
        return tree if self.mesh is None else jax.lax.with_sharding_constraint(tree, self.shardings(tree))

    def gathered(self, tree):
        """A tree of leaves [member, ...], whole on every device where `fetch` would else have to bring them together.

        Asked for now, so that it does not come after what the devices are asked to do next.
        """
        return tree if jax.process_count() == 1 else _whole(tree, placement=self)

    def shared(self, tree):
        """A tree, whole, on every device."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, tree)
        return put(tree, jax.tree.map(lambda _: NamedSharding(self.mesh, P()), tree))


def make_mesh(devices: Sequence[jax.Device], latent: int = 1) -> Mesh:
    """All devices as a grid, "member" by "latent": each member lies across `latent` of them."""
    # Auto: under Explicit axes, jax's default, a gather must say where its result lies, and resampling has one
    shape = (len(devices) // latent, latent)
    return jax.make_mesh(shape, ("member", "latent"), axis_types=(AxisType.Auto,) * 2, devices=devices)


def parse_mesh(text: str | None = None) -> Mesh | None:
    """ "member=2,latent=4" -> the mesh; without a text, members over all devices; None for one device.

    Raises UserError for another text, and where it does not come to the number of devices.
    """
    devices = jax.devices()
    shape = {"member": len(devices), "latent": 1}
    if text is not None:
        pairs = [part.partition("=") for part in text.split(",")]
        given = {name.strip(): int(size) for name, _, size in pairs if size.strip().isdecimal()}
        if len(given) < len(pairs) or not given.keys() <= shape.keys() or 0 in given.values():
            raise UserError(f"mesh: got {text!r}, allowed: member=M,latent=L, or one of them")
        shape["latent"] = given.get("latent", 1)
        shape["member"] = given.get("member", max(1, len(devices) // shape["latent"]))
    n = shape["member"] * shape["latent"]
    if n > len(devices) or (n < len(devices) and jax.process_count() > 1):
        raise UserError(f"mesh: got {text!r}, that is {n} devices; allowed: as many as there are, {len(devices)}")
    return make_mesh(devices[:n], shape["latent"]) if n > 1 else None


def put(tree, shardings):
    """Arrays that every process has whole -> arrays on the devices of all processes, of which each gives its part."""

    def one(leaf, sharding):
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(one, tree, shardings)


def fetch(tree, n: int):
    """A tree of leaves [member, ...] on the host, in every process, without the members that are padding: [n, ...].

    Every process must come here, with the same tree.
    """

    def one(leaf):
        if not (leaf.is_fully_addressable or leaf.is_fully_replicated):  # one at a time: each is whole on every device
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)[:n]

    return jax.tree.map(one, tree) if jax.process_count() > 1 else jax.tree.map(lambda a: a[:n], jax.device_get(tree))


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
        return placement.members(stack([_anonymous(experiment) for experiment in self.experiments]))

    def placement(self, d_in: int, lanes: int | None = None, mesh: Mesh | None = None) -> Placement:
        """The members on a mesh, or on one device, and as many lanes as are asked for or suit it."""
        n, latent = len(self.members), 1 if mesh is None else mesh.shape["latent"]
        if self.example.d_sae % latent:
            raise UserError(f"mesh: latent={latent} does not divide d_sae = {self.example.d_sae}")
        of_a_device = n if mesh is None else -(-n // mesh.shape["member"])
        return Placement(lanes or self.lanes(d_in, of_a_device), mesh)

    def lanes(self, d_in: int, n: int) -> int:
        """Members computed at once, of a device's n: all on an accelerator; on a CPU as many as fill its cores, in
        equal groups."""
        e = self.example
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


def fetch_state(state: CohortState, n: int) -> CohortState:
    """A state on the host, of n members, wherever and among however many it lay."""
    train, sums = fetch((state.train, state.sums), n)
    return CohortState(train, sums, jax.device_get(state.moments))


def described(state: CohortState, n: int) -> CohortState:
    """The shapes and dtypes of what `fetch_state` gives."""
    of = lambda leaf: jax.ShapeDtypeStruct((n, *leaf.shape[1:]), leaf.dtype)
    train, sums = jax.tree.map(of, (state.train, state.sums))
    return CohortState(train, sums, jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), state.moments))


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


def over_members(function, members, placement: Placement):
    """Apply a function of one member to trees with a leading member axis: on every device to its own, in lanes."""
    # one at a time needs no vmap: a batched matrix product of one is slower than a matrix product
    lanes = placement.lanes if placement.lanes > 1 else None
    here = lambda members: jax.lax.map(function, members, batch_size=lanes)
    if placement.mesh is None:
        return here(members)
    # the compiler sees one device's members, so it cannot move any; only the latents' axis is its to divide
    spread = jax.shard_map(
        here, mesh=placement.mesh, in_specs=P("member"), out_specs=P("member"), axis_names={"member"}
    )
    return placement.laid(spread(members))


@functools.partial(jax.jit, static_argnames="placement")
def init(experiments: Experiment, sample: Array, *, placement: Placement) -> CohortState:
    """States before the first step. sample [d_in, n]."""
    member = lambda experiment: (train.init(experiment, sample), Sums.zero(experiment.d_sae))
    return CohortState(*over_members(member, experiments, placement), Moments.zero(sample.shape[0]))


@functools.partial(jax.jit, static_argnames="placement", donate_argnames="state")
def train_block(
    experiments: Experiment, state: CohortState, block, pivot: Array, step: Array, n: Array, *, placement: Placement
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

    trained, sums = over_members(member, (experiments, state.train, state.sums), placement)
    return CohortState(trained, sums, jax.lax.fori_loop(0, n, observe, state.moments))


@functools.partial(jax.jit, static_argnames="placement", donate_argnames="state")
def revive(
    experiments: Experiment, state: CohortState, step: Array, candidates: Array, *, placement: Placement
) -> CohortState:
    """Bring dead latents back in every member. candidates [n_batches, d_in, batch]."""
    member = lambda args: train.revive(*args, step, candidates)
    return state.replace(train=over_members(member, (experiments, state.train), placement))


@functools.partial(jax.jit, static_argnames="placement", donate_argnames="state")
def end_chunk(
    experiments: Experiment, state: CohortState, *, placement: Placement
) -> tuple[CohortState, dict[str, Array]]:
    """The chunk's numbers, {name: [member]}, and the state with its sums at zero."""

    def numbers(experiment, sums, trained):
        dead = metrics.dead(trained.silent >= experiment.dead_after)
        return metrics.finish(sums, state.moments) | dead | {"diverged": trained.diverged}

    values = jax.vmap(numbers)(experiments, state.sums, state.train)
    sums, moments = new_window(state, placement=placement)
    return state.replace(sums=sums, moments=moments), values


@functools.partial(jax.jit, static_argnames="placement", donate_argnames="window")
def evaluate_batch(saes, window, x: Array, weight: Array, pivot: Array, *, placement: Placement):
    """Add one held-out batch x [d_in, batch] to the window (Sums [member, ...], Moments)."""
    sums, moments = window

    def member(args):
        sae, sums = args
        new = metrics.sums(train.model.forward(sae, x), x, weight)
        return jax.tree.map(jnp.add, sums, new)

    sums = over_members(member, (saes, sums), placement)
    return sums, jax.tree.map(jnp.add, moments, metrics.moments(x, pivot, weight))


@jax.jit
def end_evaluation(window) -> tuple[dict[str, Array], Array]:
    """The window's numbers, {name: [member]}, and every latent's firing rate [member, d_sae]."""
    sums, moments = window
    numbers = jax.vmap(lambda s: metrics.finish(s, moments) | metrics.dead(s.fired == 0))(sums)
    return numbers, sums.fired / jnp.maximum(moments.n, 1)


@jax.jit
def top_examples(saes, latents: Array, best: tuple[Array, Array], x: Array, weight: Array, start: Array):
    """Merge a held-out batch x [d_in, batch], whose first example is number `start`, into the strongest so far.

    latents [member, n] are those looked at, best the values and numbers of their strongest examples, [member, n, k].
    """
    numbers = start + jnp.arange(x.shape[1])

    def member(sae, latents, values, examples):
        f = sae.activation(train.model.pre_acts(sae, x))[latents]
        values = jnp.concatenate([values, jnp.where(weight > 0, f, -jnp.inf)], axis=1)
        examples = jnp.concatenate([examples, jnp.broadcast_to(numbers, f.shape)], axis=1)
        values, order = jax.lax.top_k(values, best[0].shape[2])
        return values, jnp.take_along_axis(examples, order, axis=1)

    return jax.vmap(member)(saes, latents, *best)


@functools.partial(jax.jit, static_argnames="placement")
def _whole(tree, *, placement: Placement):
    return jax.lax.with_sharding_constraint(tree, NamedSharding(placement.mesh, P()))


@functools.partial(jax.jit, static_argnames="placement")
def feature_recovery(saes, features: Array, frequencies: Array, *, placement: Placement) -> dict[str, Array]:
    """`mmcs` of every member, {name: [member]}."""
    one_lane = dataclasses.replace(placement, lanes=1)
    return over_members(lambda sae: metrics.mmcs(features, frequencies, sae.W_dec[...]), saes, one_lane)


@jax.jit
def recovery_chance(saes, features: Array, frequencies: Array) -> dict[str, Array]:
    """The chance floor of `mmcs`, the same for every member, {name: [member]}."""
    n, d_sae, _ = saes.W_dec[...].shape
    floor = metrics.mmcs_chance(jax.random.key(0), features, frequencies, d_sae)
    return {name: jnp.full(n, value) for name, value in floor.items()}


@functools.partial(jax.jit, static_argnames="placement")
def new_window(state: CohortState, *, placement: Placement) -> tuple[Sums, Moments]:
    """The sums of a state's members before the first example."""
    sums, moments = jax.tree.map(jnp.zeros_like, (state.sums, state.moments))
    return placement.laid(sums), moments


def _anonymous(experiment: Experiment) -> Experiment:
    # the name is in the structure, since a string cannot be a leaf, but it decides nothing
    return dataclasses.replace(experiment, name="")


def _leaf_names(experiment: Experiment) -> list[str]:
    paths = jax.tree_util.tree_flatten_with_path(experiment)[0]
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]

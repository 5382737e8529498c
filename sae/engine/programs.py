"""The member axis, in the only file that maps over it: one member's functions as compiled programs of a cohort."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec as P

from sae import train
from sae.core import metrics, model
from sae.core.metrics import Moments, Sums
from sae.core.model import Sae
from sae.core.types import Array
from sae.engine.placement import Placement, fetch
from sae.experiment import Experiment
from sae.train import TrainState

Window = tuple[Sums, Moments]


@struct.dataclass
class CohortState:
    """What training carries: members' states and the metric sums since the chunk began."""

    train: TrainState  # [member, ...]
    sums: Sums  # [member, ...]
    moments: Moments


def fetch_state(state: CohortState, n: int) -> CohortState:
    """A state on the host, of n members, however many there were on the devices."""
    train, sums = fetch((state.train, state.sums), n)
    return CohortState(train, sums, jax.device_get(state.moments))


def place_state(host: CohortState, placement: Placement) -> CohortState:
    """A state that `fetch_state` gave, on the devices."""
    if placement.mesh is None:
        return jax.tree.map(jnp.asarray, host)
    train, sums = placement.members((host.train, host.sums))
    return CohortState(train, sums, placement.shared(host.moments))


def described(state: CohortState, n: int) -> CohortState:
    """The shapes and dtypes of what `fetch_state` gives."""
    shape = lambda leaf: jax.ShapeDtypeStruct((n, *leaf.shape[1:]), leaf.dtype)
    train, sums = jax.tree.map(shape, (state.train, state.sums))
    return CohortState(train, sums, jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), state.moments))


def over_members(function: Callable[[Any], Any], members: Any, placement: Placement) -> Any:
    """Apply a function of one member to trees with a leading member axis: on every device to its own, in lanes."""
    # one at a time needs no vmap: a batched matrix product of one is slower than a matrix product
    lanes = placement.lanes if placement.lanes > 1 else None
    on_device = lambda members: jax.lax.map(function, members, batch_size=lanes)
    if placement.mesh is None:
        return on_device(members)
    # the compiler sees one device's members, so it cannot move any; only the latents' axis is its to divide
    spread = jax.shard_map(
        on_device, mesh=placement.mesh, in_specs=P("member"), out_specs=P("member"), axis_names={"member"}
    )
    return placement.laid(spread(members))


@functools.partial(jax.jit, static_argnames=("placement", "parts"))
def init(
    experiments: Experiment, sample: Array, *, placement: Placement, parts: tuple[int, ...] | None = None
) -> CohortState:
    """States before the first step. sample [d_row, n]; parts: widths of what stands side by side in a row."""
    d_out = experiments.task.shapes(parts or (len(sample),)).d_out
    member = lambda experiment: (train.init(experiment, sample, parts), Sums.zero(d_out, experiment.d_sae))
    return CohortState(*over_members(member, experiments, placement), Moments.zero(d_out))


@functools.partial(jax.jit, static_argnames="placement", donate_argnames="state")
def train_block(
    experiments: Experiment,
    state: CohortState,
    block: Any,
    pivot: Array,
    step: Array,
    n: Array,
    *,
    placement: Placement,
) -> tuple[CohortState, Array]:
    """Take n steps, at most a block's, from `step` on; also gives the last batch, [d_row, batch].

    The batches are drawn once, for all members. n is traced and the steps run in a loop of that length, so how training
    is cut into chunks cannot change a bit of its results: it is the same program for every n.
    """
    batches = block.batches(step)  # [steps, d_row, batch]
    d_out = len(state.moments.total)

    def member(args: tuple) -> tuple[TrainState, Sums]:
        experiment, state, sums = args

        def one(i: Array, carry: tuple) -> tuple[TrainState, Sums]:
            state, sums = carry
            state, new = train.step(experiment, state, step + i, batches[i])
            return state, jax.tree.map(jnp.add, sums, new)

        return jax.lax.fori_loop(0, n, one, (state, sums))

    def observe(i: Array, moments: Moments) -> Moments:
        return jax.tree.map(jnp.add, moments, metrics.moments(batches[i][-d_out:], pivot))

    trained, sums = over_members(member, (experiments, state.train, state.sums), placement)
    return CohortState(trained, sums, jax.lax.fori_loop(0, n, observe, state.moments)), batches[n - 1]


@functools.partial(jax.jit, static_argnames="placement")
def look(
    experiments: Experiment, state: CohortState, step: Array, x: Array, *, placement: Placement
) -> dict[str, Array]:
    """The numbers of every member after a step on x [d_row, batch], {name: [member]} (see `train.numbers`).

    A program of its own: a branch in the loop of steps would keep a step from updating its state in place.
    """
    return over_members(lambda args: train.numbers(*args, step, x), (experiments, state.train), placement)


@functools.partial(jax.jit, static_argnames="placement", donate_argnames="state")
def revive(
    experiments: Experiment, state: CohortState, step: Array, candidates: Array, *, placement: Placement
) -> CohortState:
    """Bring dead latents back in every member. candidates [n_batches, d_row, batch]."""
    member = lambda args: train.revive(*args, step, candidates)
    return dataclasses.replace(state, train=over_members(member, (experiments, state.train), placement))


@functools.partial(jax.jit, static_argnames="placement", donate_argnames="state")
def end_chunk(
    experiments: Experiment, state: CohortState, *, placement: Placement
) -> tuple[CohortState, dict[str, Array]]:
    """The chunk's numbers, {name: [member]}, and the state with its sums at zero."""

    def numbers(experiment: Experiment, sums: Sums, member: TrainState) -> dict[str, Array]:
        dead = metrics.dead(member.silent >= experiment.dead_window)
        dead |= {f"dead_{window}": jnp.sum(member.silent >= int(window)) for window in experiment.dead_windows}
        control = experiment.control.numbers(member.control)
        found = metrics.finish(sums, state.moments, member.sae.parts)
        return found | dead | control | {"diverged": member.diverged}

    values = jax.vmap(numbers)(experiments, state.sums, state.train)
    sums, moments = new_window(state, placement=placement)
    return dataclasses.replace(state, sums=sums, moments=moments), values


@functools.partial(jax.jit, static_argnames="placement")
def trained(experiments: Experiment, state: CohortState, *, placement: Placement) -> Sae:
    """The autoencoders of all members that are evaluated and kept, [member, ...]."""
    return placement.laid(jax.vmap(train.trained)(experiments, state.train))


@functools.partial(jax.jit, static_argnames="placement", donate_argnames="window")
def evaluate_batch(saes: Sae, window: Window, x: Array, pivot: Array, *, placement: Placement) -> Window:
    """Add one held-out batch x [d_row, batch] to the window (Sums [member, ...], Moments)."""
    sums, moments = window

    def member(args: tuple[Sae, Sums]) -> Sums:
        sae, sums = args
        out = model.forward(sae, x)
        return jax.tree.map(jnp.add, sums, metrics.sums(out.latents, out.x_hat, out.y))

    sums = over_members(member, (saes, sums), placement)
    return sums, jax.tree.map(jnp.add, moments, metrics.moments(x[-saes.d_out :], pivot))


@functools.partial(jax.jit, static_argnames="parts")
def end_evaluation(window: Window, parts: tuple[int, ...] = ()) -> tuple[dict[str, Array], Array]:
    """The window's numbers, {name: [member]}, and every latent's firing rate [member, d_sae].

    parts: widths of the sources side by side in what is reconstructed.
    """
    sums, moments = window
    numbers = jax.vmap(lambda s: metrics.finish(s, moments, parts) | metrics.dead(s.fired == 0))(sums)
    return numbers, sums.fired / jnp.maximum(moments.n, 1)


@jax.jit
def top_examples(
    saes: Sae, latents: Array, best: tuple[Array, Array], x: Array, start: Array | int
) -> tuple[Array, Array]:
    """Merge a held-out batch x [d_row, batch], whose first example is number `start`, into the strongest so far.

    latents [member, n] are those looked at, best the values and numbers of their strongest examples, [member, n, k].
    """
    numbers = start + jnp.arange(x.shape[1])

    def member(sae: Sae, latents: Array, values: Array, examples: Array) -> tuple[Array, Array]:
        f = model.forward(sae, x).latents[latents]
        values = jnp.concatenate([values, f], axis=1)
        examples = jnp.concatenate([examples, jnp.broadcast_to(numbers, f.shape)], axis=1)
        values, order = jax.lax.top_k(values, best[0].shape[2])
        return values, jnp.take_along_axis(examples, order, axis=1)

    return jax.vmap(member)(saes, latents, *best)


@functools.partial(jax.jit, static_argnames="placement")
def feature_recovery(saes: Sae, features: Array, frequencies: Array, *, placement: Placement) -> dict[str, Array]:
    """`mmcs` of every member, {name: [member]}."""
    one_lane = dataclasses.replace(placement, lanes=1)
    return over_members(lambda sae: metrics.mmcs(features, frequencies, sae.W_dec[...]), saes, one_lane)


@jax.jit
def recovery_chance(saes: Sae, features: Array, frequencies: Array) -> dict[str, Array]:
    """The chance floor of `mmcs`, the same for every member, {name: [member]}."""
    n, d_sae, _ = saes.W_dec[...].shape
    floor = metrics.mmcs_chance(jax.random.key(0), features, frequencies, d_sae)
    return {name: jnp.full(n, value) for name, value in floor.items()}


@functools.partial(jax.jit, static_argnames="placement")
def new_window(state: CohortState, *, placement: Placement) -> tuple[Sums, Moments]:
    """The sums of a state's members before the first example."""
    sums, moments = jax.tree.map(jnp.zeros_like, (state.sums, state.moments))
    return placement.laid(sums), moments

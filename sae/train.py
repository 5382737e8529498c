"""One member: its state, its loss, its step. The page to read first.

A sweep trains many of these at once, but nothing here knows: the member axis is added in `engine/programs.py`.
Rows are feature-major, [d_row, batch] (see `core/model.py`): x [d_in, batch] itself, but for a transcoder.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from sae.core import metrics, model
from sae.core.model import Pass, Sae, Shapes
from sae.core.types import Array, UserError
from sae.experiment import Experiment
from sae.methods.contract import Optimizer, State
from sae.methods.schedules import coefficient, ramp

MOST = 2**31 - 1  # silent examples are counted up to here


@struct.dataclass
class TrainState:
    """What training carries from step to step."""

    sae: Sae  # the parameters alone: the activation is the experiment's
    opt_state: optax.OptState
    silent: Array  # [d_sae] int32: examples since each latent was last active
    diverged: Array  # [] bool: a number was not finite; the member is frozen as it was before
    control: State  # what the factor of the penalty follows
    average: Any  # what the average of the weights is made of
    held: State  # what the constraint remembers of the parameters before the first step


def init(experiment: Experiment, sample: Array, parts: tuple[int, ...] | None = None) -> TrainState:
    """The state before the first step.

    sample [d_row, n]: training rows, for `initialization` and `b_dec_init`; parts: widths of what stands side by side
    in a row, None for one.
    """
    sae = _first(experiment, sample, experiment.task.shapes(parts or (len(sample),)))
    return TrainState(
        sae=sae,
        opt_state=_optimizer(experiment).transform(experiment.n_steps).init(_tree(sae)),
        silent=jnp.zeros(experiment.d_sae, jnp.int32),
        diverged=jnp.zeros((), bool),
        control=experiment.control.init(),
        average=experiment.average.init(sae),
        held=experiment.constraint.init(sae),
    )


def _first(experiment: Experiment, sample: Array, shapes: Shapes) -> Sae:
    """The parameters before the first step, within their constraint."""
    e, d_in, d_out = experiment, shapes.d_in, shapes.d_out
    b_dec = {"zero": lambda x: jnp.zeros(x.shape[0]), "mean": lambda x: x.mean(1), "geometric-median": geometric_median}
    x, y = model.sides(sample, d_in, d_out)
    center = b_dec[e.b_dec_init](y)
    usual = {"b_enc": jnp.zeros(e.d_sae), "b_dec": center} | (
        {"W_skip": jnp.zeros((d_out, d_in))} if shapes.skip else {}
    )
    usual |= {f"own.{name}": value for name, value in e.activation.init(e.d_sae).items()}
    given = e.initialization(jax.random.key(e.seed), e.d_sae, x, y, center)
    named = usual | {name: value for name, value in given.items() if name in {"W_enc", "W_dec", *usual}}
    wanted = {"W_enc": (e.d_sae, d_in), "W_dec": (e.d_sae, d_out)} | {name: a.shape for name, a in usual.items()}
    for name, shape in wanted.items():
        if named[name].shape != shape:
            got, kind = list(named[name].shape), type(e.initialization).__name__
            raise UserError(f"initialization: {kind} gave {name} {got}, allowed: {list(shape)}")
    sae = model.from_parameters(named, None, e.apply_b_dec_to_input, e.precision, parts=shapes.parts)
    return _within(sae, e.constraint.keep({}, sae))


def _within(sae: Sae, kept: Sae) -> Sae:
    """The parameters as a constraint keeps them; what it changes by rounding alone stays as it is."""
    return jax.tree.map(lambda old, new: jnp.where(jnp.abs(new - old) <= 1e-6, old, new), sae, kept)


def terms(
    sae: Sae, experiment: Experiment, step: Array, rows: Array, factor: Array | float = 1.0, dead: Array | None = None
) -> tuple[dict[str, Array | float], Pass]:
    """The terms of the loss by name, [] each or the number 0 where a choice has none, and the pass they look at."""
    sae = model.using(sae, experiment.activation)
    x, y = model.divided(sae, rows)
    origin = jnp.mean(x, axis=1)
    pre_acts, sae = sae.activation.pre_acts(sae, x, origin), model.at(sae, x, origin)
    sae = model.by_few(sae, x, pre_acts)
    latents, charged = sae.activation.training(sae, pre_acts) if sae.few is None else [sae.few.latents] * 2
    error, x_hat = experiment.reconstruction(sae, latents, y, step)
    dead = jnp.zeros(experiment.d_sae, bool) if dead is None else dead
    warmed = ramp(step, experiment.penalty.warmup_steps)
    out = Pass(sae, x, y, pre_acts, latents, charged, x_hat, dead, step, experiment.n_steps, warmed)
    return {
        "reconstruction": error,
        "penalty": factor * experiment.penalty(out),
        "auxiliary": experiment.auxiliary.cost(out),
        "activation_cost": experiment.activation.cost(out),
    }, out


def loss(sae: Sae, *args: Any) -> tuple[Array, Pass]:
    """The sum of the `terms`, [], and the pass they look at; it takes what `terms` takes."""
    found, out = terms(sae, *args)
    return jnp.asarray(sum(found.values())), out


def step(experiment: Experiment, state: TrainState, step: Array, rows: Array) -> tuple[TrainState, metrics.Sums]:
    """One update on rows [d_row, batch], and the metric sums of its pass."""
    e = experiment
    # the loss itself is not needed, and without it nothing computes the penalty's value
    gradient, out = jax.grad(loss, has_aux=True)(state.sae, e, step, rows, *_followed(e, state))
    gradient = e.constraint.restrict(state.sae, gradient)
    keep = functools.partial(e.constraint.keep, state.held)
    chain = optax.with_extra_args_support(_optimizer(e).transform(e.n_steps))
    updates, opt_state = chain.update(_tree(gradient), state.opt_state, _tree(state.sae), keep=keep)
    updates = _at_rate(updates, e.control.own_rate(state.control))
    updated = jax.tree.map(jnp.add, state.sae, updates)
    sae = keep(updated)
    sae = model.replace(sae, own=e.activation.settle(model.own(sae), out))
    control, average = e.control.settle(state.control, out), e.average.settle(state.average, sae)

    sums = metrics.probe(out.latents, out.x_hat, out.y)

    active = jnp.max(jnp.abs(out.latents), axis=1) > 0  # on any example
    silent = jnp.where(active, 0, jnp.minimum(state.silent, MOST - out.batch) + out.batch)
    healthy = _all_finite(updated) & jnp.isfinite(jnp.sum(sums.squared_error)) & ~state.diverged
    # a gradient that is not finite spoils the parameters too; the moments of a member that has diverged are never read
    kept = jax.tree.map(
        lambda new, old: jnp.where(healthy, new, old),
        (sae, silent, control, average),
        (state.sae, state.silent, state.control, state.average),
    )
    sae, silent, control, average = kept
    return TrainState(sae, opt_state, silent, ~healthy, control, average, state.held), sums


def numbers(experiment: Experiment, state: TrainState, step: Array, rows: Array) -> dict[str, Array]:
    """What the log shows of a state beside sums over steps, [] each by name (see `metrics.OF_A_STEP`).

    They are computed anew on rows [d_row, batch], the batch of the step before.
    """

    def total(sae: Sae) -> tuple[Array, dict[str, Array | float]]:
        found, _ = terms(sae, experiment, step, rows, *_followed(experiment, state))
        return jnp.asarray(sum(found.values())), found

    (loss, found), gradient = jax.value_and_grad(total, has_aux=True)(state.sae)
    norm = optax.tree.norm(_tree(experiment.constraint.restrict(state.sae, gradient)))
    named = {name: value for name, value in found.items() if isinstance(value, Array)}
    coefficients = _coefficients(experiment, state, step)
    lr = _optimizer(experiment).numbers(step, experiment.n_steps)
    return {"loss": loss, **named, **coefficients, "grad_norm": norm, **lr}


def _coefficients(experiment: Experiment, state: TrainState, step: Array) -> dict[str, Array]:
    """The penalty's coefficients as its schedule and a control make them, [] each; {} where no control follows."""
    factor = experiment.control.factor(state.control)
    if not isinstance(factor, Array):
        return {}
    p = experiment.penalty
    scale = factor * coefficient(step, experiment.n_steps, p.warmup_steps, p.anneal_steps, p.anneal_to)
    return {f"penalty_{name}": scale * value for name, value in p.coefficients().items()}


def _at_rate(updates: Any, rate: Array | float) -> Any:
    """An update of a Sae, with that of the activation's own parameters times the control's rate."""
    return model.replace(updates, own={name: rate * update for name, update in model.own(updates).items()})


def _followed(experiment: Experiment, state: TrainState) -> tuple[Array | float, Array]:
    """What the terms of the loss take of a state: the factor of the penalty, and which latents are dead."""
    return experiment.control.factor(state.control), state.silent >= experiment.dead_window


def trained(experiment: Experiment, state: TrainState) -> Sae:
    """The autoencoder that is evaluated and kept."""
    sae = _optimizer(experiment).weights(state.opt_state, state.sae)
    if sae is not state.sae:  # the optimizer's state of a member that has diverged is not frozen
        sae = jax.tree.map(lambda new, frozen: jnp.where(state.diverged, frozen, new), sae, state.sae)
    sae = experiment.average.weights(state.average, sae)
    sae = sae if sae is state.sae else experiment.constraint.keep(state.held, sae)
    return model.using(sae, experiment.activation)


def _optimizer(experiment: Experiment) -> Optimizer:
    return experiment.optimizer.at_width(experiment.d_sae)


def _tree(sae: Sae) -> Any:
    """A Sae as Optax types it: a pytree."""
    return sae


def _all_finite(tree: Any) -> Array:
    """Whether every number is finite, and small enough (1e18) for the sum of all squares to be finite, []."""
    # rows are summed first: of the decoder's, projection wants the same sums
    square = lambda leaf: jnp.sum(leaf * leaf, axis=-1, keepdims=leaf.ndim > 1) if leaf.ndim else leaf * leaf
    rows = [square(leaf) for leaf in jax.tree.leaves(tree)]
    return jnp.isfinite(sum(map(jnp.sum, jax.lax.optimization_barrier(rows))))


def revive(experiment: Experiment, state: TrainState, step: Array, candidates: Array) -> TrainState:
    """Bring dead latents back after `step` steps. candidates [n_batches, d_row, batch]: training examples."""
    key = jax.random.fold_in(jax.random.key(experiment.seed), step)
    dead = (state.silent >= experiment.dead_window) & ~state.diverged
    sae = model.using(state.sae, experiment.activation)
    sae, opt_state = experiment.revival(key, sae, state.opt_state, dead, candidates)
    sae = model.using(sae, None)
    return dataclasses.replace(
        state,
        sae=sae,
        opt_state=opt_state,
        silent=jnp.where(dead, 0, state.silent),
        average=experiment.average.revive(state.average, dead, sae),
    )


def geometric_median(x: Array, iterations: int = 100) -> Array:
    """The point with the least sum of distances to the examples x [d_in, n], [d_in]. Weiszfeld 1937."""

    def closer(_: int, point: Array) -> Array:
        weight = 1 / jnp.maximum(jnp.linalg.norm(x - point[:, None], axis=0), 1e-8)
        return x @ weight / jnp.sum(weight)

    return jax.lax.fori_loop(0, iterations, closer, x.mean(axis=1))

"""One member: its state, its loss, its step. The page to read first.

A sweep trains many of these at once, but nothing here knows: the member axis is added in `cohort.py`.
Examples are feature-major, `x [d_in, batch]` (see `model.py`).
"""

import jax
import jax.numpy as jnp
from flax import struct

from sae.core import metrics, model
from sae.core.model import Sae
from sae.core.types import Array
from sae.experiment import Experiment
from sae.methods.revival import Never

MOST = 2**31 - 1  # silent examples are counted up to here


@struct.dataclass
class TrainState:
    """What training carries from step to step."""

    sae: Sae
    opt_state: tuple
    silent: Array  # [d_sae] int32: examples since each latent was last active
    diverged: Array  # [] bool: a number was not finite; the member is frozen as it was before


def init(experiment: Experiment, sample: Array) -> TrainState:
    """The state before the first step. sample [d_in, n]: training examples, for `b_dec`."""
    b_dec = {"zero": lambda x: jnp.zeros(x.shape[0]), "mean": lambda x: x.mean(1), "geometric-median": geometric_median}
    sae = model.init(
        jax.random.key(experiment.seed),
        d_in=sample.shape[0],
        d_sae=experiment.d_sae,
        activation=experiment.activation,
        b_dec=b_dec[experiment.b_dec_init](sample),
        apply_b_dec_to_input=experiment.apply_b_dec_to_input,
        precision=experiment.precision,
    )
    return TrainState(
        sae=sae,
        opt_state=experiment.optimizer.transform(experiment.n_steps).init(sae),
        silent=jnp.zeros(experiment.d_sae, jnp.int32),
        diverged=jnp.zeros((), bool),
    )


def loss(sae: Sae, experiment: Experiment, step: Array, x: Array) -> tuple[Array, model.Forward]:
    """`mean_b ‖x - x_hat‖² + penalty(latents)`, [], and the forward pass it is made of."""
    out = model.forward(sae, x)
    squared_error = jnp.sum((out.x_hat - x) ** 2) / x.shape[1]
    return squared_error + experiment.penalty(out.latents, model.decoder_norms(sae), step), out


def step(experiment: Experiment, state: TrainState, step: Array, x: Array) -> tuple[TrainState, metrics.Sums]:
    """One update on x [d_in, batch], and the metric sums of its forward pass."""
    # the loss itself is not needed, and without it nothing computes the penalty's value
    gradient, out = jax.grad(loss, has_aux=True)(state.sae, experiment, step, x)
    gradient = experiment.constraint.gradient(state.sae, gradient)
    updates, opt_state = experiment.optimizer.transform(experiment.n_steps).update(gradient, state.opt_state, state.sae)
    updated = jax.tree.map(jnp.add, state.sae, updates)
    sae = experiment.constraint.project(updated)

    sums = metrics.probe(out, x)

    active = jnp.max(jnp.abs(out.latents), axis=1) > 0  # on any example
    silent = jnp.where(active, 0, jnp.minimum(state.silent, MOST - x.shape[1]) + x.shape[1])
    healthy = _all_finite(updated) & jnp.isfinite(sums.squared_error) & ~state.diverged
    # a gradient that is not finite spoils the parameters too; the moments of a member that has diverged are never read
    sae, silent = jax.tree.map(lambda a, b: jnp.where(healthy, a, b), (sae, silent), (state.sae, state.silent))
    return TrainState(sae, opt_state, silent, ~healthy), sums


def _all_finite(tree) -> Array:
    """Whether every number is finite, and small enough (1e18) for the sum of all squares to be finite, []."""
    # rows are summed first: of the decoder's, projection wants the same sums
    rows = [jnp.sum(leaf * leaf, axis=-1, keepdims=leaf.ndim > 1) for leaf in jax.tree.leaves(tree)]
    return jnp.isfinite(sum(map(jnp.sum, jax.lax.optimization_barrier(rows))))


def revive(experiment: Experiment, state: TrainState, step: Array, candidates: Array) -> TrainState:
    """Bring dead latents back after `step` steps. candidates [n_batches, d_in, batch]: training examples."""
    if isinstance(experiment.revival, Never):
        return state
    key = jax.random.fold_in(jax.random.key(experiment.seed), step)
    dead = (state.silent >= experiment.dead_after) & ~state.diverged
    sae, opt_state = experiment.revival(key, state.sae, state.opt_state, dead, candidates)
    return state.replace(sae=sae, opt_state=opt_state, silent=jnp.where(dead, 0, state.silent))


def geometric_median(x: Array, iterations: int = 100) -> Array:
    """The point with the least sum of distances to the examples x [d_in, n], [d_in]. Weiszfeld 1937."""

    def closer(_, point):
        weight = 1 / jnp.maximum(jnp.linalg.norm(x - point[:, None], axis=0), 1e-8)
        return x @ weight / jnp.sum(weight)

    return jax.lax.fori_loop(0, iterations, closer, x.mean(axis=1))

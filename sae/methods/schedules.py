"""Schedules: how a number changes over training, as functions of the step."""

import jax.numpy as jnp

from sae.core.types import Array


def ramp(step: Array | int, steps: Array | int) -> Array:
    """From 1 / steps at step 0 to 1 at step steps - 1, then 1. Always 1 for 0 steps."""
    return jnp.minimum(1.0, (step + 1) / jnp.maximum(steps, 1))


def fall(step: Array | int, n_steps: Array | int, steps: Array | int) -> Array:
    """From 1 to 1 / steps in a straight line over the last steps of n_steps, and 1 before. Always 1 for 0 steps."""
    left = jnp.clip((n_steps - step) / jnp.maximum(steps, 1), 0.0, 1.0)
    return jnp.where(steps > 0, left, 1.0)


def anneal(start: Array | float, end: Array | float, share: Array | float) -> Array:
    """From start to end in a straight line, as a share of training goes from 0 to 1; start before, end after."""
    return start + (end - start) * jnp.clip(share, 0.0, 1.0)


def coefficient(
    step: Array | int, n_steps: int, warmup_steps: Array | int, anneal_steps: Array | int, anneal_to: Array | float
) -> Array:
    """The share of a coefficient that counts at a step: a warm-up from 0, then 1, then an annealing to `anneal_to`.

    The annealing is a straight line over the last `anneal_steps` of n_steps, and ends at the last step.
    """
    annealed = (step + 1 - (n_steps - anneal_steps)) / jnp.maximum(anneal_steps, 1)
    return ramp(step, warmup_steps) * anneal(1.0, anneal_to, annealed * (anneal_steps > 0))

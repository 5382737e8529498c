"""A cohort from the host's side: blocks of steps, chunks of blocks, revivals between them, and the evaluation."""

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from sae import cohort as cohorts
from sae.cohort import Cohort, CohortState
from sae.data.feed import Feed
from sae.data.source import Sampler
from sae.experiment import Experiment

CHUNKS = 50  # log points of a run, unless chunk_steps says otherwise


def compile_block(experiments, state: CohortState, feed: Feed, lanes: int):
    """The compiled program of a block, the same for any number of steps."""
    pivot, zero = jnp.asarray(feed.data.mean), jnp.int32(0)
    return cohorts.train_block.lower(experiments, state, feed.block(0), pivot, zero, zero, lanes=lanes).compile()


def train_cohort(
    state: CohortState,
    cohort: Cohort,
    experiments: Experiment,
    feed: Feed,
    lanes: int,
    *,
    start: int = 0,
    chunk_steps: int | None = None,
    program=None,
) -> Iterator[tuple[CohortState, int, dict | None]]:
    """Train from step `start` to n_steps, block by block.

    After each gives (state, step, numbers): numbers is {name: [member]}, still on the device, where a chunk ends
    there, else None. The state is only whole until the next block is asked for.
    """
    program = program or compile_block(experiments, state, feed, lanes)
    example, pivot = cohort.example, jnp.asarray(feed.data.mean)
    for step, n, ends_chunk in blocks(example, feed.steps, chunk_steps, start):
        then = step + n
        block = feed.block(step, then if then < example.n_steps else None)
        state = program(experiments, state, block, pivot, jnp.int32(step), jnp.int32(n))
        if then in example.revival.steps() and then < example.n_steps:
            candidates = feed.candidates(then, example.revival.n_candidates)
            state = cohorts.revive(experiments, state, jnp.int32(then), candidates, lanes=lanes)
        numbers = None
        if ends_chunk:
            state, numbers = cohorts.end_chunk(experiments, state)
            if isinstance(feed.data, Sampler):
                features, frequencies = jnp.asarray(feed.data.features), jnp.asarray(feed.data.frequencies)
                numbers |= cohorts.feature_recovery(state.train.sae, features, frequencies)
        yield state, then, numbers


def blocks(
    experiment: Experiment, block_steps: int, chunk_steps: int | None = None, start: int = 0
) -> Iterator[tuple[int, int, bool]]:
    """(step, number of steps, whether a chunk ends there) from step `start` to n_steps.

    A block ends where a chunk ends, where latents are revived, and after `block_steps` at the latest.
    """
    chunk = chunk_steps or math.ceil(experiment.n_steps / CHUNKS / block_steps) * block_steps
    revivals, step = experiment.revival.steps(), start
    while step < experiment.n_steps:
        marks = [step + block_steps, (step // chunk + 1) * chunk, experiment.n_steps]
        end = min(marks + [at for at in revivals if at > step])
        yield step, end - step, end % chunk == 0 or end == experiment.n_steps
        step = end


def evaluate(
    cohort: Cohort, feed: Feed, state: CohortState, lanes: int
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Every member of a trained cohort on the held-out examples.

    Gives ({"eval/l0": [member], ...}, counts of firing rates [member, bins], diverged [member] bool).
    """
    saes, example = state.train.sae, cohort.example
    window = cohorts.new_window(len(cohort.members), example.d_sae, feed.data.d_in)
    pivot = jnp.asarray(feed.data.mean)
    for x, weight in feed.held_out(example.n_eval):
        window = cohorts.evaluate_batch(saes, window, x, weight, pivot, lanes=lanes)
    numbers, firing_rates = cohorts.end_evaluation(window)
    if isinstance(feed.data, Sampler):
        features, frequencies = jnp.asarray(feed.data.features), jnp.asarray(feed.data.frequencies)
        numbers |= cohorts.feature_recovery(saes, features, frequencies)
        numbers |= cohorts.recovery_chance(saes, features, frequencies)
    numbers |= {"examples": np.full(len(cohort.members), int(window[1].n))}
    numbers, firing_rates, diverged = jax.device_get((numbers, firing_rates, state.train.diverged))
    # weights can be finite and still too large to compute with
    diverged = diverged | ~np.isfinite(numbers["mse"])
    return {f"eval/{name}": value for name, value in numbers.items()}, firing_rates, diverged

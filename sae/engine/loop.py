"""A cohort from the host's side: blocks of steps, chunks of blocks, revivals between them, and the evaluation."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae.core.model import Sae
from sae.data.feed import Feed
from sae.engine import programs
from sae.engine.cohort import Cohort
from sae.engine.placement import Placement, fetch
from sae.engine.programs import CohortState
from sae.engine.runtime import forget_old_programs
from sae.experiment import Experiment

CHUNKS = 50  # log points of a run, unless chunk_steps says otherwise


def compile_block(experiments: Experiment, state: CohortState, feed: Feed, placement: Placement) -> jax.stages.Compiled:
    """The compiled program of a block, which takes any number of steps."""
    pivot, zero = placement.shared((_pivot(state, feed), np.int32(0)))
    block = feed.block(0)
    arguments = (experiments, state, block, pivot)
    forget_old_programs((jax.tree.structure(arguments), *map(jnp.shape, jax.tree.leaves(arguments)), placement))
    return programs.train_block.lower(experiments, state, block, pivot, zero, zero, placement=placement).compile()


def train_cohort(
    state: CohortState,
    cohort: Cohort,
    experiments: Experiment,
    feed: Feed,
    placement: Placement,
    *,
    start: int = 0,
    chunk_steps: int | None = None,
    keep_every: int | None = None,
    program: jax.stages.Compiled | None = None,
) -> Iterator[tuple[CohortState, int, dict | None]]:
    """Train from step `start` to n_steps, block by block.

    After each block it yields (state, step, numbers). Where a chunk ends, numbers is {name: [member]}, still on the
    devices (`placement.fetch` reads them); else it is None. The state is valid until the next block is asked for. A
    block ends after every `keep_every` steps, too.
    """
    program = program or compile_block(experiments, state, feed, placement)
    example, pivot = cohort.example, placement.shared(_pivot(state, feed))
    for step, n, ends_chunk in blocks(example, feed.steps, chunk_steps, start, keep_every):
        then = step + n
        block = feed.block(step, then if then < example.n_steps else None)
        state, x = program(experiments, state, block, pivot, *placement.shared((np.int32(step), np.int32(n))))
        seen = {}
        if ends_chunk:
            seen = programs.look(experiments, state, placement.shared(np.int32(then - 1)), x, placement=placement)
        if then in example.revival.steps() and then < example.n_steps:
            candidates = feed.candidates(then, example.revival.candidates())
            at = placement.shared(np.int32(then))
            state = programs.revive(experiments, state, at, candidates, placement=placement)
        numbers = None
        if ends_chunk:
            state, numbers = programs.end_chunk(experiments, state, placement=placement)
            numbers |= seen
            if feed.data.features is not None:
                features, frequencies = placement.shared((feed.data.features, feed.data.frequencies))
                numbers |= programs.feature_recovery(state.train.sae, features, frequencies, placement=placement)
        yield state, then, None if numbers is None else placement.gathered(numbers)


def blocks(
    experiment: Experiment,
    block_steps: int,
    chunk_steps: int | None = None,
    start: int = 0,
    keep_every: int | None = None,
) -> Iterator[tuple[int, int, bool]]:
    """(step, number of steps, whether a chunk ends there) from step `start` to n_steps.

    A block ends where a chunk ends, where latents are revived, where weights are kept, and after `block_steps` at the
    latest.
    """
    chunk = chunk_steps or math.ceil(experiment.n_steps / CHUNKS / block_steps) * block_steps
    revivals, step = experiment.revival.steps(), start
    while step < experiment.n_steps:
        next_of = [(step // every + 1) * every for every in (chunk, keep_every) if every]
        marks = [step + block_steps, *next_of, experiment.n_steps]
        end = min(marks + [at for at in revivals if at > step])
        yield step, end - step, end % chunk == 0 or end == experiment.n_steps
        step = end


def evaluate(
    cohort: Cohort, experiments: Experiment, feed: Feed, state: CohortState, placement: Placement
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, Sae]:
    """Every member of a trained cohort on the held-out examples.

    Returns ({"eval/l0": [member], ...}, firing rates [member, d_sae], diverged [member] bool, the autoencoders [member,
    ...] that were evaluated), all on the host. The numbers have "train/dead_N" for each of `dead_windows`.
    """
    example, n = cohort.example, len(cohort.members)
    saes = programs.trained(experiments, state, placement=placement)
    window, pivot = programs.new_window(state, placement=placement), placement.shared(_pivot(state, feed))
    named, firing_rates = measured(saes, window, pivot, feed, placement, n, example.n_eval)
    # weights can be finite and still too large to compute with
    diverged = fetch(state.train.diverged, n) | ~np.isfinite(named["eval/mse"])
    if example.dead_windows:
        silent = fetch(state.train.silent, n)
        named |= {f"train/dead_{window}": np.sum(silent >= window, axis=1) for window in example.dead_windows}
    return named, firing_rates, diverged, fetch(saes, n)


def measured(
    saes: Sae, window: programs.Window, pivot: Any, feed: Feed, placement: Placement, n: int, n_eval: int | None = None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Autoencoders [member, ...] on the first n_eval held-out examples, or all, given a window without examples.

    Returns ({"eval/l0": [n], ...}, firing rates [n, d_sae]) on the host. pivot [d_out]: the mean of what is
    reconstructed; n: how many members there are, however many lie on the devices.
    """
    for x in feed.held_out(n_eval):
        window = programs.evaluate_batch(saes, window, x, pivot, placement=placement)
    numbers, firing_rates = programs.end_evaluation(window, saes.parts)
    if feed.data.features is not None:
        features, frequencies = placement.shared((feed.data.features, feed.data.frequencies))
        numbers |= programs.feature_recovery(saes, features, frequencies, placement=placement)
        numbers |= programs.recovery_chance(saes, features, frequencies)
    numbers, firing_rates = fetch((numbers, firing_rates), n)
    numbers |= {"examples": np.full(n, int(window[1].n))}
    if (ratio := getattr(feed.data, "norm_max_ratio", None)) is not None:
        numbers |= {"norm_max_ratio": np.full(n, ratio)}
    return {f"eval/{name}": value for name, value in numbers.items()}, firing_rates


def _pivot(state: CohortState, feed: Feed) -> np.ndarray:
    """The mean of what is reconstructed, [d_out]."""
    return feed.data.mean[-len(state.moments.total) :]

"""Does the cost of training grow linearly in members, width and steps?

    python benchmarks/scaling.py

One axis at a time is doubled; the last column is the cost of a unit (member, latent, step) beside the first row's.
"""

import statistics
import time
from collections.abc import Callable

import jax

from sae.data.feed import RESIDENT_BYTES, Feed
from sae.engine import bench, lanes, programs
from sae.engine.loop import compile_block, train_cohort
from sae.engine.placement import Placement

ROUNDS = 5
BASE = {"members": 8, "d_in": 144, "d_sae": 512, "batch_size": 1024}
AXES = {"members": (2, 4, 8, 16, 32), "d_sae": (256, 512, 1024, 2048), "d_in": (72, 144, 288, 576)}


def main() -> None:
    """Print a row per shape; the rows of one axis are timed in turn."""
    print("| axis | value | seconds | per unit, beside the first |\n|---|---|---|---|")
    for axis, values in AXES.items():
        timers = {}
        for value in values:
            cohort, data = bench.shape(**(BASE | {axis: value}))
            feed = Feed(data, 0, cohort.example.batch_size, cohort.example.n_steps, RESIDENT_BYTES)
            timers[value] = lanes.timer(cohort, feed, Placement(1))[1]
        show(axis, timers)
    show("steps", {n: training(n) for n in (28, 56, 112, 224)})


def training(n_steps: int) -> Callable[[], float]:
    """A function that trains for so many steps, block by block, as a run does -> its seconds."""
    cohort, data = bench.shape(**BASE)
    feed = Feed(data, 0, cohort.example.batch_size, cohort.example.n_steps, RESIDENT_BYTES)
    placement = Placement(1)
    experiments = cohort.stacked(placement)
    sample = feed.candidates(0, cohort.example.batch_size)[0]
    program = compile_block(experiments, programs.init(experiments, sample, placement=placement), feed, placement)

    def once() -> float:
        state = programs.init(experiments, sample, placement=placement)
        jax.block_until_ready(state)
        begun = time.perf_counter()
        training = train_cohort(state, cohort, experiments, feed, placement, program=program, chunk_steps=28)
        last = next(state for state, step, _ in training if step == n_steps)
        jax.block_until_ready(last)
        return time.perf_counter() - begun

    return once


def show(axis: str, timers: dict) -> None:
    """Time them in turn, and print a row for each."""
    seconds = {value: [] for value in timers}
    for _ in range(ROUNDS):
        for value, once in timers.items():
            seconds[value].append(once())
    unit = {value: statistics.median(times) / value for value, times in seconds.items()}
    first = next(iter(unit.values()))
    for value, per_unit in unit.items():
        print(f"| {axis} | {value} | {per_unit * value:.4f} | {per_unit / first:.2f} |", flush=True)


if __name__ == "__main__":
    main()

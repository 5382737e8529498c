"""Does the cost of training grow linearly in members, width and steps?

    python benchmarks/scaling.py

One axis at a time is doubled; the last column is the cost of a unit (member, latent, step) beside the first row's.
"""

import statistics

from sae import bench, lanes
from sae.cohort import Placement
from sae.data.feed import RESIDENT_BYTES, Feed

ROUNDS = 5
BASE = {"members": 8, "d_in": 144, "d_sae": 512, "batch_size": 1024}


def main() -> None:
    """Print a row per shape; the rows of one axis are timed in turn."""
    print("| axis | value | seconds | per unit, beside the first |\n|---|---|---|---|")
    for axis, values in {"members": (2, 4, 8, 16, 32), "d_sae": (256, 512, 1024, 2048)}.items():
        timers = {}
        for value in values:
            cohort, data = bench.shape(**(BASE | {axis: value}))
            feed = Feed(data, 0, cohort.example.batch_size, cohort.example.n_steps, RESIDENT_BYTES)
            timers[value] = lanes.timer(cohort, feed, Placement(1), seconds=0.5)[1]
        show(axis, timers)
    cohort, data = bench.shape(**BASE)
    feed = Feed(data, 0, cohort.example.batch_size, cohort.example.n_steps, RESIDENT_BYTES)
    step = lanes.timer(cohort, feed, Placement(1), seconds=0.25)[1]
    show("steps", {n: lambda n=n: sum(step() * n / (n // 4) for _ in range(n // 4)) for n in (4, 8, 16, 32)})


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

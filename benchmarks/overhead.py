"""What do logging, progress, tables, W&B (offline) and checkpoints cost, beside training alone?

    python benchmarks/overhead.py

Trains 16 members (d_in 144, d_sae 512, batch 1024) in chunks of a second or more: alone, and as `sae run` does with a
checkpoint every 15 seconds (the default is five minutes), in turn, and prints the seconds of the loop over steps.
"""

import io
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from rich.console import Console

from sae import Arrays, ElasticNet, Experiment, Sweep, grid, run
from sae.data.feed import RESIDENT_BYTES, Feed
from sae.engine import cohort as cohorts
from sae.engine import programs
from sae.engine.loop import compile_block, train_cohort
from sae.runner import training

STEPS, CHUNK_STEPS, ROUNDS = 400, 20, 3


def main() -> None:
    """Print the seconds of each, and the share that everything but training takes."""
    folder = tempfile.mkdtemp()
    np.save(f"{folder}/x.npy", np.random.default_rng(0).standard_normal((20_000, 144), np.float32))
    base = Experiment(
        name="overhead", data=Arrays(path=f"{folder}/x.npy"), d_sae=512, batch_size=1024, n_steps=STEPS,
        penalty=ElasticNet(l1=0.1),
    )  # fmt: skip
    sweep = Sweep(name="overhead", members=grid(base, {"seed": range(16)}))
    seconds: dict[str, list[float]] = {"alone": [], "as sae run": []}

    def timed(*args: Any, **kwargs: Any) -> Iterator:
        begun = time.perf_counter()
        yield from train_cohort(*args, **kwargs)
        seconds["as sae run"].append(time.perf_counter() - begun)

    training.train_cohort = timed  # ty: ignore[invalid-assignment]  # the loop that the run calls, with a clock
    for i in range(ROUNDS):
        seconds["alone"].append(alone(sweep))
        run(
            sweep, out=f"{folder}/{i}", wandb="offline", chunk_steps=CHUNK_STEPS, checkpoint_minutes=0.25,
            console=Console(file=io.StringIO()),
        )  # fmt: skip
        print({name: [round(s, 1) for s in times] for name, times in seconds.items()}, flush=True)
    ratio = statistics.median(b / a for a, b in zip(*seconds.values(), strict=True))
    chunks = STEPS // CHUNK_STEPS
    print(f"{chunks} chunks of {statistics.median(seconds['alone']) / chunks:.1f} s: {ratio - 1:+.1%} (median)")


def alone(sweep: Sweep) -> float:
    """Seconds of the loop over steps, its numbers left on the device."""
    cohort = cohorts.plan(sweep.members)[0]
    feed = Feed(cohort.example.data.load(), 0, 1024, STEPS, RESIDENT_BYTES)
    placement = cohort.placement(144)
    experiments = cohort.stacked(placement)
    state = programs.init(experiments, feed.candidates(0, 8192)[0], placement=placement)
    program = compile_block(experiments, state, feed, placement)
    begun = time.perf_counter()
    *_, last = train_cohort(state, cohort, experiments, feed, placement, chunk_steps=CHUNK_STEPS, program=program)
    jax.block_until_ready(last)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()

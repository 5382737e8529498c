"""What does training on a harvested folder cost that streams from the disk, beside the same rows on the device?

    python benchmarks/streaming.py

Writes 40,000 rows of 576 columns in float16, as `sae harvest` does, and trains TopK autoencoders of 1,152 latents on
batches of 512: with all rows on the device, and a block of steps at a time from the shards, in turn. The files are in
the cache of the system.
"""

import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pandas as pd

from sae import Activations, Experiment, TopK, UnitNorm, grid
from sae.data import harvested
from sae.data.feed import RESIDENT_BYTES, Feed
from sae.engine import cohort as cohorts
from sae.engine import programs
from sae.engine.loop import compile_block, train_cohort

MEMBERS, D_IN, D_SAE, BATCH, ROWS, CONTEXT, SHARD = 4, 576, 1_152, 512, 40_000, 256, 64
STEPS, ROUNDS, BLOCKS = 160, 5, 3  # a block is a twentieth of the steps


def main(rounds: int = ROUNDS) -> None:
    """Print the seconds of a step, streamed and resident, and the median of their ratios over rounds."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "acts")
        one = Experiment(
            name="streaming", data=Activations(path=f"{folder}/acts"), d_sae=D_SAE, batch_size=BATCH, n_steps=STEPS,
            activation=TopK(k=32), constraint=UnitNorm(),
        )  # fmt: skip
        cohort = cohorts.plan(grid(one, {"seed": range(MEMBERS)}))[0]
        data = one.data.load()
        timers = {name: timer(cohort, Feed(data, 0, BATCH, STEPS, n)) for name, n in WAYS.items()}
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in timers}
        for i in range(rounds):
            for name in list(timers)[:: 1 if i % 2 else -1]:  # no way is always the first
                seconds[name].append(timers[name]())
            print({name: [round(one, 3) for one in times[-1]] for name, times in seconds.items()}, flush=True)
        for which, what in enumerate(("wall", "CPU")):
            pairs = zip(seconds["streamed"], seconds["resident"], strict=True)
            ratios = sorted(a[which] / b[which] for a, b in pairs)
            shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            print(f"{what} time, streamed / resident: {statistics.median(ratios):.3f} (median of {shown})")


WAYS = {"resident": RESIDENT_BYTES, "streamed": 0}


def timer(cohort: cohorts.Cohort, feed: Feed) -> Callable[[], tuple[float, float]]:
    """Compile a cohort's program -> what gives the wall and CPU seconds of a step of all members, over a few blocks."""
    placement = cohort.placement(D_IN)
    experiments = cohort.stacked(placement)
    start = lambda: programs.init(experiments, feed.candidates(0, 8192)[0], placement=placement)
    program = compile_block(experiments, start(), feed, placement)

    def seconds() -> tuple[float, float]:
        training = train_cohort(start(), cohort, experiments, feed, placement, chunk_steps=STEPS, program=program)
        state, _, _ = next(training)  # the first block is not prepared beforehand
        jax.block_until_ready(state)
        begun, busy = time.perf_counter(), time.process_time()
        for state, _, _ in itertools.islice(training, BLOCKS):
            jax.block_until_ready(state)
        n = BLOCKS * feed.steps
        return (time.perf_counter() - begun) / n, (time.process_time() - busy) / n

    return seconds


def write(folder: Path) -> None:
    """A folder of random rows, the last tenth held out."""
    rng, n = np.random.default_rng(0), -(-ROWS // (CONTEXT - 1))
    ids = rng.integers(0, 100, (n, CONTEXT)).astype(np.int32)
    rows = rng.standard_normal((n * (CONTEXT - 1), D_IN), np.float32).astype(np.float16)
    cut = n - n // 10
    documents = np.zeros_like(ids)
    documents[cut:] = 1
    table = {"name": ["a", "b"], "corpus": "x", "kind": "txt", "split": ["train", "held-out"], "n_tokens": [1, 1]}
    harvested.write(
        folder,
        contexts={"train": (ids[:cut], documents[:cut]), "held-out": (ids[cut:], documents[cut:])},
        rows={"train": {"x": rows[: cut * (CONTEXT - 1)]}, "held-out": {"x": rows[cut * (CONTEXT - 1) :]}},
        documents=pd.DataFrame(table),
        pieces=[b"x"] * 100,
        shard=SHARD,
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

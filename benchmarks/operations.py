"""Where does a step's time go? Every operation of the compiled program, by jax.profiler.

    python benchmarks/operations.py [members d_in d_sae batch lanes]

Operations that run side by side on several cores overlap, so their times add up to more than the step's.
"""

import collections
import gzip
import json
import re
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from sae.data.feed import RESIDENT_BYTES, Feed
from sae.engine import bench, programs
from sae.engine.loop import compile_block
from sae.engine.placement import Placement

LEAST = 0.005  # share of a step below which operations are added up in one row


def main(members: int = 16, d_in: int = 144, d_sae: int = 512, batch: int = 1024, lanes: int = 1) -> None:
    """Print a row per operation: microseconds of one member's step, and the share of it."""
    cohort, data = bench.shape(members, d_in, d_sae, batch)
    feed = Feed(data, 0, batch, cohort.example.n_steps, RESIDENT_BYTES)
    placement = Placement(lanes)
    experiments = cohort.stacked(placement)
    state = programs.init(experiments, feed.candidates(0, batch)[0], placement=placement)
    program = compile_block(experiments, state, feed, placement)
    steps = placement.shared((np.int32(0), np.int32(feed.steps)))
    rest = (feed.block(0), placement.shared(data.mean), *steps)
    state, _ = jax.block_until_ready(program(experiments, state, *rest))
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        with jax.profiler.trace(folder):
            jax.block_until_ready(program(experiments, state, *rest))
        step = (time.perf_counter() - begun) / (feed.steps * members)
        (trace,) = Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    spent: collections.Counter = collections.Counter()
    for event in events:
        if "hlo_op" in event.get("args", {}) and not event["args"]["hlo_op"].startswith(("while", "call")):
            spent[event["args"]["hlo_op"]] += event["dur"] / (feed.steps * members)
    what = sources(program.as_text() or "")
    print(f"a step of one member: {1e6 * step:,.0f} µs (while it was traced)\n")
    print("| operation | from | µs | share |\n|---|---|---|---|")
    small = 0.0
    for name, microseconds in spent.most_common():
        share = microseconds / (1e6 * step)
        if share < LEAST:
            small += microseconds
        else:
            print(f"| {name} | {what.get(name, '')} | {microseconds:,.0f} | {share:.1%} |")
    print(f"| all others | | {small:,.0f} | {small / (1e6 * step):.1%} |")


def sources(text: str) -> dict[str, str]:
    """{operation: its result's shape and the function it comes from} of a compiled program."""
    line = r"%?([\w.-]+) = \(?(\w+\[[\d,]*\])[^\n]*?op_name=\"([^\"]+)\""
    return {name: f"{shape} {'/'.join(path.split('/')[-2:])}" for name, shape, path in re.findall(line, text)}


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

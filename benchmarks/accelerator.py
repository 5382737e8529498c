"""What a step of each method costs on an accelerator, beside its bare matrix products.

    python benchmarks/accelerator.py                    # the table, about five minutes
    python benchmarks/accelerator.py --kernels          # and where the time of each row goes
    python benchmarks/accelerator.py --rows 0 3         # some rows alone

Milliseconds are of one step of all members, medians of five; data are Gaussian rows that stay on the device.
"""

import argparse
import collections
import gzip
import json
import statistics
import tempfile
from pathlib import Path

import jax
import numpy as np

from sae import L0, AuxK, BatchTopK, ElasticNet, Experiment, Gated, JumpRelu, Relu, Superposition, TopK, grid, replace
from sae.data.feed import RESIDENT_BYTES, Feed
from sae.data.rows import Rows, rows
from sae.engine import bench, lanes
from sae.engine import cohort as cohorts
from sae.engine.cohort import Cohort
from sae.engine.placement import Placement

WIDE, SYNTH, LARGE_BATCH = (1, 768, 24_576, 4_096), (16, 768, 4_096, 1_024), (1, 768, 24_576, 16_384)
NONE, L1 = ElasticNet(l1=0.0), ElasticNet(l1=0.1)
METHODS = {
    "ReLU": {"activation": Relu(), "penalty": L1},
    "TopK 32": {"activation": TopK(k=32), "penalty": NONE},
    "TopK 32, AuxK, some dead": {"activation": TopK(k=32), "penalty": NONE, "auxiliary": AuxK(), "dead_after": 1},
    "TopK 32, AuxK, none dead": {"activation": TopK(k=32), "penalty": NONE, "auxiliary": AuxK(), "dead_after": 2**30},
    "BatchTopK 32": {"activation": BatchTopK(k=32.0), "penalty": NONE},
    "JumpReLU, L0": {"activation": JumpRelu(), "penalty": L0()},
    "Gated": {"activation": Gated(), "penalty": L1},
}
ROWS = [
    *((WIDE, name, "bfloat16") for name in METHODS),
    (WIDE, "ReLU", "tensorfloat32"),
    (WIDE, "ReLU", "float32"),
    *((SYNTH, name, "bfloat16") for name in ("ReLU", "BatchTopK 32", "TopK 32", "JumpReLU, L0")),
    (LARGE_BATCH, "ReLU", "bfloat16"),
    ((4, 512, 4_096, 2_048), "ReLU", "tensorfloat32"),
    ((16, 144, 512, 1_024), "ReLU", "tensorfloat32"),
]


def work(shape: tuple[int, int, int, int], method: str, precision: str) -> tuple[Cohort, Rows]:
    """A cohort of one method, and its rows."""
    members, d_in, d_sae, batch = shape
    base = Experiment(name="bench", data=Superposition(), d_sae=d_sae, n_steps=10_000, batch_size=batch)
    experiment = replace(base, {**METHODS[method], "precision": precision})
    x = np.random.default_rng(0).normal(size=(max(20_000, batch), d_in)).astype(np.float32)
    return cohorts.plan(grid(experiment, {"seed": range(members)}))[0], rows(x, x[:1000], "none", "bench")


def kernels(step, most: int = 14) -> list[tuple[str, float]]:
    """The device's kernels while a function runs, with their share of the time, the longest first."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            step()
        (path,) = Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e.get("name") == "process_name"}
    spent = collections.Counter()
    for event in events:
        if event.get("ph") == "X" and "GPU" in names.get(event["pid"], "") and "hlo_op" in event.get("args", {}):
            spent[event["args"]["hlo_op"]] += event["dur"]
    total = sum(spent.values())
    return [(name, dur / total) for name, dur in spent.most_common(most)]


def main() -> None:
    """Print a row per shape, method and precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", action="store_true", help="print where the time goes")
    parser.add_argument("--rows", type=int, nargs="*", help="numbers of the rows to measure")
    options = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}", flush=True)
    print(
        "| members, d_in, d_sae, batch | method | precision | ms a step | of its bare products |\n|---|---|---|---|---|"
    )
    for shape, method, precision in [ROWS[i] for i in options.rows] if options.rows else ROWS:
        cohort, data = work(shape, method, precision)
        feed = Feed(data, 0, cohort.example.batch_size, cohort.example.n_steps, RESIDENT_BYTES)
        at_once = len(cohort.members)
        _, step = lanes.timer(cohort, feed, Placement(at_once), seconds=0.1)
        product = bench.bare(cohort, data.d_in, at_once, seconds=0.1)
        seconds = statistics.median(step() for _ in range(5))
        share = statistics.median(product() for _ in range(3)) * at_once / seconds
        name = ", ".join(map(str, shape))
        print(f"| {name} | {method} | {precision} | {1_000 * seconds:.2f} | {share:.0%} |", flush=True)
        if options.kernels:
            for kernel, part in kernels(step):
                print(f"    {1_000 * seconds * part:6.3f} ms {kernel}", flush=True)
        feed.close()


if __name__ == "__main__":
    main()

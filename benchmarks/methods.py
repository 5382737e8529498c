"""What a step of each method costs beside a step of ReLU + L1 of its shape.

    python benchmarks/methods.py                                   # three shapes, some twenty minutes on two idle cores
    python benchmarks/methods.py --shape 16 144 512 1024 --only TopK Gated

All steps of a shape take turns in one process, and a ratio is the median over rounds. CPU time is shown beside wall
time: on a shared machine it varies less, but it does not see an operation that leaves a core idle. One member is
measured, or as many as are computed at once.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sae import (
    L0,
    AbsTopK,
    AtMostUnitNorm,
    AuxK,
    BatchTopK,
    Cosine,
    DrawnMatryoshka,
    ElasticNet,
    Experiment,
    FiringRateKL,
    Fvu,
    Gated,
    GhostGradients,
    GroupMax,
    Hoyer,
    JumpRelu,
    Lion,
    LogPenalty,
    Lp,
    MatchingPursuit,
    Matryoshka,
    MultiTopK,
    Muon,
    NormalizedL1,
    NormalizedMse,
    PreActivationLoss,
    QuadraticL0,
    Relu,
    ScheduleFree,
    Sigmoid,
    SoftThreshold,
    SquaredWeights,
    SquareRoot,
    Superposition,
    Tanh,
    TanhPenalty,
    TargetL0,
    TopAfa,
    TopK,
    grid,
    replace,
)  # fmt: skip
from sae.core import model
from sae.data.feed import RESIDENT_BYTES, Feed
from sae.data.rows import rows
from sae.engine import bench, programs
from sae.engine import cohort as cohorts
from sae.engine.loop import compile_block
from sae.engine.placement import Placement

K, ROUNDS, SECONDS = 32, 9, 0.3
FIRST = "ReLU + L1"
NONE = {"penalty": ElasticNet()}
DEAD = "some dead"  # methods with this in their name have an eighth of their latents dead
METHODS = {
    FIRST: {"activation": Relu()},
    "TopK": {"activation": TopK(k=K), **NONE},
    "TopK + AuxK, none dead": {"activation": TopK(k=K), "auxiliary": AuxK(), "dead_after": 2**30, **NONE},
    "TopK + AuxK, some dead": {"activation": TopK(k=K), "auxiliary": AuxK(), "dead_after": 1, **NONE},
    "BatchTopK": {"activation": BatchTopK(k=float(K)), **NONE},
    "Matryoshka on BatchTopK": {"activation": BatchTopK(k=float(K)), "reconstruction": Matryoshka(), **NONE},
    "JumpReLU + L0": {"activation": JumpRelu(), "penalty": L0()},
    "Gated + L1": {"activation": Gated()},
    "AbsTopK": {"activation": AbsTopK(k=K), **NONE},
    "MultiTopK": {"activation": MultiTopK(k=K), **NONE},
    "TopAfa": {"activation": TopAfa(), **NONE},
    "GroupMax": {"activation": GroupMax(k=K), **NONE},
    "MatchingPursuit": {"activation": MatchingPursuit(k=K), **NONE},
    "Sigmoid + L1": {"activation": Sigmoid()},
    "SoftThreshold + L1": {"activation": SoftThreshold()},
    "ReLU + L1, Lion": {"optimizer": Lion()},
    "ReLU + L1, Muon": {"optimizer": Muon()},
    "ReLU + L1, ScheduleFree": {"optimizer": ScheduleFree()},
    "ReLU + Lp": {"penalty": Lp()},
    "Tanh + L1": {"activation": Tanh()},
    "drawn Matryoshka on BatchTopK": {
        "activation": BatchTopK(k=float(K)),
        "reconstruction": DrawnMatryoshka(),
        **NONE,
    },
    "JumpReLU + quadratic L0, pre-activation loss": {
        "activation": JumpRelu(),
        "penalty": QuadraticL0(),
        "auxiliary": PreActivationLoss(),
    },
    "ReLU + L1, ghost gradients, none dead": {"auxiliary": GhostGradients(), "dead_after": 2**30},
    "ReLU + L1, ghost gradients, some dead": {"auxiliary": GhostGradients(), "dead_after": 1},
    "Sigmoid + firing-rate KL": {"activation": Sigmoid(), "penalty": FiringRateKL()},
    "ReLU + normalized L1": {"penalty": NormalizedL1()},
    "ReLU + square root": {"penalty": SquareRoot()},
    "ReLU + log": {"penalty": LogPenalty()},
    "ReLU + tanh": {"penalty": TanhPenalty()},
    "ReLU + Hoyer": {"penalty": Hoyer()},
    "ReLU + L1, FVU": {"reconstruction": Fvu()},
    "ReLU + L1, normalized MSE": {"reconstruction": NormalizedMse()},
    "ReLU + L1, cosine": {"reconstruction": Cosine()},
    "ReLU + L1, norms of at most 1": {"constraint": AtMostUnitNorm()},
    "ReLU + L1, squared weights": {"auxiliary": SquaredWeights()},
    "ReLU + L1, TargetL0": {"control": TargetL0()},
}


def timer(shape: tuple[int, int, int, int], method: str) -> Callable[[], np.ndarray]:
    """A function that trains for about `SECONDS` and gives (wall seconds, CPU seconds) of a step of one member."""
    members, d_in, d_sae, batch = shape
    base = Experiment(
        name="bench", data=Superposition(), d_sae=d_sae, n_steps=10_000, batch_size=batch, penalty=ElasticNet(l1=0.1)
    )
    one = replace(base, METHODS[method])
    x = np.random.default_rng(0).normal(size=(max(20_000, batch), d_in)).astype(np.float32)
    data = rows(x, x[:1000], "none", "bench")
    lanes = cohorts.plan(grid(one, {"seed": range(members)}))[0].placement(d_in).lanes
    cohort = cohorts.plan(grid(one, {"seed": range(lanes)}))[0]
    placement, feed = Placement(lanes), Feed(data, 0, batch, one.n_steps, RESIDENT_BYTES)
    experiments = cohort.stacked(placement)
    state = programs.init(experiments, feed.candidates(0, batch)[0], placement=placement)
    if DEAD in method:
        silenced = state.train.sae.b_enc[...].at[:, : d_sae // 8].set(-100.0)
        state = dataclasses.replace(
            state, train=dataclasses.replace(state.train, sae=model.replace(state.train.sae, b_enc=silenced))
        )
    program, block, pivot = compile_block(experiments, state, feed, placement), feed.block(0), jnp.asarray(data.mean)
    clocks = lambda: np.array([time.perf_counter(), time.process_time()])

    def train(steps: int) -> np.ndarray:
        nonlocal state
        begun = clocks()
        state, _ = jax.block_until_ready(program(experiments, state, block, pivot, np.int32(0), np.int32(steps)))
        return clocks() - begun

    train(2)  # the second step may be the first that has dead latents
    steps = min(feed.steps, max(1, round(SECONDS / train(1)[0])))

    def step() -> np.ndarray:
        drawing = train(0)  # the batches of a block are drawn together, however many steps follow
        return ((train(steps) - drawing) / steps + drawing / feed.steps) / lanes

    return step


def measure(shape: tuple[int, int, int, int], methods: list[str], rounds: int) -> None:
    """Print the step of ReLU + L1, and the ratio of every other method to it."""
    timers = {method: timer(shape, method) for method in methods}
    cohort, data = bench.shape(*shape)
    product = bench.bare(cohort, data.d_in, 1)
    spent: dict[str, list[np.ndarray]] = {method: [] for method in methods}
    bare = []
    for _ in range(rounds):
        bare.append(product())
        for method, step in timers.items():
            spent[method].append(step())
    first = np.array(spent[FIRST])
    share = statistics.median(np.array(bare) / first[:, 0])
    milliseconds = 1_000 * np.median(first, axis=0)
    name = ", ".join(map(str, shape))
    print(
        f"\n{name}: {FIRST} {milliseconds[0]:.2f} ms a member-step, {milliseconds[1]:.2f} ms of CPU time, "
        f"{share:.0%} of its bare products' speed\n"
    )
    print("| method | wall | CPU |\n|---|---|---|")
    for method in methods:
        wall, cpu = np.median(np.array(spent[method]) / first, axis=0)
        print(f"| {method} | {wall:.2f} | {cpu:.2f} |", flush=True)


def main() -> None:
    """Print a table per shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=4, action="append", help="members, d_in, d_sae, batch")
    parser.add_argument("--only", nargs="+", default=[""], help="methods whose name contains one of these")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    chosen = [method for method in METHODS if method == FIRST or any(part in method for part in options.only)]
    for members, d_in, d_sae, batch in options.shape or bench.SHAPES:
        measure((members, d_in, d_sae, batch), chosen, options.rounds)


if __name__ == "__main__":
    main()

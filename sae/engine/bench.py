"""How fast training is: the whole step beside the bare matrix products that it cannot do without, timed in turn."""

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from sae.core.model import matmul
from sae.core.types import Array
from sae.data import Superposition
from sae.data.feed import RESIDENT_BYTES, Feed
from sae.data.rows import Rows, rows
from sae.data.source import Examples
from sae.engine import cohort as cohorts
from sae.engine import lanes as lane_choice
from sae.engine.cohort import Cohort
from sae.engine.placement import Placement
from sae.experiment import Experiment
from sae.methods.penalties import ElasticNet
from sae.study.sweep import grid

SHAPES = ((16, 64, 256, 256), (16, 144, 512, 1024), (4, 512, 4096, 2048))  # members, d_in, d_sae, batch
ROUNDS = 15


@dataclasses.dataclass(frozen=True)
class Speed:
    """The speed of one cohort: medians of rounds in which the step and the products took turns."""

    members: int
    d_in: int
    d_sae: int
    batch_size: int
    precision: str
    lanes: int
    compile_seconds: float
    step_seconds: float
    """Seconds of one step of all members."""
    member_steps_per_second: float
    gflops: float
    """10^9 FLOP/s of the step's products: 10 · d_in · d_sae · batch FLOPs per member and step."""
    bare_gflops: float
    """10^9 FLOP/s of these products alone: the faster of one member at a time and `lanes` at a time."""
    fraction: float
    """Median over rounds of gflops / bare_gflops."""


def shape(members: int, d_in: int, d_sae: int, batch_size: int) -> tuple[Cohort, Rows]:
    """ReLU + L1, unit norms and Adam on Gaussian rows."""
    experiment = Experiment(
        name="bench", data=Superposition(), d_sae=d_sae, n_steps=10_000, batch_size=batch_size,
        penalty=ElasticNet(l1=0.1),
    )  # fmt: skip
    x = np.asarray(jax.random.normal(jax.random.key(0), (max(20_000, batch_size), d_in)))
    return cohorts.plan(grid(experiment, {"seed": range(members)}))[0], rows(x, x[:1000], "none", "bench")


def measure(cohort: Cohort, data: Examples, lanes: int | None = None) -> Speed:
    """Compile a cohort's program, without the cache, and time it."""
    e, n = cohort.example, len(cohort.members)
    feed = Feed(data, e.data_seed, e.batch_size, e.n_steps, RESIDENT_BYTES)
    lanes = lanes or lane_choice.expected(cohort, data.d_in)
    with _no_cache():
        compiling, step = lane_choice.timer(cohort, feed, Placement(lanes))
        products = [bare(cohort, data.d_in, width) for width in sorted({1, lanes})]
    ours, bound = [], []
    for _ in range(ROUNDS):
        ours.append(step() / n)
        bound.append(min(product() for product in products))
    feed.close()
    flop = 10 * data.d_in * e.d_sae * e.batch_size
    seconds = statistics.median(ours)
    return Speed(
        members=n,
        d_in=data.d_in,
        d_sae=e.d_sae,
        batch_size=e.batch_size,
        precision=e.precision,
        lanes=lanes,
        compile_seconds=compiling,
        step_seconds=seconds * n,
        member_steps_per_second=1 / seconds,
        gflops=flop / seconds / 1e9,
        bare_gflops=flop / statistics.median(bound) / 1e9,
        fraction=statistics.median(b / a for a, b in zip(ours, bound, strict=True)),
    )


def bare(cohort: Cohort, d_in: int, lanes: int, seconds: float = lane_choice.SECONDS) -> Callable[[], float]:
    """A function that runs a step's five products, `lanes` at a time, for about `seconds`.

    It returns the seconds that one member's five took.
    """
    e = cohort.example
    W = jnp.full((lanes, e.d_sae, d_in), 1 / e.d_sae)
    x = jnp.ones((d_in, e.batch_size))
    transposed = lambda a: jnp.swapaxes(a, -1, -2)
    times = lambda a, b: matmul(a, b, e.precision)
    # a batched product of bfloat16 factors is one that vmap makes, as in training
    times = times if lanes == 1 else jax.vmap(times)
    x = x if lanes == 1 else jnp.broadcast_to(x, (lanes, *x.shape))
    W = W[0] if lanes == 1 else W

    def five(W: Array, carry: tuple) -> tuple[Array, Array, Array]:
        x, *_ = carry
        f = times(W, x)
        x_hat = times(transposed(W), f)
        g = times(W, x_hat)
        # one row of x changes, so that no product is the same twice, at no cost to speak of
        changed = x.at[..., 0, :].add(1e-30 * x_hat[..., 0, :])
        return changed, times(g, transposed(x)), times(f, transposed(x_hat))

    program = jax.jit(lambda W, x, n: jax.lax.fori_loop(0, n, lambda _, carry: five(W, carry), (x, W, W)))

    def run(n: int) -> float:
        begun = time.perf_counter()
        jax.block_until_ready(program(W, x, n))
        return (time.perf_counter() - begun) / (n * lanes)

    run(1)
    n = max(1, round(seconds / (run(2) * lanes)))
    return lambda: run(n)


def report(speeds: Sequence[Speed]) -> dict:
    """The speeds and the device, for JSON."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "rounds": ROUNDS,
        "cohorts": [dataclasses.asdict(speed) for speed in speeds],
    }


def table(speeds: Sequence[Speed], console: Console) -> None:
    """Print the speeds."""
    device = jax.devices()[0]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for column in ("shape", "lanes", "compile", "step", "steps/s", "GFLOP/s", "bare", "share"):
        table.add_column(column, justify="right", no_wrap=True)
    for s in speeds:
        table.add_row(
            f"{s.members}, {s.d_in}, {s.d_sae}, {s.batch_size}",
            f"{s.lanes}",
            f"{s.compile_seconds:.1f} s",
            f"{1000 * s.step_seconds:,.{0 if s.step_seconds > 0.1 else 2}f} ms",
            f"{s.member_steps_per_second:,.{0 if s.member_steps_per_second > 100 else 1}f}",
            f"{s.gflops:,.0f}",
            f"{s.bare_gflops:,.0f}",
            f"{s.fraction:.0%}",
        )
    console.print(table)
    say = lambda line: console.print(line, highlight=False, soft_wrap=True)
    where = f"{device.device_kind}, {os.cpu_count()} cores, jax {jax.__version__}, {speeds[0].precision}"
    say(f"{where}; medians of {ROUNDS} rounds")
    say("shape: members, d_in, d_sae, batch; step: of all members; steps/s: of one member, all together")
    say("bare: GFLOP/s of the step's matrix products alone; share: of it that the whole step reaches")


class _no_cache:  # noqa: N801 - a context manager
    """Compile without the cache, so that the seconds are those of a first run."""

    def __enter__(self) -> None:
        self.before = jax.config.values["jax_enable_compilation_cache"]
        jax.config.update("jax_enable_compilation_cache", False)
        jax.clear_caches()

    def __exit__(self, *_: object) -> None:
        jax.config.update("jax_enable_compilation_cache", self.before)

"""What a sweep will cost, before it is run."""

from rich import box
from rich.console import Console
from rich.table import Table

from sae import cohort as cohorts
from sae.cohort import Cohort
from sae.data.feed import block_steps, resident
from sae.data.source import Rows, Sampler
from sae.runner import load_data
from sae.sweep import Sweep, varying
from sae.types import count


def parameters(d_in: int, d_sae: int) -> int:
    """Of one member: W_enc, W_dec, b_enc, b_dec."""
    return 2 * d_in * d_sae + d_sae + d_in


def step_flops(d_in: int, d_sae: int, batch_size: int) -> int:
    """Of the matrix products of one member's step: two forward, three backward, 2 FLOPs per multiply-add."""
    return 5 * 2 * d_in * d_sae * batch_size


def memory_bytes(cohort: Cohort, data: Rows | Sampler, lanes: int) -> int:
    """Expected peak of training a cohort, all float32.

    Parameters and two moments of every member, twice (what goes into a block and what comes out of it); a
    gradient and an update of the members computed at once, and their latents, pre-activations, the gradients
    of both, and a mask; a block of batches, drawn and transposed; the data.
    """
    e, d_in = cohort.example, data.d_in
    state = 3 * parameters(d_in, e.d_sae) * len(cohort.members) * 2
    working = lanes * (2 * parameters(d_in, e.d_sae) + 5 * e.d_sae * e.batch_size)
    block = 2 * block_steps(d_in, e.batch_size, e.n_steps) * e.batch_size * d_in
    held = len(data.train) * d_in if resident(data) else 0
    return 4 * (state + working + block + held)


def describe_plan(sweep: Sweep, console: Console, lanes: int | None = None) -> None:
    """Print members, cohorts and why they split, parameters, FLOPs, expected memory. Loads the data for its width."""
    plan, axes = cohorts.plan(sweep.members), varying(sweep.members)
    data = load_data(plan)
    split = cohorts.splits(plan)
    say = lambda line: console.print(line, highlight=False, soft_wrap=True)
    say(f"{sweep.name}: {count(len(sweep.members), 'member')} in {count(len(plan), 'compiled program')}")
    say(f"members differ in: {', '.join(axes) or 'nothing'}")
    if split:
        say(f"programs differ in: {', '.join(split)}")

    table, total = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False), 0.0
    for column in ("#", "members", "lanes", "d_in", "d_sae", "batch", "steps", "params", "GFLOP", "memory"):
        table.add_column(column, justify="right")
    for index, cohort in enumerate(plan):
        e, source, n = cohort.example, data[cohort.example.data], len(cohort.members)
        at_once = cohort.placement(source.d_in, lanes).lanes
        gflop = step_flops(source.d_in, e.d_sae, e.batch_size) * e.n_steps * n / 1e9
        total += gflop
        numbers = (
            index + 1,
            n,
            at_once,
            source.d_in,
            e.d_sae,
            e.batch_size,
            e.n_steps,
            n * parameters(source.d_in, e.d_sae),
        )
        memory = memory_bytes(cohort, source, at_once)
        table.add_row(*[f"{number:,}" for number in numbers], _short(gflop), f"{memory / 2**20:,.0f} MiB")
    console.print(table)
    say(f"in all {_short(total)} GFLOP of matrix products; memory is the expected peak of one program")


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

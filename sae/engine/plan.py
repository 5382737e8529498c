"""How a sweep is cut into cohorts and parts, and what it will cost, before it is run."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from sae.core.definitions import kind
from sae.core.text import count
from sae.core.types import UserError
from sae.data import feed as feeds
from sae.data.feed import block_steps, resident
from sae.data.source import Rows, Sampler
from sae.engine import cohort as cohorts
from sae.engine import runtime
from sae.engine.cohort import Cohort
from sae.engine.lanes import expected as expected_lanes
from sae.study import figures
from sae.study.sweep import Sweep, varying

ROOM = 0.9  # of the free memory that a plan counts on


def make(sweep: Sweep, shards: int = 1) -> list[Cohort]:
    """The cohorts of a sweep, in as many pieces as there are shards at the least, where it has the members."""
    plan = cohorts.plan(sweep.members)
    while len(plan) < shards and max(len(cohort.members) for cohort in plan) > 1:
        largest = max((i for i, cohort in enumerate(plan) if len(cohort.members) > 1), key=lambda i: work(plan[i]))
        plan[largest : largest + 1] = cohorts.divide(plan[largest], 2)
    return plan


def stored(sweep: Sweep, members: Sequence[Sequence[int]]) -> list[Cohort]:
    """The cohorts that an earlier process made, by their members."""
    return [Cohort(tuple(ids), tuple(sweep.members[i] for i in ids)) for ids in members]


def work(cohort: Cohort) -> int:
    """Training a cohort, in products of d_sae × batch, for comparison."""
    e = cohort.example
    return len(cohort.members) * e.d_sae * e.batch_size * e.n_steps


def part(plan: Sequence[Cohort], only: Sequence[int], shard_of: str | None) -> list[int]:
    """The numbers of the cohorts to train: some, a shard, or all. Raises UserError."""
    if only and shard_of:
        raise UserError("only, shard: got both, allowed: one of them")
    if shard_of:
        return shard(plan, shard_of)
    if wrong := [index for index in only if not 0 <= index < len(plan)]:
        raise UserError(f"only: got {wrong[0]}, allowed: the numbers of cohorts, 0 to {len(plan) - 1}")
    return sorted(set(only)) or list(range(len(plan)))


def shard(plan: Sequence[Cohort], text: str) -> list[int]:
    """The cohorts of shard "i/n", i from 1 to n: the heaviest first, each to the shard with the least to do so far."""
    i, n = parse_shard(text)
    loads, of = [0] * n, {}
    for index in sorted(range(len(plan)), key=lambda index: -work(plan[index])):
        of[index] = loads.index(min(loads))
        loads[of[index]] += work(plan[index])
    return [index for index in range(len(plan)) if of[index] == i - 1]


def parse_shard(text: str) -> tuple[int, int]:
    """ "2/4" -> (2, 4). Raises UserError."""
    i, slash, n = text.partition("/")
    if not (slash and i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise UserError(f"shard: got {text!r}, allowed: i/n with i from 1 to n, as 2/4")
    return int(i), int(n)


def load_data(plan: Sequence[Cohort]) -> dict:
    """{source: its data} for every source of a plan. Raises UserError, also for what a user's own source does wrong."""
    data = {}
    for cohort in plan:
        source = cohort.example.data
        if source not in data:
            try:
                data[source] = source.load()
            except (UserError, MemoryError, KeyboardInterrupt):
                raise
            except Exception as error:
                raise UserError(f"{kind(source)}: load() raised {type(error).__name__}: {error}") from error
            if not isinstance(data[source], Rows | Sampler):
                got = type(data[source]).__name__
                raise UserError(f"{kind(source)}: load() gave a {got}, allowed: what sae.rows(...) gives, or a Sampler")
        feeds.check(data[source], cohort.example.batch_size)
    return data


def member_names(members: Sequence[Mapping[str, Any]], default: str) -> list[str]:
    """A name per flattened member, of what varies: "d_sae=128 penalty.l1=0.1 seed=0"."""
    names = figures.varying(members)
    of = lambda flat: " ".join(
        f"{n}={flat[n]:g}" if isinstance(flat[n], float) else f"{n}={flat[n]}" for n in names if n in flat
    )
    return [of(flat) or default for flat in members]


def parameters(d_in: int, d_sae: int) -> int:
    """Of one member: W_enc, W_dec, b_enc, b_dec."""
    return 2 * d_in * d_sae + d_sae + d_in


def step_flops(d_in: int, d_sae: int, batch_size: int) -> int:
    """Of the matrix products of one member's step: two forward, three backward, 2 FLOPs per multiply-add."""
    return 5 * 2 * d_in * d_sae * batch_size


def state_bytes(cohort: Cohort, d_in: int) -> int:
    """Parameters and Adam's two moments of every member, float32."""
    return 4 * 3 * parameters(d_in, cohort.example.d_sae) * len(cohort.members)


def memory_bytes(cohort: Cohort, data: Rows | Sampler, lanes: int) -> int:
    """Expected peak of training a cohort, all float32.

    The state of every member, four times (what goes into a block, what comes out of it, and, while a checkpoint is
    written, a copy of it and a copy that Orbax makes); a gradient and an update of the members computed at once, and
    their latents, pre-activations, the gradients of both, and a mask; a block of batches, drawn and transposed; the
    data.
    """
    e, d_in = cohort.example, data.d_in
    working = lanes * (2 * parameters(d_in, e.d_sae) + 5 * e.d_sae * e.batch_size)
    block = 2 * block_steps(d_in, e.batch_size, e.n_steps) * e.batch_size * d_in
    held = len(data.train) * d_in if resident(data) else 0
    return 4 * state_bytes(cohort, d_in) + 4 * (working + block + held)


def process_bytes(cohort: Cohort, data: Rows | Sampler, lanes: int) -> int:
    """Expected peak of a process that trains a cohort: what it holds now, the compiler, and the training."""
    return runtime.used_bytes() + runtime.compiler_bytes() + memory_bytes(cohort, data, lanes)


def fit(plan: Sequence[Cohort], data: dict, free: int | None = None) -> list[Cohort]:
    """Divide the cohorts that would not fit into `free` bytes (what the device has), where they have the members."""
    fitting = []
    for cohort in plan:
        source = data[cohort.example.data]
        room = (runtime.free_bytes() if free is None else free) * ROOM - runtime.compiler_bytes()
        parts = 1
        while parts < len(cohort.members) and _largest(cohort, parts, source) > room:
            parts += 1
        fitting += cohorts.divide(cohort, parts)
    return fitting


def _largest(cohort: Cohort, parts: int, data: Rows | Sampler) -> int:
    piece = cohorts.divide(cohort, parts)[-1]
    return memory_bytes(piece, data, expected_lanes(piece, data.d_in))


def describe_plan(sweep: Sweep, console: Console, lanes: int | None = None, pieces: int = 1) -> None:
    """Print members, cohorts and why they split, parameters, FLOPs, expected memory. Loads the data for its width."""
    plan, axes = make(sweep, pieces), varying(sweep.members)
    data = load_data(plan)
    whole, plan = len(plan), fit(plan, data)
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
        at_once = lanes or expected_lanes(cohort, source.d_in)
        gflop = step_flops(source.d_in, e.d_sae, e.batch_size) * e.n_steps * n / 1e9
        total += gflop
        numbers = (
            index,
            n,
            at_once,
            source.d_in,
            e.d_sae,
            e.batch_size,
            e.n_steps,
            n * parameters(source.d_in, e.d_sae),
        )
        memory = process_bytes(cohort, source, at_once)
        table.add_row(*[f"{number:,}" for number in numbers], _short(gflop), f"{memory / 2**20:,.0f} MiB")
    console.print(table)
    say(f"in all {_short(total)} GFLOP of matrix products")
    say("memory: the expected peak of the process, while a checkpoint is written")
    if len(plan) > whole:
        say(f"divided from {count(whole, 'program')}, as {runtime.free_bytes() / 2**30:.1f} GiB of memory are free")


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

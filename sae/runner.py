"""A definition in, a folder of results out: plan, train each cohort chunk by chunk, evaluate."""

import contextlib
import secrets
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from jax.sharding import Mesh
from rich.console import Console

from sae import cohort as cohorts
from sae import folder as folders
from sae.checkpoint import Checkpoints
from sae.cohort import Cohort, CohortState, Placement
from sae.data import feed as feeds
from sae.data.feed import RESIDENT_BYTES, Feed
from sae.data.source import Rows, Sampler
from sae.experiment import Experiment, flatten, kind
from sae.loop import compile_block, evaluate, train_cohort
from sae.results import Results
from sae.sinks.records import Outcome, Record, Start
from sae.sinks.tables import Tables
from sae.sinks.terminal import Terminal
from sae.sinks.wandb import Wandb
from sae.sinks.wandb_client import Trial, resolve_mode
from sae.sweep import Sweep, as_sweep, varying
from sae.types import UserError

B_DEC_SAMPLE = 8_192  # training examples that set b_dec at the start


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to stop: its state is saved, and the same command goes on from there."""

    def __init__(self, signal_number: int):
        self.exit_code = 128 + signal_number
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")


def run(
    definition: Experiment | Sweep,
    *,
    out: str | Path | None = None,
    wandb: str = "auto",
    wandb_project: str = "sparsity-lab",
    fresh: bool = False,
    chunk_steps: int | None = None,
    lanes: int | None = None,
    checkpoint_minutes: float = 5.0,
    resident_bytes: int = RESIDENT_BYTES,
    question: str = "",
    console: Console | None = None,
    mesh: Mesh | None = None,
    trial: Trial | None = None,
) -> Results:
    """Train every member of a definition and write the results to `out` (default `runs/<name>`).

    A finished run of the same definition is not run again, and an unfinished one goes on where it was stopped, bit
    for bit: at its last checkpoint, of which there is one every `checkpoint_minutes` and one at SIGINT or SIGTERM.
    `wandb`: auto, online, offline or off. `fresh` moves an older run aside first. How the work is cut is free:
    `chunk_steps` (steps between log points) and `resident_bytes` (data above it streams from the host) do not
    change a bit of the weights, `lanes` (members computed at once) changes them by rounding. `trial`: the W&B run
    that this run of one member is, where a `wandb agent` asked for it.
    Raises UserError for bad input, OSError where results cannot be written, Interrupted at a signal.
    """
    sweep = as_sweep(definition)
    for name, value in (("chunk_steps", chunk_steps), ("lanes", lanes)):
        if value is not None and value < 1:
            raise UserError(f"{name}: got {value}, allowed: at least 1")
    console = console or Console(stderr=True)
    say = lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True)
    mode = resolve_mode(wandb)
    folder = Path(out).expanduser() if out is not None else Path("runs") / sweep.name
    older = None if fresh else folders.older_run(folder, sweep)
    if older is not None and older.finished:
        say(f"{folder}: this run is finished already; nothing to do (--fresh runs it again)")
        return older

    plan = cohorts.plan(sweep.members)
    data = load_data(plan)
    if fresh and (aside := folders.move_aside(folder)):
        say(f"moved the older run aside: {aside}")
    folders.make(folder)

    names = member_names(sweep)
    with contextlib.ExitStack() as stack:
        stack.enter_context(folders.lock(folder))
        older = folders.older_run(folder, sweep)  # again, now that no other process can change it
        token = secrets.token_hex(4) if older is None else older.definition["token"]
        if older is None:
            folders.describe(folder, sweep, question, token)
        terminal, tables = Terminal(console, len(plan)), Tables(folder)
        sinks = [terminal, tables]
        if mode is not None:
            labels = {"project": wandb_project, "group": sweep.name, "token": token, "trial": trial}
            sinks.append(Wandb(folder, mode=mode, say=terminal.say, **labels))
        for sink in reversed(sinks):
            stack.callback(sink.close)
        caught = stack.enter_context(_signals())
        for index, cohort in enumerate(plan):
            if tables.finished.issuperset(cohort.members):
                terminal.say(f"cohort {index + 1}/{len(plan)}: finished already")
                continue
            e, of_cohort = cohort.example, [names[i] for i in cohort.members]
            source = data[e.data]
            placement = cohort.placement(source.d_in, lanes, mesh)
            checkpoints = stack.enter_context(contextlib.closing(Checkpoints(folder, index, terminal.say)))
            feed = Feed(source, e.data_seed, e.batch_size, e.n_steps, resident_bytes, placement.shared)
            with contextlib.closing(feed):
                _run_cohort(
                    index, cohort, feed, of_cohort, sinks, tables, checkpoints, caught, chunk_steps, placement,
                    60 * checkpoint_minutes,
                )  # fmt: skip
            checkpoints.remove()
    return Results(folder)


def _run_cohort(
    index: int,
    cohort: Cohort,
    feed: Feed,
    names: Sequence[str],
    sinks: Sequence,
    tables: Tables,
    checkpoints: Checkpoints,
    caught: list[int],
    chunk_steps: int | None,
    placement: Placement,
    checkpoint_seconds: float,
) -> None:
    """Train, evaluate and report one cohort, from its last checkpoint if it has one."""
    example, experiments, n = cohort.example, cohort.stacked(placement), len(cohort.members)
    sample = feed.candidates(0, B_DEC_SAMPLE).transpose(1, 0, 2).reshape(feed.data.d_in, -1)
    state, start = cohorts.init(experiments, sample, placement=placement), 0
    if (restored := checkpoints.restore(state)) is not None:
        start, state = restored
    begun = time.perf_counter()
    program = compile_block(experiments, state, feed, placement)
    seconds = time.perf_counter() - begun
    history = tuple(tables.records(index, cohort, start))
    for sink in sinks:
        sink.start(Start(index, cohort, tuple(names), seconds, start, history))

    waiting: list[tuple[int, dict]] = []

    def report() -> None:
        step, numbers = waiting.pop(0)
        values = {f"train/{name}": value for name, value in cohorts.fetch(numbers, n).items()}
        for sink in sinks:
            sink.record(Record(index, cohort, step, step * example.batch_size, values))

    def save(step: int, state: CohortState) -> None:
        while waiting:
            report()
        tables.flush()  # a checkpoint's history is on the disk before it is
        checkpoints.save(step, state)

    saved = time.monotonic()
    training = train_cohort(
        state, cohort, experiments, feed, placement, start=start, chunk_steps=chunk_steps, program=program
    )
    for state, step, numbers in training:
        if numbers is not None:
            waiting.append((step, numbers))
            if len(waiting) > 1:  # the device has this chunk to work on while the numbers of the one before are read
                report()
        if caught:
            save(step, state)
            raise Interrupted(caught[0])
        if numbers is not None and time.monotonic() - saved >= checkpoint_seconds:
            save(step, state)
            saved = time.monotonic()
    while waiting:
        report()

    values, firing_rates, diverged = evaluate(cohort, feed, state, placement)
    status = tuple("diverged" if bad else "finished" for bad in diverged)
    outcome = Outcome(index, cohort, status, values, firing_rates, cohorts.fetch(state.train.sae, n))
    for sink in sinks:
        sink.finish(outcome)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """The first SIGINT or SIGTERM is written in the list that this gives; a second one does what it always does."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught  # only the main thread may handle signals
        return

    def note(number, _):
        caught.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


def member_names(sweep: Sweep) -> list[str]:
    """A name per member, of what varies: "d_sae=128 penalty.l1=0.1 seed=0"."""
    names = varying(sweep.members)
    flats = [flatten(member) for member in sweep.members]
    of = lambda flat: " ".join(
        f"{n}={flat[n]:g}" if isinstance(flat[n], float) else f"{n}={flat[n]}" for n in names if n in flat
    )
    return [of(flat) or sweep.name for flat in flats]

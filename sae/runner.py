"""A definition in, a folder of results out: plan, train each cohort chunk by chunk, evaluate."""

import contextlib
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from rich.console import Console

from sae import cohort as cohorts
from sae import folder as folders
from sae.cohort import Cohort
from sae.data import feed as feeds
from sae.data.feed import RESIDENT_BYTES, Feed
from sae.experiment import Experiment, flatten
from sae.loop import compile_block, evaluate, train_cohort
from sae.results import Results
from sae.sinks.records import Outcome, Record, Start
from sae.sinks.tables import Tables
from sae.sinks.terminal import Terminal
from sae.sinks.wandb import Wandb
from sae.sinks.wandb_client import resolve_mode
from sae.sweep import Sweep, as_sweep, varying
from sae.types import UserError

B_DEC_SAMPLE = 8_192  # training examples that set b_dec at the start


def run(
    definition: Experiment | Sweep,
    *,
    out: str | Path | None = None,
    wandb: str = "auto",
    wandb_project: str = "sparsity-lab",
    fresh: bool = False,
    chunk_steps: int | None = None,
    lanes: int | None = None,
    resident_bytes: int = RESIDENT_BYTES,
    question: str = "",
    console: Console | None = None,
) -> Results:
    """Train every member of a definition and write the results to `out` (default `runs/<name>`).

    A finished run of the same definition is not run again. `wandb`: auto, online, offline or off. `fresh` moves
    an older run aside first. How the work is cut is free: `chunk_steps` (steps between log points) and
    `resident_bytes` (data above it streams from the host) do not change a bit of the weights, `lanes` (members
    computed at once) changes them by rounding. Raises UserError for bad input, OSError where results cannot be written.
    """
    sweep = as_sweep(definition)
    for name, value in (("chunk_steps", chunk_steps), ("lanes", lanes)):
        if value is not None and value < 1:
            raise UserError(f"{name}: got {value}, allowed: at least 1")
    console = console or Console(stderr=True)
    say = lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True)
    mode = resolve_mode(wandb)
    folder = Path(out) if out is not None else Path("runs") / sweep.name
    if not fresh and folders.finished_before(folder, sweep):
        say(f"{folder}: this run is finished already; nothing to do (--fresh runs it again)")
        return Results(folder)

    plan = cohorts.plan(sweep.members)
    data = {source: source.load() for source in dict.fromkeys(cohort.example.data for cohort in plan)}
    for cohort in plan:
        feeds.check(data[cohort.example.data], cohort.example.batch_size)
    if fresh and (aside := folders.move_aside(folder)):
        say(f"moved the older run aside: {aside}")
    token = secrets.token_hex(4)
    folders.open_folder(folder, sweep, question, token)

    names = member_names(sweep)
    with contextlib.ExitStack() as stack:
        terminal = Terminal(console, len(plan))
        sinks = [terminal, Tables(folder)]
        if mode is not None:
            sinks.append(
                Wandb(folder, mode=mode, project=wandb_project, group=sweep.name, token=token, say=terminal.say)
            )
        for sink in reversed(sinks):
            stack.callback(sink.close)
        for index, cohort in enumerate(plan):
            e, of_cohort = cohort.example, [names[i] for i in cohort.members]
            source = data[e.data]
            with contextlib.closing(Feed(source, e.data_seed, e.batch_size, e.n_steps, resident_bytes)) as feed:
                _run_cohort(index, cohort, feed, of_cohort, sinks, chunk_steps, lanes or cohort.lanes(source.d_in))
    return Results(folder)


def _run_cohort(
    index: int, cohort: Cohort, feed: Feed, names: Sequence[str], sinks: Sequence, chunk_steps: int | None, lanes: int
) -> None:
    """Train, evaluate and report one cohort."""
    example, experiments = cohort.example, cohort.stacked()
    sample = feed.candidates(0, B_DEC_SAMPLE).transpose(1, 0, 2).reshape(feed.data.d_in, -1)
    state = cohorts.init(experiments, sample, lanes=lanes)
    begun = time.perf_counter()
    program = compile_block(experiments, state, feed, lanes)
    for sink in sinks:
        sink.start(Start(index, cohort, tuple(names), time.perf_counter() - begun))

    def report(step: int, numbers) -> None:
        values = {f"train/{name}": value for name, value in jax.device_get(numbers).items()}
        for sink in sinks:
            sink.record(Record(index, cohort, step, step * example.batch_size, values))

    waiting = None
    for after, chunk in train_cohort(state, cohort, experiments, feed, lanes, chunk_steps, program):
        # the device has the next chunk to work on while the numbers of the one before are read
        if waiting:
            report(*waiting)
        state, waiting = after, chunk
    report(*waiting)

    values, firing_rates, diverged = evaluate(cohort, feed, state, lanes)
    status = tuple("diverged" if bad else "finished" for bad in diverged)
    outcome = Outcome(index, cohort, status, values, firing_rates, jax.device_get(state.train.sae))
    for sink in sinks:
        sink.finish(outcome)


def member_names(sweep: Sweep) -> list[str]:
    """A name per member, of what varies: "d_sae=128 penalty.l1=0.1 seed=0"."""
    names = varying(sweep.members)
    flats = [flatten(member) for member in sweep.members]
    of = lambda flat: " ".join(
        f"{n}={flat[n]:g}" if isinstance(flat[n], float) else f"{n}={flat[n]}" for n in names if n in flat
    )
    return [of(flat) or sweep.name for flat in flats]

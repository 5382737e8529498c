"""A definition in, a folder of results out: plan, train each cohort chunk by chunk, evaluate."""

import errno
import importlib.metadata
import json
import math
import os
import platform
import secrets
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from sae import cohort as cohorts
from sae import results
from sae.cohort import Cohort, CohortState
from sae.data.feed import RESIDENT_BYTES, Feed
from sae.data.source import Sampler
from sae.experiment import Experiment, flatten
from sae.results import Results
from sae.sinks.records import Outcome, Record, Start
from sae.sinks.tables import Tables
from sae.sinks.terminal import Terminal
from sae.sinks.wandb import Wandb
from sae.sinks.wandb_client import resolve_mode
from sae.sweep import Sweep, as_sweep, varying
from sae.types import UserError

CHUNKS = 50  # log points of a run, unless chunk_steps says otherwise
B_DEC_SAMPLE = 8_192  # training examples that set b_dec at the start
PACKAGES = ("sparsity-lab", "jax", "jaxlib", "flax", "optax", "numpy", "tensorflow-datasets", "wandb")


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
    mode = resolve_mode(wandb)
    folder = Path(out) if out is not None else Path("runs") / sweep.name
    members = [_plain(flatten(member)) for member in sweep.members]
    if _finished_before(folder, members, fresh, console):
        return Results(folder)

    plan = cohorts.plan(sweep.members)
    data = {source: source.load() for source in dict.fromkeys(cohort.example.data for cohort in plan)}
    feeds = [_feed(data[cohort.example.data], cohort.example, resident_bytes) for cohort in plan]
    _make(folder)
    token = secrets.token_hex(4)
    results.write_definition(folder, _describe(sweep, question, members, token))

    terminal = Terminal(console, len(plan))
    sinks = [terminal, Tables(folder)]
    if mode is not None:
        sinks.append(Wandb(folder, mode=mode, project=wandb_project, group=sweep.name, token=token, say=terminal.say))
    names = member_names(sweep)
    try:
        for index, (cohort, feed) in enumerate(zip(plan, feeds, strict=True)):
            _run_cohort(
                index, cohort, feed, [names[i] for i in cohort.members], sinks, chunk_steps, lanes or cohort.lanes()
            )
            feed.close()
    finally:
        for sink in sinks:
            sink.close()
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

    outcome = evaluate(index, cohort, feed, state, lanes)
    for sink in sinks:
        sink.finish(outcome)


def compile_block(experiments, state: CohortState, feed: Feed, lanes: int):
    """The compiled program of a block, the same for any number of steps."""
    pivot, zero = jnp.asarray(feed.data.mean), jnp.int32(0)
    return cohorts.train_block.lower(experiments, state, feed.block(0), pivot, zero, zero, lanes=lanes).compile()


def train_cohort(
    state: CohortState, cohort: Cohort, experiments: Experiment, feed: Feed, lanes: int, chunk_steps=None, program=None
) -> Iterator[tuple[CohortState, tuple[int, dict]]]:
    """Train from step 0 to n_steps; after every chunk, give (state, (step, its numbers, still on the device))."""
    program = program or compile_block(experiments, state, feed, lanes)
    example, pivot = cohort.example, jnp.asarray(feed.data.mean)
    for step, n, ends_chunk in blocks(example, feed.steps, chunk_steps):
        then = step + n
        state = program(
            experiments,
            state,
            feed.block(step, then if then < example.n_steps else None),
            pivot,
            jnp.int32(step),
            jnp.int32(n),
        )
        if then in example.revival.steps() and then < example.n_steps:
            candidates = feed.candidates(then, example.revival.n_candidates)
            state = cohorts.revive(experiments, state, jnp.int32(then), candidates, lanes=lanes)
        if ends_chunk:
            state, numbers = cohorts.end_chunk(experiments, state)
            yield state, (then, numbers)


def evaluate(index: int, cohort: Cohort, feed: Feed, state: CohortState, lanes: int) -> Outcome:
    """Held-out numbers of every member of a trained cohort."""
    saes, example = state.train.sae, cohort.example
    window = cohorts.new_window(len(cohort.members), example.d_sae, feed.data.d_in)
    pivot = jnp.asarray(feed.data.mean)
    for x, weight in feed.held_out(example.n_eval):
        window = cohorts.evaluate_batch(saes, window, x, weight, pivot, lanes=lanes)
    numbers, firing_rates = cohorts.end_evaluation(window)
    if isinstance(feed.data, Sampler):
        numbers |= cohorts.feature_recovery(saes, jnp.asarray(feed.data.features), jnp.asarray(feed.data.frequencies))
    numbers |= {"examples": np.full(len(cohort.members), int(window[1].n))}
    numbers, firing_rates, diverged = jax.device_get((numbers, firing_rates, state.train.diverged))
    return Outcome(
        index=index,
        cohort=cohort,
        status=tuple("diverged" if bad else "finished" for bad in diverged),
        values={f"eval/{name}": value for name, value in numbers.items()},
        firing_rates=firing_rates,
        saes=jax.device_get(saes),
    )


def blocks(experiment: Experiment, block_steps: int, chunk_steps: int | None) -> Iterator[tuple[int, int, bool]]:
    """(step, number of steps, whether a chunk ends there) from step 0 to n_steps.

    A block ends where a chunk ends, where latents are revived, and after `block_steps` at the latest.
    """
    chunk = chunk_steps or math.ceil(experiment.n_steps / CHUNKS / block_steps) * block_steps
    revivals, step = experiment.revival.steps(), 0
    while step < experiment.n_steps:
        marks = [step + block_steps, (step // chunk + 1) * chunk, experiment.n_steps]
        end = min(marks + [at for at in revivals if at > step])
        yield step, end - step, end % chunk == 0 or end == experiment.n_steps
        step = end


def member_names(sweep: Sweep) -> list[str]:
    """A name per member, of what varies: "d_sae=128 penalty.l1=0.1 seed=0"."""
    names = varying(sweep.members)
    flats = [flatten(member) for member in sweep.members]
    of = lambda flat: " ".join(
        f"{n}={flat[n]:g}" if isinstance(flat[n], float) else f"{n}={flat[n]}" for n in names if n in flat
    )
    return [of(flat) or sweep.name for flat in flats]


def _feed(data, experiment: Experiment, resident_bytes: int) -> Feed:
    try:
        return Feed(data, experiment.data_seed, experiment.batch_size, experiment.n_steps, resident_bytes)
    except UserError as error:
        raise UserError(f"{experiment.name!r}: {error}") from None


def _finished_before(folder: Path, members: list[dict], fresh: bool, console: Console) -> bool:
    """True if the folder holds a finished run of these members. Raises UserError if it holds another's."""
    if fresh and folder.exists():
        aside = next(p for i in range(1, 10**6) if not (p := folder.with_name(f"{folder.name}.old-{i}")).exists())
        folder.rename(aside)
        console.print(f"moved the older run aside: {aside}", highlight=False, markup=False, soft_wrap=True)
    if (folder / results.DEFINITION).exists():
        older = Results(folder)
        if difference := _first_difference(older.definition["members"], members):
            raise UserError(
                f"{folder} holds a different definition: {difference}; use --out DIR, or --fresh to move it aside"
            )
        if older.finished:
            line = f"{folder}: this run is finished already; nothing to do (--fresh runs it again)"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
            return True
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no run; use --out DIR with a new or empty folder")
    return False


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(f"{folder}: not writable ({error.strerror}); use --out DIR with a folder of your own") from None


def _first_difference(theirs: list[dict], ours: list[dict]) -> str | None:
    for i, (old, new) in enumerate(zip(theirs, ours, strict=False)):
        for name in dict.fromkeys([*old, *new]):
            if repr(old.get(name)) != repr(new.get(name)):
                return f"{name} of member {i} is {old.get(name)!r} there and {new.get(name)!r} here"
    if len(theirs) != len(ours):
        return f"{len(theirs)} members there and {len(ours)} here"
    return None


def _describe(sweep: Sweep, question: str, members: list[dict], token: str) -> dict[str, Any]:
    """What definition.json holds."""
    device = jax.devices()[0]
    return {
        "name": sweep.name,
        "question": question,
        "token": token,
        "members": members,
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "device": {"kind": device.device_kind, "platform": device.platform, "count": jax.device_count()},
        "host": platform.node(),
        "git_commit": _git_commit(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _plain(flat: dict) -> dict:
    """As JSON would give it back."""
    return json.loads(json.dumps(flat))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The checkout's commit, with "+changes" where files differ from it; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")

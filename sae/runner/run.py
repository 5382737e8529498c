"""A definition in, a folder of results out: plan, train each cohort chunk by chunk, evaluate."""

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from sae.analysis import ask
from sae.core.definitions import flatten
from sae.core.types import Interrupted, UserError
from sae.data.feed import RESIDENT_BYTES, Feed
from sae.engine import cost, processes, programs
from sae.engine import plan as plans
from sae.engine.checkpoints import Checkpoints
from sae.engine.cohort import Cohort
from sae.engine.lanes import choose
from sae.engine.loading import load_data
from sae.engine.loop import compile_block, evaluate, train_cohort
from sae.engine.placement import Placement, fetch, parse_mesh
from sae.engine.programs import CohortState
from sae.engine.records import Outcome, Record, Start
from sae.engine.runtime import keep_compiled_programs
from sae.experiment import Experiment
from sae.report.notebook import Results
from sae.report.terminal import Terminal
from sae.store import folder as folders
from sae.store import storage
from sae.store.storage import CohortFiles, DamagedError
from sae.store.tables import Tables
from sae.study import claims
from sae.study.sweep import Sweep, as_sweep, member_names
from sae.wandb.client import Trial
from sae.wandb.settings import resolve_mode
from sae.wandb.sink import Wandb

B_DEC_SAMPLE = 8_192  # training examples that set b_dec at the start


@dataclasses.dataclass(frozen=True)
class _Work:
    """What the cohorts of one run have in common."""

    folder: Path
    say: Callable[[str], None]
    sinks: Sequence  # of several processes, only process 0 has any
    signals: list[int]  # those that came
    chunk_steps: int | None
    checkpoint_seconds: float
    n_images: int  # how often dictionaries are looked at during training

    def tell(self, method: str, event) -> None:
        """Give an event to every sink."""
        for sink in self.sinks:
            getattr(sink, method)(event)

    def interrupt(self, step: int) -> None:
        """Have it written that training stops at a step."""
        for sink in self.sinks:
            if isinstance(sink, Tables):
                sink.interrupt(step)

    def orders(self, since_save: float | None) -> tuple[int, bool]:
        """What all processes do at this step: (the signal they stop for or 0, whether they save)."""
        processes.note(self.signals)
        due = lambda: since_save is not None and since_save >= self.checkpoint_seconds
        stop, save = processes.decided(lambda: (processes.noted(self.signals), due()))
        return stop, save


def run(
    definition: Experiment | Sweep,
    *,
    out: str | Path | None = None,
    wandb: str = "auto",
    wandb_project: str = "sparsity-lab",
    wandb_images: int = 0,
    wandb_artifacts: bool = False,
    conclude: Callable[[Results], None] | None = None,
    fresh: bool = False,
    only: Sequence[int] = (),
    shard: str | None = None,
    chunk_steps: int | None = None,
    lanes: int | None = None,
    checkpoint_minutes: float = 5.0,
    resident_bytes: int = RESIDENT_BYTES,
    question: str = "",
    command: Sequence[str] = (),
    console: Console | None = None,
    mesh: str | None = None,
    trial: Trial | None = None,
) -> Results | None:
    """Train every member of a definition and write the results to `out` (default `runs/<name>`).

    A finished run of the same definition is not run again, and an unfinished one goes on where it was stopped, bit
    for bit: at its last checkpoint, of which there is one every `checkpoint_minutes` and one at SIGINT or SIGTERM.
    `wandb`: auto, online, offline or off; `wandb_images`: how often it gets the dictionaries of image data during
    training; `wandb_artifacts`: whether it gets the weights. `conclude` is called once all is trained, to put figures
    into the folder before W&B gets them. `fresh` moves an older run aside first. `only` (numbers of cohorts) or
    `shard` ("i/n") train a part; several processes may each train theirs in one folder. How the work is cut is free:
    `chunk_steps` (steps between log points) and `resident_bytes` (data above it streams from the host) do not
    change a bit of the weights, `lanes` (members computed at once) changes them by rounding, and so does `mesh`
    ("member=2,latent=4": members over devices, each member over some; without it, members over all devices). `trial`:
    the W&B run that this run of one member is, where a `wandb agent` asked for it.
    Of several processes (`jax.distributed.initialize`) all call this alike, process 0 alone reads and writes `out`,
    and the others get None.
    Raises UserError for bad input and where another process is gone, OSError where results cannot be written,
    Interrupted at a signal.
    """
    for name, value, least in (("chunk_steps", chunk_steps, 1), ("lanes", lanes, 1), ("wandb_images", wandb_images, 0)):
        if value is not None and value < least:
            raise UserError(f"{name}: got {value}, allowed: at least {least}")
    if fresh and (only or shard):
        raise UserError("fresh: got it with a part of the sweep, allowed: the whole sweep, as it moves all parts aside")
    console = console or Console(stderr=True)
    say = lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True)
    keep_compiled_programs()
    sweep = as_sweep(definition)
    pieces = plans.parse_shard(shard)[1] if shard else 1
    with processes.watch(), contextlib.ExitStack() as stack:
        fields = {f"{name} of member {i}": v for i, flat in enumerate(folders.plain(sweep)) for name, v in flat.items()}
        how = {"only": only, "shard": shard, "lanes": lanes, "mesh": mesh, "resident_bytes": resident_bytes}
        processes.same(fields | how | {"chunk_steps": chunk_steps})
        mode = processes.of_lead(lambda: resolve_mode(wandb))
        results = processes.of_lead(
            lambda: prepare(sweep, out=out, fresh=fresh, pieces=pieces, question=question, command=command, say=say)
        )
        plan = plans.stored(sweep, processes.shared(results and results.definition["cohorts"]))
        part = plans.part(plan, only, shard)
        if processes.decided(lambda: results.finished and not _damaged(results.cohorts, lambda line: None)):
            if results:
                say(f"{results.folder}: this run is finished already; nothing to do (--fresh runs it again)")
                _settle(sweep, results, say)
            return results
        data = load_data([plan[index] for index in part])

        spread = parse_mesh(mesh)
        for index in part:  # that it can be, before any is trained
            plan[index].placement(data[plan[index].example.data].d_in, lanes, spread)
        labels = {"project": wandb_project, "group": sweep.name, "trial": trial, "artifacts": wandb_artifacts}
        opened = processes.of_lead(lambda: _open(stack, console, results, part, mode, labels | {"cohorts": part}))
        sinks, say, todo = opened or ((), lambda line: None, None)
        caught = stack.enter_context(_signals())
        to_wandb = [sink for sink in sinks if isinstance(sink, Wandb)]
        n_images = processes.shared(wandb_images if to_wandb else 0)
        work = _Work(_folder(sweep, out), say, sinks, caught, chunk_steps, 60 * checkpoint_minutes, n_images)
        names = member_names([flatten(member) for member in sweep.members], sweep.name)
        for index in processes.shared(todo):
            cohort, e = plan[index], plan[index].example
            source, put = data[e.data], Placement(1, spread).shared
            with contextlib.closing(Feed(source, e.data_seed, e.batch_size, e.n_steps, resident_bytes, put)) as feed:
                placement = cohort.placement(source.d_in, lanes or _lanes(work, index, cohort, feed, spread), spread)
                _run_cohort(work, index, cohort, feed, [names[i] for i in cohort.members], placement)
            processes.of_lead(lambda: _join(results))
        if results and results.finished:
            if caught:
                raise Interrupted(caught[0])
            _settle(sweep, results, say)
            if conclude is not None:
                conclude(results)
            for sink in to_wandb:
                sink.sweep(results)
        elif results:
            left = [str(i) for i, files in enumerate(results.cohorts) if not files.finished]
            say(f"{results.folder}: this part is finished; left are the cohorts {', '.join(left)}")
        return results


def _settle(sweep: Sweep, results: Results, say: Callable[[str], None]) -> None:
    """Ask the measures and decide the claims of a finished run: they may be others than when it was trained."""
    with _stopping_at_once():
        ask.settle(sweep.measures, results, say)
    claims.settle(sweep.claims, results)


def _open(
    stack: contextlib.ExitStack, console: Console, results: Results, part: Sequence[int], mode: str | None, labels: dict
) -> tuple[Sequence, Callable[[str], None], list[int]]:
    """Lock the cohorts of a part and open the sinks, until the stack is closed -> (sinks, say, cohorts to train)."""
    of_part = [results.cohorts[index] for index in part]
    for files in of_part:
        stack.enter_context(folders.lock(files.path))
    terminal = Terminal(console, len(results.cohorts))
    sinks = [terminal, Tables(results.folder)]
    damaged = _damaged(of_part, terminal.say)
    if mode is not None and any(not files.finished for files in of_part):
        labels = labels | {"token": results.definition["token"]}
        sinks.append(Wandb(results.folder, mode=mode, say=terminal.say, **labels))
    for sink in reversed(sinks):
        stack.callback(sink.close)
    todo = [files.index for files in of_part if not files.finished or files.index in damaged]
    for files in of_part:
        if files.index not in todo:
            terminal.say(f"{terminal.title(files.index)}: finished already")
            Checkpoints(files.path / "checkpoints", terminal.say).remove()  # of a process that ended just before this
    return sinks, terminal.say, todo


def _lanes(work: "_Work", index: int, cohort: Cohort, feed: Feed, spread: Mesh | None) -> int:
    """How many lanes a cohort has: they decide how sums are rounded, so what a run began with, it goes on with."""
    stored = lambda: CohortFiles(work.folder, index).state.get("lanes")
    return processes.decided(lambda: stored() or choose(cohort, feed, spread))


def _join(results: Results) -> None:
    with folders.lock(results.folder, wait=True):
        storage.write_joined(results.folder, results.cohorts)


def _folder(sweep: Sweep, out: str | Path | None) -> Path:
    return Path(out).expanduser() if out is not None else Path("runs") / sweep.name


def prepare(
    definition: Experiment | Sweep,
    *,
    out: str | Path | None = None,
    fresh: bool = False,
    pieces: int = 1,
    question: str = "",
    command: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> Results:
    """Make a run's folder and cut its sweep into cohorts, `pieces` at the least; or find that done. Trains nothing.

    Raises UserError for bad input and where the folder holds something else.
    """
    sweep = as_sweep(definition)
    folder = _folder(sweep, out)
    older = None if fresh else folders.older_run(folder, sweep)
    if older is not None:
        folders.describe_again(older, sweep)
        return Results(folder)
    plan = plans.make(sweep, pieces)
    data = load_data(plan)  # what is wrong with data is told before anything is written
    plan = cost.fit(plan, data)
    if fresh and (aside := folders.move_aside(folder)):
        say(f"moved the older run aside: {aside}")
    folders.make(folder)
    with folders.lock(folder, wait=True):  # other parts may start at this moment
        if (older := folders.older_run(folder, sweep)) is None:
            folders.describe(folder, sweep, [cohort.members for cohort in plan], question, command)
    return Results(folder)


def _damaged(cohorts: Sequence[CohortFiles], say: Callable[[str], None]) -> set[int]:
    """Those whose finished files are not what was written; there being no other copy, they are trained again."""
    damaged = set()
    for files in cohorts:
        try:
            files.check()
        except DamagedError as error:
            say(str(error))
            damaged.add(files.index)
    return damaged


def _run_cohort(
    work: _Work, index: int, cohort: Cohort, feed: Feed, names: Sequence[str], placement: Placement
) -> None:
    """Train, evaluate and report one cohort, from its last checkpoint if it has one."""
    example, experiments, n = cohort.example, cohort.stacked(placement), len(cohort.members)
    sample = feed.candidates(0, B_DEC_SAMPLE).transpose(1, 0, 2).reshape(feed.data.d_in, -1)
    state, start, history = programs.init(experiments, sample, placement=placement), 0, []
    checkpoints = Checkpoints(CohortFiles(work.folder, index).path / "checkpoints", work.say)
    if (restored := checkpoints.restore(programs.described(state, n))) is not None:
        start, state, history = restored[0], programs.place_state(restored[1], placement), restored[2]
    begun = time.perf_counter()
    program = compile_block(experiments, state, feed, placement)
    seconds = time.perf_counter() - begun
    processes.meet()  # compiling took each its time, and devices that wait for others wait only so long
    to_record = lambda chunk: Record(index, cohort, chunk[0], chunk[0] * example.batch_size, chunk[1])
    earlier = tuple(map(to_record, history))
    image_shape = feed.data.image_shape
    work.tell("start", Start(index, cohort, tuple(names), placement.lanes, seconds, start, earlier, image_shape))

    waiting: list[tuple[int, dict, tuple | None]] = []
    looks = [example.n_steps * i // (work.n_images + 1) for i in range(1, work.n_images + 1)] if image_shape else []
    looks = [at for at in looks if at > start]

    def report() -> None:
        step, numbers, dictionaries = waiting.pop(0)
        history.append((step, {f"train/{name}": value for name, value in fetch(numbers, n).items()}))
        work.tell("record", dataclasses.replace(to_record(history[-1]), dictionaries=dictionaries))

    def look(step: int, state: CohortState) -> tuple | None:
        """The decoders at the first chunk's end after each of the chosen steps, but the last: it is evaluated."""
        due = [at for at in looks if at <= step]
        if not due or step == example.n_steps:
            return None
        looks[:] = looks[len(due) :]
        W_dec, silent = fetch((state.train.sae.W_dec[...], state.train.silent), n)
        return W_dec, silent >= np.array([[experiment.dead_after] for experiment in cohort.experiments])

    def save(step: int, state: CohortState) -> None:
        while waiting:
            report()
        checkpoints.save(step, programs.fetch_state(state, n), history)

    with contextlib.closing(checkpoints):
        saved = time.monotonic()
        training = train_cohort(
            state, cohort, experiments, feed, placement, start=start, chunk_steps=work.chunk_steps, program=program
        )
        for state, step, numbers in training:
            if numbers is not None:
                waiting.append((step, numbers, look(step, state)))
                if len(waiting) > 1:  # the device has this chunk to work on while the numbers before it are read
                    report()
            stop, due = work.orders(time.monotonic() - saved if numbers is not None else None)
            if stop or due:
                save(step, state)
                saved = time.monotonic()
            if stop:
                work.interrupt(step)
                raise Interrupted(stop)
        while waiting:
            report()

        values, firing_rates, diverged, saes = evaluate(cohort, experiments, feed, state, placement)
        status = tuple("diverged" if bad else "finished" for bad in diverged)
        work.tell("finish", Outcome(index, cohort, status, values, firing_rates, saes))
    checkpoints.remove()


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


@contextlib.contextmanager
def _stopping_at_once() -> Iterator[None]:
    """A signal raises Interrupted where it comes: for what has nothing to save."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, _):
        raise Interrupted(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

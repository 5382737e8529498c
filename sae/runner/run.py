"""How a run goes: prepare its folder, train each cohort, finish."""

import contextlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import rich.console
from jax.sharding import Mesh
from rich.text import Text

from sae.core.console import Console
from sae.core.definitions import flatten
from sae.core.types import Interrupted, UserError
from sae.data.feed import Feed
from sae.data.source import Examples, parts_of
from sae.engine import cost, processes
from sae.engine import plan as plans
from sae.engine.checkpoints import Checkpoints
from sae.engine.cohort import Cohort
from sae.engine.lanes import choose
from sae.engine.loading import Loaded, load_data
from sae.engine.placement import Placement, parse_mesh
from sae.engine.records import Sink
from sae.engine.runtime import keep_compiled_programs
from sae.experiment import Experiment
from sae.report.notebook import Results
from sae.report.terminal import Terminal
from sae.runner.finish import finish
from sae.runner.options import RunOptions
from sae.runner.prepare import damaged, prepare
from sae.runner.signals import first_caught
from sae.runner.training import Work, run_cohort
from sae.store import folder as folders
from sae.store import storage
from sae.store.storage import CHECKPOINTS, CohortFiles
from sae.store.tables import Tables
from sae.study.sweep import Sweep, as_sweep, member_names
from sae.wandb.client import Trial
from sae.wandb.settings import Mode, resolve_mode
from sae.wandb.sink import Wandb

SAME = (
    "only",
    "shard",
    "lanes",
    "mesh",
    "resident_bytes",
    "chunk_steps",
    "keep_every",
    "keep_state",
)  # options that all processes share


def run(
    definition: Experiment | Sweep,
    options: RunOptions | None = None,
    *,
    question: str = "",
    command: Sequence[str] = (),
    console: rich.console.Console | None = None,
    trial: Trial | None = None,
    **fields: Any,
) -> Results | None:
    """Train every member of a definition and write the results to `options.out` (default `runs/<name>`).

    `fields` replace those of the options: `sae.run(sweep, out="runs/x", wandb="off")`; `RunOptions` says what each
    does. A finished run of the same definition is not run again; an unfinished one is resumed bit for bit from its last
    checkpoint. A checkpoint is made every `checkpoint_minutes`, and at SIGINT or SIGTERM. Several processes may each
    train a part (`only`, `shard`) in one folder. `chunk_steps` and `resident_bytes` change no bit of the weights;
    `lanes` and `mesh` change them by rounding.

    `question` and `command` are written in the run's folder; progress is shown on the `console`, stderr if not given;
    `trial` is the W&B run of this run's only member, where a `wandb agent` asked for it.
    In a run of several processes (`jax.distributed.initialize`), all call this alike: process 0 alone reads and writes
    the folder, and the others get None.
    Raises UserError for bad input and where another process is gone, OSError where results cannot be written, and
    Interrupted at a signal.
    """
    options = (options or RunOptions()).replace(**fields)
    options.validate()
    console = console or Console(stderr=True)
    say = lambda line: console.print(Text(line), soft_wrap=True)
    keep_compiled_programs()
    sweep = as_sweep(definition)
    with processes.watch(), contextlib.ExitStack() as stack:
        _check_same(sweep, options)
        mode = processes.of_lead(lambda: resolve_mode(options.wandb, options.wandb_project, trial is not None))
        loaded: Loaded = {}
        results = processes.of_lead(lambda: prepare(sweep, options, question, command, say, loaded))
        plan = plans.stored(sweep, processes.shared(results and results.definition["cohorts"]))
        part = plans.part(plan, options.only, options.shard)
        if processes.decided(lambda: results is not None and results.finished and not damaged(results.cohorts)):
            if results:
                say(f"{results.folder}: this run is finished already; nothing to do (--fresh runs it again)")
                finish(sweep, results, options, say)
            return results

        data = load_data([plan[index] for index in part], loaded)
        mesh = parse_mesh(options.mesh)
        for index in part:  # raises UserError, before any cohort is trained
            plan[index].placement(data[plan[index].example.data].d_in, options.lanes, mesh)
        processes.of_lead(lambda: _check_space(options, plan, part, data, sweep.name))
        opened = processes.of_lead(
            lambda: None if results is None else _open(stack, console, results, sweep, part, mode, options, trial)
        )
        sinks, say, todo = opened or ((), lambda line: None, [])
        caught = stack.enter_context(first_caught())
        to_wandb = [sink for sink in sinks if isinstance(sink, Wandb)]
        n_images = processes.shared(options.wandb_images if to_wandb else 0)
        work = Work(options.folder(sweep.name), options, caught, sinks, say, n_images)
        names = member_names([flatten(member) for member in sweep.members], sweep.name)
        for index in processes.shared(todo):
            cohort = plan[index]
            _train(work, index, cohort, data[cohort.example.data], [names[i] for i in cohort.members], mesh)
            processes.of_lead(lambda: results and _join(results))
        if results and results.finished:
            if caught:
                raise Interrupted(caught[0])
            finish(sweep, results, options, say)
            for sink in to_wandb:
                sink.sweep(results)
        elif results:
            _join(results)
            left = [str(i) for i, files in enumerate(results.cohorts) if not files.finished]
            say(f"{results.folder}: this part is finished; left are the cohorts {', '.join(left)}")
        return results


def _check_same(sweep: Sweep, options: RunOptions) -> None:
    """Check that all processes were given the same members, and the same options where these must agree."""
    members = enumerate(folders.plain(sweep))
    values = {f"{name} of member {i}": value for i, flat in members for name, value in flat.items()}
    processes.same(values | {name: getattr(options, name) for name in SAME})


def _check_space(options: RunOptions, plan: list[Cohort], part: list[int], data: dict, name: str) -> None:
    """Check that the disk has room for the weights that are to be kept. Raises UserError."""
    if not options.keep_every:
        return
    cohorts = [(plan[index], parts_of(data[plan[index].example.data])) for index in part]
    size = sum(
        4 * len(cohort.members) * cost.parameters(e, parts) * (e.n_steps // options.keep_every)
        for cohort, parts in cohorts
        for e in [cohort.example]
    )
    if size > (free := shutil.disk_usage(options.folder(name)).free):
        raise UserError(
            f"keep_every: got {options.keep_every}, that is {size / 2**30:,.1f} GiB of weights, allowed: what the disk "
            f"has room for, {free / 2**30:,.1f} GiB; keep them less often, or use --out DIR on another disk"
        )


def _open(
    stack: contextlib.ExitStack,
    console: rich.console.Console,
    results: Results,
    sweep: Sweep,
    part: Sequence[int],
    mode: Mode | None,
    options: RunOptions,
    trial: Trial | None,
) -> tuple[Sequence[Sink], Callable[[str], None], list[int]]:
    """Lock the cohorts of a part and open the sinks, until the stack is closed -> (sinks, say, cohorts to train)."""
    cohorts_of_part = [results.cohorts[index] for index in part]
    for files in cohorts_of_part:
        stack.enter_context(folders.lock(files.path))
    terminal = Terminal(console, len(results.cohorts))
    sinks: list[Sink] = [terminal, Tables(results.folder)]
    broken = damaged(cohorts_of_part, terminal.say)
    if mode is not None and any(not files.finished for files in cohorts_of_part):
        sinks.append(
            Wandb(
                results.folder,
                mode=mode,
                project=options.wandb_project,
                group=sweep.name,
                token=results.definition["token"],
                say=terminal.say,
                trial=trial,
                artifacts=options.wandb_artifacts,
                cohorts=part,
            )
        )
    for sink in reversed(sinks):
        stack.callback(sink.close)
    todo = [files.index for files in cohorts_of_part if not files.finished or files.index in broken]
    for files in cohorts_of_part:
        if files.index not in todo:
            terminal.say(f"{terminal.title(files.index)}: finished already")
            # a process that ended just after the cohort was finished left its checkpoints
            Checkpoints(files.path / CHECKPOINTS, terminal.say).remove()
    return sinks, terminal.say, todo


def _train(work: Work, index: int, cohort: Cohort, data: Examples, names: Sequence[str], mesh: Mesh | None) -> None:
    """Train one cohort, in as many lanes as it began with."""
    e, put = cohort.example, Placement(1, mesh).shared
    with contextlib.closing(Feed(data, e.data_seed, e.batch_size, e.n_steps, work.options.resident_bytes, put)) as feed:
        lanes = work.options.lanes or _lanes(work, index, cohort, feed, mesh)
        run_cohort(work, index, cohort, feed, names, cohort.placement(data.d_in, lanes, mesh))


def _lanes(work: Work, index: int, cohort: Cohort, feed: Feed, mesh: Mesh | None) -> int:
    """The lanes of a cohort. They affect rounding, so a resumed run keeps its own."""
    stored = lambda: CohortFiles(work.folder, index).state.get("lanes")
    return processes.decided(lambda: stored() or choose(cohort, feed, mesh))


def _join(results: Results) -> None:
    if not any(files.finished for files in results.cohorts):
        return
    with folders.lock(results.folder, wait=True):
        storage.write_joined(results.folder, results.cohorts)

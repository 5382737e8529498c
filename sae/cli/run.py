"""`sae run`: train what a definition file defines, print its answer and the verdicts on its claims."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from rich.text import Text
from tyro.conf import arg

from sae.cli.command import Command, parse
from sae.cli.overrides import kinds, override
from sae.core.console import Console, show
from sae.core.types import UserError
from sae.engine import processes
from sae.engine.plan import part, stored
from sae.experiment import Experiment
from sae.report.notebook import Results
from sae.report.plan import describe_plan
from sae.report.printing import print_answer, print_claims
from sae.runner import launchers
from sae.runner.finish import finish
from sae.runner.options import RunOptions
from sae.runner.prepare import prepare
from sae.runner.run import run
from sae.study import claims
from sae.study import definition_files as loading
from sae.study.sweep import Sweep, as_sweep
from sae.wandb.client import Trial
from sae.wandb.settings import resolve_mode


@dataclasses.dataclass(frozen=True)
class Options(launchers.LaunchOptions, RunOptions):
    """How a run is carried out; none of it changes a result."""

    out: Annotated[Path | None, arg(aliases=["-o"])] = None
    """Folder of the results; runs/<name> if not given."""
    report: bool = True
    """Write report.html, and its figures for a paper, when every member is finished."""
    dry_run: bool = False
    """Print the plan and stop."""
    coordinator: str | None = None
    """Several processes as one run: HOST:PORT of process 0, in all of them; or auto, where Slurm, Open MPI or a TPU pod
    tells each process its place."""
    processes: int | None = None
    """How many processes, with --coordinator HOST:PORT."""
    process: int | None = None
    """Which of them this is, from 0."""
    check: bool = False
    """Exit with 2 where a claim of the sweep fails."""


def main(argv: list[str]) -> int:
    """Run a definition file, with flags that replace its fields and say how."""
    if not argv or argv[0].startswith("-"):
        return without_file(argv, COMMAND)
    path, tokens = Path(argv[0]), argv[1:]
    sweep, options = read(path, load(path), tokens)
    console = Console()
    if options.dry_run:
        describe_plan(sweep, console, options.lanes, options.pieces)
        return 0
    if options.launcher != "none":
        if options.shard or options.coordinator:
            other = "--shard" if options.shard else "--coordinator"
            raise UserError(f"launcher: got {options.launcher} with {other}, allowed: none")
        return _launch(path, tokens, sweep, options, console)
    return carry_out(path, argv, sweep, options, console)


def without_file(argv: Sequence[str], command: Command) -> int:
    """What a command says that needs a definition file and got none: its help, or one line."""
    if {"-h", "--help"} & set(argv):
        more = f"{command.about} With --help after a FILE, every field of the file is shown, too."
        parse(Options, ["--help"], f"sae {command.name} FILE", more)
    raise UserError(f"{command.name}: got no definition file, allowed: sae {command.usage}")


def load(path: Path) -> Experiment | Sweep:
    """A file's definition, checked as it is, so that its faults are not blamed on an override. Raises UserError."""
    definition = loading.load_file(path)
    as_sweep(definition)
    return definition


def read(path: Path, definition: Experiment | Sweep, tokens: Sequence[str]) -> tuple[Sweep, Options]:
    """Apply the flags of a run. Raises UserError."""
    description = f"{loading.question(path)}\n\n{kinds()}"
    definition, options = override(
        definition, tokens, prog=f"sae run {path}", options=Options(), description=description
    )
    return as_sweep(definition), options


def carry_out(
    path: Path, argv: Sequence[str], sweep: Sweep, options: Options, console: Console, trial: Trial | None = None
) -> int:
    """Run a sweep in this process -> exit code."""
    if options.coordinator:
        processes.start(options.coordinator, options.processes, options.process)
    elif options.processes is not None or options.process is not None:
        raise UserError("processes, process: got them without --coordinator, allowed: with --coordinator HOST:PORT")
    command = ["sae", "run", *argv]
    results = run(sweep, options, question=loading.question(path), command=command, trial=trial)
    return _answer(results, options, console) if results and results.finished else 0


def _launch(path: Path, tokens: Sequence[str], sweep: Sweep, options: Options, console: Console) -> int:
    """Run each cohort of a sweep in a process or job of its own -> exit code."""
    say = lambda line: Console(stderr=True).print(Text(line), soft_wrap=True)
    resolve_mode(options.wandb, options.wandb_project)  # here, so that one line tells of its faults and no part starts
    # this process only looks at the device, whose memory is for those that train
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    results = prepare(sweep, options, loading.question(path), ["sae", "run", str(path), *tokens], say)
    plan = stored(sweep, results.definition["cohorts"])
    command = [sys.executable, "-m", "sae.cli", "run", str(path), *tokens, "--launcher", "none", "--no-fresh"]
    command += ["--out", str(results.folder)]
    parts = [
        launchers.Part(f"cohort {index}", [*command, "--only", str(index)])
        for index in part(plan, options.only, options.shard)
        if not results.cohorts[index].finished
    ]
    failures = launchers.launch(parts, results.folder, options, say)
    for failure in failures:
        show(f"sae: {failure}", sys.stderr)
    code = 1 if failures else 0
    if results.finished:
        finish(sweep, results, options, say)
        return _answer(results, options, console) or code
    if not failures and not options.only:
        show(f"sae: {results.folder} is not finished, though no part failed; see its logs", sys.stderr)
        return 1
    return code


def _answer(results: Results, options: Options, console: Console) -> int:
    """Print what a finished run says -> exit code: 2 where --check was given and a claim fails."""
    print_answer(results, console)
    return print_claims({"": claims.read(results.folder)}, console, options.check)


COMMAND = Command("run FILE [--FIELD VALUE ...] [OPTIONS]", "Train what a definition file defines.", main)

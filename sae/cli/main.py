"""The command line: read a definition, override it, plan it, run it, print the answer."""

import dataclasses
import errno
import itertools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Literal, get_type_hints

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import sae
from sae import report
from sae.analysis import ask
from sae.cli.overrides import kinds, only_options, override, parse
from sae.core import files
from sae.core.definitions import choices, kind
from sae.core.text import nearest
from sae.core.types import Interrupted, UserError
from sae.engine import bench, processes
from sae.engine import cohort as cohorts
from sae.engine.loading import load_data
from sae.engine.plan import part, stored
from sae.engine.runtime import keep_compiled_programs
from sae.experiment import Experiment
from sae.report import watch
from sae.report.plan import describe_plan
from sae.report.printing import print_answer, print_claims
from sae.runner import launchers
from sae.runner import run as runner
from sae.store import storage
from sae.study import claims
from sae.study import definition_files as loading
from sae.study.sweep import Sweep, as_sweep
from sae.wandb import dashboard as wandb_dashboard
from sae.wandb import pull as wandb_pull
from sae.wandb import sweeps as wandb_sweeps
from sae.wandb import sync as wandb_sync

USAGE = """usage: sae run FILE [--FIELD VALUE ...] [OPTIONS]   train what a definition file defines
       sae run FILE --help                         every field and option, with its default
       sae report DIR... [-o FILE]                 what came of runs, as one page
       sae claims DIR... [FILE] [--check]          decide runs' claims again
       sae watch DIR [--once]                      how a run goes on, from any terminal; it only reads
       sae bench [FILE] [--FIELD VALUE ...]        how fast it trains, beside bare matrix products; --json
       sae list                                    definition files, data sources, choices
       sae sweep-config FILE [OPTIONS]             a W&B sweep's YAML, of the same axes as the file's sweep
       sae agent-run FILE [--FIELD=VALUE ...]      the one run that a `wandb agent` asks for
       sae sync DIR [--entity E --project P]       bring to W&B what it lacks of a run
       sae pull ENTITY/PROJECT [--group G]         tables of W&B's runs, as a run's folder
       sae dashboard DIR [--entity E --project P]  a W&B workspace and a W&B report of a run's figures; --dry-run"""

COMMANDS = [
    "run",
    "report",
    "claims",
    "watch",
    "bench",
    "list",
    "sweep-config",
    "agent-run",
    "sync",
    "pull",
    "dashboard",
]


@dataclasses.dataclass(frozen=True)
class Options(launchers.Options):
    """How a run is carried out; none of it changes a result."""

    out: Path | None = None
    """Folder of the results; runs/<name> if not given."""
    dry_run: bool = False
    """Print the plan and stop."""
    fresh: bool = False
    """Move an older run in that folder aside and start again."""
    only: tuple[int, ...] = ()
    """Train these cohorts alone, by their numbers in the plan; other processes may train others in the same folder."""
    shard: str | None = None
    """Train part i of n, as 2/4, the cohorts shared out by their cost."""
    pieces: int = 1
    """Cut the sweep into so many cohorts at the least, one process or job each with --launcher."""
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """Weights & Biases; auto is online if a key is configured, else offline."""
    wandb_project: str = "sparsity-lab"
    """The W&B project."""
    wandb_images: int = 0
    """How often W&B gets the dictionaries of image data during training, beside the end."""
    wandb_artifacts: bool = False
    """Give W&B the weights too, as an artifact of the sweep's run."""
    chunk_steps: int | None = None
    """Steps between two log points."""
    lanes: int | None = None
    """Members computed at once."""
    mesh: str | None = None
    """Several devices: member=2,latent=4 divides members over 2 groups of 4, and each member's latents over 4; members
    over all devices if not given."""
    checkpoint_minutes: float = 5.0
    """Minutes between two checkpoints, of which a run that was stopped goes on."""
    coordinator: str | None = None
    """Several processes as one run: HOST:PORT of process 0, in all of them; or auto, where Slurm, Open MPI or a TPU pod
    tells each where it belongs."""
    processes: int | None = None
    """How many processes, with --coordinator HOST:PORT."""
    process: int | None = None
    """Which of them this is, from 0."""
    report: bool = True
    """Write report.html, and its figures for a paper, when every member is finished."""
    check: bool = False
    """Exit with 2 where a claim of the sweep fails."""


@dataclasses.dataclass(frozen=True)
class BenchOptions:
    """How speed is measured."""

    json: bool = False
    """Print JSON instead of a table."""
    lanes: int | None = None
    """Members computed at once."""


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """Where the page goes."""

    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """The file; report.html in the first folder if not given."""


@dataclasses.dataclass(frozen=True)
class ClaimsOptions:
    """Claims decided again."""

    check: bool = False
    """Exit with 2 where one fails."""
    markdown: bool = False
    """Print tables in Markdown, for a page or a paper."""


@dataclasses.dataclass(frozen=True)
class WatchOptions:
    """How it is shown."""

    once: bool = False
    """Show it once and stop."""
    seconds: float = 2.0
    """Between two looks."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line -> exit code: 0, 1 for bad input, 130 or 143 when interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return processes.end(_command(argv))
    except processes.PeerLostError as error:
        return processes.lost(error)
    except UserError as error:
        return _fail(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        advice = "; free some space, or use --out DIR on another disk" if error.errno == errno.ENOSPC else ""
        return _fail(f"{where}{error.strerror or type(error).__name__}{advice}")
    except Interrupted as stop:
        return _fail(f"{stop}; what was done is saved, and the same command goes on from there", stop.exit_code, None)
    except KeyboardInterrupt:
        return _fail("interrupted", 130, 0.0)
    except BaseException as error:  # a second signal, or a fault of ours
        processes.drop(error)
        raise


def _command(argv: list[str]) -> int:
    match argv:
        case [("report" | "claims" | "watch" | "sync" | "dashboard") as command, "-h" | "--help"]:
            return _command([command, "DIR", "--help"])
        case ["run", *rest]:
            return _run(rest)
        case ["report", *rest]:
            return _report(rest)
        case ["claims", *rest]:
            return _claims(rest)
        case ["watch", *rest]:
            return _watch(rest)
        case ["bench", *rest]:
            return _bench(rest)
        case ["list", *_]:
            return _list()
        case ["sweep-config", *rest]:
            return _sweep_config(rest)
        case ["agent-run", *rest]:
            return _run(rest, of_agent=True)
        case [("sync" | "pull" | "dashboard") as command, *rest]:
            return _wandb(command, rest)
        case [] | ["-h" | "--help"]:
            print(USAGE)
            return 0 if argv else 1
        case [command, *_]:
            raise UserError(f"unknown command '{command}'; {nearest(command, COMMANDS)}")


def _fail(message: str, code: int = 1, seconds: float | None = processes.PARTING) -> int:
    print("sae: " + " ".join(message.split()), file=sys.stderr)
    return processes.end(code, message, seconds)


def _run(argv: list[str], of_agent: bool = False) -> int:
    if argv[:1] == [] or argv[0].startswith("-"):
        print(USAGE)
        return 0 if {"-h", "--help"} & set(argv) else 1
    path, tokens, trial = Path(argv[0]), argv[1:], None
    definition = loading.load_file(path)
    as_sweep(definition)  # the file as it is, so that its faults are not blamed on an override
    if of_agent:
        definition, tokens, trial = wandb_sweeps.read_trial(definition, tokens)
    description = f"{loading.question(path)}\n\n{kinds()}"
    definition, options = override(
        definition, tokens, prog=f"sae run {path}", options=Options(), description=description
    )
    sweep = as_sweep(definition)
    if trial:
        online = "online" if options.wandb == "auto" else options.wandb
        out = options.out or wandb_sweeps.folder(sweep.name, trial)
        options = dataclasses.replace(options, wandb=online, out=out)

    console = Console()
    if options.dry_run:
        describe_plan(sweep, console, options.lanes, options.pieces)
        return 0
    if options.launcher != "none":
        if options.shard or trial or options.coordinator:
            other = "--shard" if options.shard else "a W&B agent's run" if trial else "--coordinator"
            raise UserError(f"launcher: got {options.launcher} with {other}, allowed: none")
        return _launch(path, tokens, sweep, options, console)
    if options.coordinator:
        if trial:
            raise UserError("coordinator: got it with a W&B agent's run, allowed: alone")
        processes.start(options.coordinator, options.processes, options.process)
    elif options.processes is not None or options.process is not None:
        raise UserError("processes, process: got them without --coordinator, allowed: with --coordinator HOST:PORT")
    drawn: list[bool] = []

    def conclude(results: sae.Results) -> None:
        """The report before W&B gets its figures."""
        if options.report and not trial:
            write_report(sweep, results)
        drawn.append(True)

    results = runner.run(
        sweep,
        out=options.out,
        wandb=options.wandb,
        wandb_project=options.wandb_project,
        wandb_images=options.wandb_images,
        wandb_artifacts=options.wandb_artifacts,
        conclude=conclude,
        fresh=options.fresh,
        only=options.only,
        shard=options.shard,
        chunk_steps=options.chunk_steps,
        lanes=options.lanes,
        mesh=options.mesh,
        checkpoint_minutes=options.checkpoint_minutes,
        question=loading.question(path),
        command=["sae", "run", *argv],
        trial=trial,
    )
    if results and results.finished:
        if options.report and not trial and not drawn:  # it was finished before
            write_report(sweep, results)
        print_answer(sweep, results, console)
        return print_claims({"": claims.read(results.folder)}, console, options.check)
    return 0


def _launch(path: Path, tokens: list[str], sweep: Sweep, options: Options, console: Console) -> int:
    """Each cohort in a process or job of its own, then the answer."""
    say = lambda line: Console(stderr=True).print(line, highlight=False, markup=False, soft_wrap=True)
    # this process only looks at the device, whose memory is for those that train
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    results = runner.prepare(
        sweep,
        out=options.out,
        fresh=options.fresh,
        pieces=options.pieces,
        question=loading.question(path),
        command=["sae", "run", str(path), *tokens],
        say=say,
    )
    plan = stored(sweep, results.definition["cohorts"])
    command = [
        sys.executable,
        "-m",
        "sae.cli",
        "run",
        str(path),
        *tokens,
        "--launcher",
        "none",
        "--no-fresh",
    ]
    command += ["--out", str(results.folder)]
    parts = [
        launchers.Part(f"cohort {index}", [*command, "--only", str(index)])
        for index in part(plan, options.only, options.shard)
        if not results.cohorts[index].finished
    ]
    failures = launchers.launch(parts, results.folder, options, say)
    for failure in failures:
        print(f"sae: {failure}", file=sys.stderr)
    if results.finished:
        if options.report:
            write_report(sweep, results)
        print_answer(sweep, results, console)
        return print_claims({"": claims.read(results.folder)}, console, options.check) or (1 if failures else 0)
    elif not failures and not options.only:
        print(f"sae: {results.folder} is not finished, though no part failed; see its logs", file=sys.stderr)
        return 1
    return 1 if failures else 0


def write_report(sweep: Sweep, results: sae.Results) -> None:
    """The report of a finished run, if there is none of it as it is now. No failure of it is one of the run."""
    page = results.folder / report.NAME
    of = [results.folder / n for n in (storage.MEMBERS, storage.DEFINITION, storage.ANALYSIS, claims.NAME)]
    if page.exists() and page.stat().st_mtime >= max(path.stat().st_mtime for path in of if path.exists()):
        return
    say = lambda line: print(f"sae: {line}", file=sys.stderr)
    try:
        from sae.report import build  # plotly and matplotlib, that only those wait for who get a report

        build.build([results], sweep=sweep, say=say)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        say(f"no report: {reason}; the results are whole, and `sae report {results.folder}` tries again")


def _report(argv: list[str]) -> int:
    folders = [Path(token) for token in itertools.takewhile(lambda token: not token.startswith("-"), argv)]
    if not folders:
        print(USAGE)
        return 0 if {"-h", "--help"} & set(argv) else 1
    description = "One HTML file, and PNG and SVG of every figure in a folder beside it."
    options = parse(ReportOptions(), argv[len(folders) :], "sae report DIR...", description)
    if options.out is not None and options.out.suffix != ".html":
        raise UserError(f"--out: got {options.out}, allowed: a .html file")
    from sae.report import build

    keep_compiled_programs()
    page = build.build([sae.load(folder) for folder in folders], options.out)
    print(f"wrote {page}, and its figures to {page.with_suffix('')}")
    return 0


def _claims(argv: list[str]) -> int:
    paths = [Path(token) for token in itertools.takewhile(lambda token: not token.startswith("-"), argv)]
    files, folders = ([p for p in paths if (p.suffix == ".py") == of] for of in (True, False))
    if not folders or len(files) > 1 or (files and len(folders) > 1):
        print(USAGE)
        return 0 if {"-h", "--help"} & set(argv) else 1
    about = "The claims of the definition file that a run was made from, or of FILE, decided again without training."
    options = only_options(ClaimsOptions(), argv[len(paths) :], "claims DIR... [FILE]", about)
    decided = {folder: _decided(folder, *files) for folder in folders}
    if options.markdown:
        print("\n\n".join(claims.markdown(of) for of in decided.values()))
        return 2 if options.check and any(one["verdict"] == "fails" for of in decided.values() for one in of) else 0
    heads = [escape(sae.load(folder).definition["name"]) for folder in folders] if len(folders) > 1 else [""]
    return print_claims(dict(zip(heads, decided.values(), strict=True)), Console(), options.check)


def _decided(folder: Path, path: Path | None = None) -> list[dict]:
    """The claims of a run's definition file, or of another, as claims.json has them."""
    results = sae.load(folder)
    if path is None:
        command = results.definition.get("command", [])
        path = Path(command[2]) if len(command) > 2 else None
        if path is None or not path.exists():
            raise UserError(f"{folder}: its definition file {path or ''} is not here; name it: sae claims DIR FILE")
    sweep = as_sweep(loading.load_file(path))
    if not sweep.claims:
        raise UserError(f"{path} makes no claims; allowed: a sweep with claims=(Claim(...), ...)")
    if results.finished:
        ask.settle(sweep.measures, results)
    return claims.settle(sweep.claims, results)


def _watch(argv: list[str]) -> int:
    if argv[:1] == [] or argv[0].startswith("-"):
        print(USAGE)
        return 0 if {"-h", "--help"} & set(argv) else 1
    options = parse(WatchOptions(), argv[1:], "sae watch DIR", "How a run goes on. It only reads.")
    watch.watch(sae.load(argv[0]), Console(), once=options.once, seconds=options.seconds)
    return 0


def _bench(argv: list[str]) -> int:
    path = Path(argv[0]) if argv and not argv[0].startswith("-") else None
    if path is None:
        unknown = [token for token in argv if token.split("=")[0] not in ("--json", "--lanes", "--help")]
        if any(token.startswith("--") for token in unknown):
            raise UserError(f"bench has no option '{unknown[0]}'; {nearest(unknown[0], ['--json', '--lanes', 'FILE'])}")
        options = parse(BenchOptions(), argv, "sae bench", "The shapes of benchmarks/README.md.")
        work = [bench.shape(*shape) for shape in bench.SHAPES]
    else:
        definition = loading.load_file(path)
        definition, options = override(
            definition, argv[1:], prog=f"sae bench {path}", description=kinds(), options=BenchOptions()
        )
        plan = cohorts.plan(as_sweep(definition).members)
        data = load_data(plan)
        work = [(cohort, data[cohort.example.data]) for cohort in plan]
    speeds = [bench.measure(cohort, data, options.lanes) for cohort, data in work]
    if options.json:
        print(json.dumps(bench.report(speeds), indent=1))
    else:
        bench.table(speeds, Console())
    return 0


def _sweep_config(argv: list[str]) -> int:
    if argv[:1] == [] or argv[0].startswith("-"):
        print(USAGE)
        return 0 if {"-h", "--help"} & set(argv) else 1
    path = Path(argv[0])
    definition, question = loading.load_file(path), loading.question(path)
    options = only_options(wandb_sweeps.Options(), argv[1:], f"sweep-config {path}", "Print a W&B sweep's YAML.")
    text = wandb_sweeps.sweep_yaml(definition, path, options, question)
    if options.out is None:
        print(text, end="")
    elif options.out.suffix not in (".yaml", ".yml"):
        raise UserError(f"--out: got {options.out}, allowed: a .yaml file")
    else:
        files.write_atomically(options.out, lambda file: file.write(text.encode()))
        print(f"wrote {options.out}; next: wandb sweep {options.out}")
    return 0


def _wandb(command: str, argv: list[str]) -> int:
    """Between a run's folder and W&B's server."""
    if argv[:1] == [] or argv[0].startswith("-"):
        print(USAGE)
        return 0 if {"-h", "--help"} & set(argv) else 1
    asked = lambda default, about: only_options(default, argv[1:], f"{command} {argv[0]}", about)
    match command:
        case "sync":
            options = asked(wandb_sync.Options(), "Bring to W&B what it lacks of a run, from its tables.")
            return 0 if wandb_sync.sync(Path(argv[0]), options) else 1
        case "pull":
            about = "Make a run's folder of runs in W&B, without their weights."
            wandb_pull.pull(argv[0], asked(wandb_pull.Options(), about))
        case "dashboard":
            about = "Save a W&B workspace and a W&B report with a run's figures."
            wandb_dashboard.dashboard(Path(argv[0]), asked(wandb_dashboard.Options(), about))
    return 0


def _list() -> int:
    console, root = Console(), loading.checkout()
    for folder in loading.FOLDERS:
        table = Table("file", "question", title=folder, title_justify="left")
        for path in sorted((root / folder).rglob("*.py")):
            table.add_row(str(path.relative_to(root)), escape(loading.question(path)))
        console.print(table)
    hints = get_type_hints(Experiment)
    table = Table("field", "choice", "what it is", title="choices", title_justify="left")
    for field in dataclasses.fields(Experiment):
        for choice in choices(hints[field.name]):
            table.add_row(field.name, kind(choice), escape(" ".join(choice.__doc__.split("\n\n")[0].split())))
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())

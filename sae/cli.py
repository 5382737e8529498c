"""The command line: read a definition, override it, plan it, run it, print the answer."""

import contextlib
import dataclasses
import io
import re
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import pandas as pd
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

import sae
from sae import files, loading, runner
from sae.experiment import Experiment, flatten, kind, replace
from sae.plan import describe_plan
from sae.sweep import Sweep, as_sweep
from sae.types import UserError, nearest

USAGE = """usage: sae run FILE [--FIELD VALUE ...] [OPTIONS]   train what a definition file defines
       sae run FILE --help                         every field and option, with its default
       sae list                                    definition files, data sources, choices"""


@dataclasses.dataclass(frozen=True)
class Options:
    """How a run is carried out; none of it changes a result."""

    out: Path | None = None
    """Folder of the results; runs/<name> if not given."""
    dry_run: bool = False
    """Print the plan and stop."""
    fresh: bool = False
    """Move an older run in that folder aside and start again."""
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """Weights & Biases; auto is online if a key is configured, else offline."""
    wandb_project: str = "sparsity-lab"
    """The W&B project."""
    chunk_steps: int | None = None
    """Steps between two log points."""
    lanes: int | None = None
    """Members computed at once."""


@dataclasses.dataclass(frozen=True)
class Parsed:
    """What the command line gives: an experiment's fields and the options, side by side."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    options: Annotated[Options, tyro.conf.arg(name="")]


def main(argv: list[str] | None = None) -> int:
    """Run the command line -> exit code: 0, 1 for bad input, 130 or 143 when interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        match argv:
            case ["run", *rest]:
                return _run(rest)
            case ["list"]:
                return _list()
            case [] | ["-h" | "--help"]:
                print(USAGE)
                return 0 if argv else 1
            case [command, *_]:
                raise UserError(f"unknown command '{command}'; {nearest(command, ['run', 'list'])}")
    except UserError as error:
        return _fail(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}")
    except KeyboardInterrupt:
        _fail("interrupted; members of finished cohorts are in the tables")
        return 130


def _fail(message: str) -> int:
    print("sae: " + " ".join(message.split()), file=sys.stderr)
    return 1


def _run(argv: list[str]) -> int:
    files = [token for token in argv[:1] if not token.startswith("-")]
    if not files:
        print(USAGE)
        return 0 if {"-h", "--help"} & set(argv) else 1
    path, tokens = Path(files[0]), argv[1:]
    definition = loading.load_file(path)
    as_sweep(definition)  # the file as it is, so that its faults are not blamed on an override
    definition, options = override(definition, tokens, prog=f"sae run {path}", description=loading.question(path))
    sweep = as_sweep(definition)

    console = Console()
    if options.dry_run:
        describe_plan(sweep, console, options.lanes)
        return 0
    results = runner.run(
        sweep,
        out=options.out,
        wandb=options.wandb,
        wandb_project=options.wandb_project,
        fresh=options.fresh,
        chunk_steps=options.chunk_steps,
        lanes=options.lanes,
        question=loading.question(path),
    )
    print_answer(sweep, results, console)
    return 0


def override(
    definition: Experiment | Sweep, tokens: list[str], *, prog: str, description: str = ""
) -> tuple[Experiment | Sweep, Options]:
    """Apply `--dotted.name value` flags to every member -> (definition, options).

    A choice is replaced by its kind (`--activation top-k`), its fields by theirs (`--activation.k 8`). Members that
    an override makes equal are kept once, so `--seed 0` runs a sweep at one seed. Raises UserError.
    """
    members = list(definition.members) if isinstance(definition, Sweep) else [definition]
    members, tokens = _replace_choices(members, tokens)
    given = _given(members, tokens)

    options, parsed = Options(), {}
    for i, member in enumerate(members):
        kinds = tuple(
            (name, value) for name, value in flatten(member).items() if "." not in name and isinstance(value, str)
        )
        if kinds not in parsed:
            parsed[kinds] = _parse(member, tokens, prog, description)
        values, options = parsed[kinds].experiment, parsed[kinds].options
        members[i] = replace(member, {name: _get(values, name) for name in given})
    if not isinstance(definition, Sweep):
        return members[0], options
    unique = {repr(replace(member, {"name": ""})): member for member in members}
    if len(unique) < len(members):
        print(
            f"{len(members)} members, {len(unique)} of them different after {', '.join(f'--{name}' for name in given)}"
        )
    return dataclasses.replace(definition, members=tuple(unique.values())), options


def _replace_choices(members: list[Experiment], tokens: list[str]) -> tuple[list[Experiment], list[str]]:
    """Take `--activation top-k` and its like out of the tokens, and do what they say."""
    hints = get_type_hints(Experiment)
    rest, tokens = [], [part for token in tokens for part in _split(token)]
    while tokens:
        token = tokens.pop(0)
        name = _name(token)
        choices = {kind(c): c for c in getattr(hints.get(name), "__args__", ()) if dataclasses.is_dataclass(c)}
        if not choices or not token.startswith("--"):
            rest.append(token)
            continue
        wanted = tokens.pop(0) if tokens else ""
        if wanted not in choices:
            raise UserError(f"--{name}: got {wanted!r}; {nearest(wanted, choices)}")
        try:
            members = [
                m if kind(getattr(m, name)) == wanted else replace(m, {name: choices[wanted]()}) for m in members
            ]
        except TypeError as error:  # a source with a field that has no default
            raise UserError(f"--{name} {wanted}: {error}; write it in a definition file") from None
    return members, rest


def _given(members: list[Experiment], tokens: list[str]) -> list[str]:
    """The dotted names of fields that the tokens set. Raises UserError for a flag that does not exist."""
    fields = set.intersection(*(set(flatten(member)) for member in members))
    options = {field.name for field in dataclasses.fields(Options)}
    given = []
    for token in tokens:
        if not token.startswith("--") or token == "--help":
            continue
        name = _name(token)
        head, _, last = name.rpartition(".")
        positive = f"{head}.{last.removeprefix('no_')}".lstrip(".") if last.startswith("no_") else name
        if positive in fields:
            given.append(positive)
        elif positive not in options:
            flags = ["--" + known.replace("_", "-") for known in [*sorted(fields), *sorted(options)]]
            raise UserError(f"{members[0].name!r} has no field or option '{token}'; {nearest(token, flags)}")
    return list(dict.fromkeys(given))


def _parse(member: Experiment, tokens: list[str], prog: str, description: str) -> Parsed:
    text = io.StringIO()
    try:
        with contextlib.redirect_stderr(text), contextlib.redirect_stdout(text):
            return tyro.cli(
                Parsed,
                args=tokens,
                prog=prog,
                description=description,
                default=Parsed(member, Options()),
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as stop:
        if stop.code == 0:  # --help
            print(text.getvalue(), end="")
            raise
        raise UserError(_one_line(text.getvalue())) from None


def _one_line(box: str) -> str:
    """The message inside tyro's box: what stands between the title and the next rule, which help follows."""
    groups: list[list[str]] = [[]]
    for line in box.splitlines():
        if "──" in line or "---" in line:
            groups.append([])
        else:
            groups[-1].append(line.strip(" │|"))
    return re.sub(r"^Error parsing ", "", " ".join(groups[1]))


def _split(token: str) -> list[str]:
    return token.split("=", 1) if token.startswith("--") else [token]


def _name(token: str) -> str:
    return token.removeprefix("--").split("=", 1)[0].replace("-", "_")


def _get(value: Any, name: str) -> Any:
    for part in name.split("."):
        value = getattr(value, part)
    return value


def print_answer(sweep: Sweep, results: sae.Results, console: Console) -> None:
    """The sweep's answer, or the held-out numbers where it asks for none; and where everything lies."""
    members = results.members
    everyone, members = members, members[members["status"] == "finished"]
    if len(members) == 0:
        table, title = pd.DataFrame(), "every member diverged: no answer"
    elif sweep.answer is not None:
        table, title = sweep.answer.table(members), sweep.answer.title
        figure = results.folder / "answer.png"
        files.write_atomically(figure, lambda file: sweep.answer.figure(members).savefig(file, format="png"))
    else:
        numbers = [name for name in members.columns if name.startswith("eval/")]
        table, title = members[numbers].median().to_frame("median" if len(members) > 1 else "value"), sweep.name
    console.print(f"\n{title} ({len(members)} members, held out)", highlight=False)
    if len(table):
        console.print(_rich_table(table))
    if diverged := len(everyone) - len(members):
        console.print(f"{diverged} of {len(everyone)} members diverged and are left out", highlight=False)
    names = sorted(path.name for path in results.folder.iterdir() if not path.name.startswith("."))
    console.print(f"results: {results.folder} ({', '.join(names)})", soft_wrap=True, highlight=False)


def _rich_table(frame: pd.DataFrame) -> Table:
    """A data frame whose index names its rows, as a table for the terminal."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for name in frame.index.names:
        table.add_column(name or "", justify="left")
    for column in frame.columns:
        table.add_column("\n".join(column) if isinstance(column, tuple) else str(column), justify="right")
    before: tuple = ()
    for index, row in zip(frame.index, frame.to_numpy(), strict=True):
        labels = index if isinstance(index, tuple) else (index,)
        # a label that repeats the one above it is left out
        shown = [
            ("" if i == 0 and len(labels) > 1 and labels[:1] == before[:1] else str(v)) for i, v in enumerate(labels)
        ]
        table.add_row(*shown, *map(_cell, row))
        before = labels
    return table


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "-" if value != value else f"{value:.3g}"
    return str(value)


def _list() -> int:
    console, root = Console(), loading.checkout()
    for folder in loading.FOLDERS:
        table = Table("file", "question", title=folder, title_justify="left")
        for path in sorted((root / folder).glob("*.py")):
            table.add_row(str(path.relative_to(root)), loading.question(path))
        console.print(table)
    hints = get_type_hints(Experiment)
    table = Table("field", "choice", "what it is", title="choices", title_justify="left")
    for field in dataclasses.fields(Experiment):
        options = getattr(hints[field.name], "__args__", (hints[field.name],))
        for choice in options:
            if dataclasses.is_dataclass(choice):
                table.add_row(field.name, kind(choice), " ".join(choice.__doc__.split("\n\n")[0].split()))
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())

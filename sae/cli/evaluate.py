"""`sae evaluate`: autoencoders of any library on the same held-out examples."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, get_args

from tyro.conf import Positional, arg

from sae.cli.command import Command, read
from sae.core.console import Console, say, show
from sae.core.text import nearest, table
from sae.core.types import UserError
from sae.data import Arrays
from sae.data.source import Normalize, Source
from sae.engine.runtime import keep_compiled_programs
from sae.report.data import number
from sae.runner.evaluation import evaluate
from sae.study import definition_files as loading
from sae.study.sweep import as_sweep

METRICS = ("eval/fvu", "eval/l0", "eval/dead_fraction", "eval/cosine", "eval/shrinkage")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Which autoencoders, and on which examples."""

    paths: Annotated[Positional[tuple[Path, ...]], arg(metavar="PATH...")]
    """Folders of SAELens, dictionary_learning or sparsify, and folders of runs, whose members all take part."""
    data: tuple[Path, ...] = ()
    """The rows: a file or folder as `Arrays` reads them, or a definition file whose data these are. Two files are the
    inputs and the targets of transcoders."""
    normalize: str = "centre"
    """What is done to the rows of files before errors are measured (see `Arrays`)."""
    held_out_fraction: float = 0.1
    """Share of the rows of files that is evaluated: the last ones, which a run on them would hold out."""
    out: Annotated[Path, arg(aliases=["-o"])] = Path("runs/evaluated")
    """The folder of the results, as of a run; an older run there is moved aside."""
    report: bool = True
    """Write report.html."""


def main(argv: list[str]) -> int:
    """Evaluate, print a table, and write the results and their report."""
    options = read(Options, argv, COMMAND)
    keep_compiled_programs()
    if not options.paths:
        raise UserError(f"evaluate: got no folder, allowed: sae {COMMAND.usage}")
    source, data_seed = _source(options)
    results = evaluate(options.paths, source, options.out, ["sae", "evaluate", *argv], data_seed)
    members = results.members
    columns = [name for name in METRICS if name in members]
    rows = [[row["autoencoder"], *(number(row[name]) for name in columns)] for _, row in members.iterrows()]
    say(f"held out, {int(members['eval/examples'].iloc[0]):,} examples")
    show(table(["", *columns], rows, Console().width))
    if options.report:
        from sae.report import build  # imports plotly and matplotlib, which takes a second

        say(f"wrote {build.build([results])}")
    say(f"results: {results.folder}")
    return 0


def _source(options: Options) -> tuple[Source, int]:
    """Where the examples come from, and the seed that chooses them. Raises UserError."""
    if not options.data:
        raise UserError("data: got none, allowed: a file of rows, or a definition file")
    if options.data[0].suffix == ".py":
        sources = {(member.data, member.data_seed) for member in as_sweep(loading.load_file(options.data[0])).members}
        if len(sources) > 1 or len(options.data) > 1:
            raise UserError(f"data: got {len(sources)} sources of data, allowed: a definition file with one")
        return sources.pop()
    if options.normalize not in (allowed := get_args(Normalize)):
        raise UserError(f"normalize: got {options.normalize!r}; {nearest(options.normalize, allowed)}")
    if not 0 < options.held_out_fraction < 1:
        raise UserError(f"held-out-fraction: got {options.held_out_fraction:g}, allowed: above 0 and below 1")
    paths = tuple(map(str, options.data))
    path = paths[0] if len(paths) == 1 else paths
    how: Any = options.normalize
    return Arrays(path=path, normalize=how, held_out_fraction=options.held_out_fraction), 0


COMMAND = Command(
    "evaluate PATH... --data FILE [-o DIR]",
    "Evaluate autoencoders of any library on the same held-out examples.",
    main,
)

"""`sae report`: what came of runs, as one page."""

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated, get_type_hints

from tyro.conf import Positional, arg

import sae
from sae.cli.command import Command, read
from sae.core.console import Console, say
from sae.core.definitions import choices, is_own, kind
from sae.core.types import UserError
from sae.engine.runtime import keep_compiled_programs
from sae.report.printing import print_answer, print_claims
from sae.study import claims
from sae.study.definition_files import load_file

NEEDED = ("data", "activation")  # the choices that looking at dictionaries needs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The runs, and where the page goes."""

    paths: Annotated[Positional[tuple[Path, ...]], arg(metavar="DIR... [FILE...]")]
    """The folders of runs, and the definition files whose own classes they use: a run's folder holds no code."""
    out: Annotated[Path | None, arg(aliases=["-o"])] = None
    """The file; report.html in the first folder if not given. PNG and SVG of every figure go to a folder beside it."""


def main(argv: list[str]) -> int:
    """Print the answers of some runs, and write their report."""
    options = read(Options, argv, COMMAND)
    folders = [path for path in options.paths if path.suffix != ".py"]
    if not folders:
        raise UserError(f"report: got no folder of a run, allowed: sae {COMMAND.usage}")
    if options.out is not None and options.out.suffix != ".html":
        raise UserError(f"--out: got {options.out}, allowed: a .html file")
    from sae.report import build  # imports plotly and matplotlib, which takes a second

    for path in options.paths:
        if path not in folders:
            load_file(path)
    keep_compiled_programs()
    runs, console = [sae.load(folder) for folder in folders], Console()
    for results in runs:
        print_answer(results, console)
        print_claims({"": claims.read(results.folder)}, console)
        for what, file in _not_loaded(results).items():
            say(f"{results.folder}: {what} is a class of {file}, which is not loaded, so the page lacks dictionaries")
            say(f"to show them, name it: sae report {shlex.join([*map(str, options.paths), file])}")
    page = build.build(runs, options.out)
    say(f"wrote {page}, and its figures to {page.with_suffix('')}")
    return 0


def _not_loaded(results: sae.Results) -> dict[str, str]:
    """{"activation shift": its file} of a run's own classes that dictionaries need and that are not defined here."""
    hints = get_type_hints(sae.Experiment)
    needed = {name: file for name, file in results.definition.get("own", {}).items() if name.split()[0] in NEEDED}
    known = {f"{field} {kind(cls)}" for field in NEEDED for cls in choices(hints[field]) if is_own(cls)}
    return {name: file for name, file in needed.items() if name not in known}


COMMAND = Command(
    "report DIR... [FILE...] [-o PAGE]",
    "Print runs' answers; write one HTML page and its figures.",
    main,
)

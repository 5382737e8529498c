"""`sae report`: what came of runs, as one page."""

import dataclasses
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

import sae
from sae.cli.command import Command, read
from sae.core.types import UserError
from sae.engine.runtime import keep_compiled_programs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The runs, and where the page goes."""

    folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="DIR...")]
    """The folders of runs."""
    out: Annotated[Path | None, arg(aliases=["-o"])] = None
    """The file; report.html in the first folder if not given. PNG and SVG of every figure go to a folder beside it."""


def main(argv: list[str]) -> int:
    """Write the report of some runs."""
    options = read(Options, argv, COMMAND)
    if not options.folders:
        raise UserError(f"report: got no folder of a run, allowed: sae {COMMAND.usage}")
    if options.out is not None and options.out.suffix != ".html":
        raise UserError(f"--out: got {options.out}, allowed: a .html file")
    from sae.report import build  # imports plotly and matplotlib, which takes a second

    keep_compiled_programs()
    page = build.build([sae.load(folder) for folder in options.folders], options.out)
    print(f"wrote {page}, and its figures to {page.with_suffix('')}")
    return 0


COMMAND = Command("report DIR... [-o FILE]", "Write one HTML page on runs, and PNG and SVG of every figure.", main)

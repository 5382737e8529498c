"""`sae watch`: how a run goes on, from any terminal."""

import dataclasses
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

import sae
from sae.cli.command import Command, read
from sae.core.console import Console
from sae.report import watch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The run, and how often to look."""

    folder: Annotated[Positional[Path], arg(metavar="DIR")]
    """The folder of a run."""
    once: bool = False
    """Show it once and stop."""
    seconds: float = 2.0
    """Seconds between two looks."""


def main(argv: list[str]) -> int:
    """Show a run until it is finished, or once."""
    options = read(Options, argv, COMMAND)
    watch.watch(sae.load(options.folder), Console(), once=options.once, seconds=options.seconds)
    return 0


COMMAND = Command("watch DIR [--once]", "Show how a run goes on, from any terminal; it only reads.", main)

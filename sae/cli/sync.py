"""`sae sync`: bring to W&B what it lacks of a run."""

import dataclasses
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from sae.cli.command import Command, read
from sae.wandb import sync


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(sync.Options):
    """The run, and its place in W&B."""

    folder: Annotated[Positional[Path], arg(metavar="DIR")]
    """The folder of a run."""


def main(argv: list[str]) -> int:
    """Upload what is missing -> exit code: 1 where some of it did not arrive."""
    options = read(Options, argv, COMMAND)
    return 0 if sync.sync(options.folder, options) else 1


COMMAND = Command("sync DIR [--entity E --project P]", "Bring to W&B what it lacks of a run, from its tables.", main)

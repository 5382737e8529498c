"""`sae dashboard`: a run's figures as a W&B workspace and a W&B report."""

import dataclasses
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from sae.cli.command import Command, read
from sae.wandb import dashboard


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(dashboard.Options):
    """The run, and where to save its figures in W&B."""

    folder: Annotated[Positional[Path], arg(metavar="DIR")]
    """The folder of a run."""


def main(argv: list[str]) -> int:
    """Save both, or write what would be saved."""
    options = read(Options, argv, COMMAND)
    dashboard.dashboard(options.folder, options)
    return 0


COMMAND = Command(
    "dashboard DIR [--entity E --project P]",
    "Save a run's figures as a W&B workspace and a W&B report.",
    main,
)

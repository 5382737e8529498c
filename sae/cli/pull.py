"""`sae pull`: tables of W&B's runs, as a run's folder."""

import dataclasses
from typing import Annotated

from tyro.conf import Positional, arg

from sae.cli.command import Command, read
from sae.wandb import pull


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(pull.Options):
    """The runs, and where to put them."""

    project: Annotated[Positional[str], arg(metavar="ENTITY/PROJECT")]
    """The W&B project, as in the address of its page."""


def main(argv: list[str]) -> int:
    """Write the folder."""
    options = read(Options, argv, COMMAND)
    pull.pull(options.project, options)
    return 0


COMMAND = Command("pull ENTITY/PROJECT [--group G]", "Make a run's folder of W&B's runs, without their weights.", main)

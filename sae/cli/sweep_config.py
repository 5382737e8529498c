"""`sae sweep-config`: the axes of a file's sweep as a W&B sweep's YAML."""

import dataclasses
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from sae.cli.command import Command, read
from sae.core.console import say, show
from sae.core.files import write_atomically
from sae.core.types import UserError
from sae.study import definition_files as loading
from sae.wandb import sweeps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(sweeps.Options):
    """The file, and what to ask of W&B."""

    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """The definition file."""


def main(argv: list[str]) -> int:
    """Print the YAML or write it to a file."""
    options = read(Options, argv, COMMAND)
    definition = loading.load_file(options.file)
    text = sweeps.sweep_yaml(definition, options.file, options, loading.question(options.file))
    if options.out is None:
        show(text.removesuffix("\n"))
    elif options.out.suffix not in (".yaml", ".yml"):
        raise UserError(f"--out: got {options.out}, allowed: a .yaml file")
    else:
        write_atomically(options.out, lambda file: file.write(text.encode()))
        say(f"wrote {options.out}; next: wandb sweep {options.out}")
    return 0


COMMAND = Command("sweep-config FILE [OPTIONS]", "Print a W&B sweep's YAML with the axes of the file's sweep.", main)

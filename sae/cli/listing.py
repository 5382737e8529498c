"""`sae list`: the definition files there are, and the choices of an experiment."""

import dataclasses
from typing import get_type_hints

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sae.cli.command import Command, read
from sae.core.definitions import choices, kind
from sae.experiment import Experiment
from sae.study import definition_files as loading


@dataclasses.dataclass(frozen=True)
class Options:
    """There are none."""


def main(argv: list[str]) -> int:
    """Print tables of definition files, with their questions, and of choices."""
    read(Options, argv, COMMAND)
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
            summary = (choice.__doc__ or "").split("\n\n")[0]
            table.add_row(field.name, kind(choice), escape(" ".join(summary.split())))
    console.print(table)
    return 0


COMMAND = Command("list [--help]", "List definition files, data sources and choices.", main)

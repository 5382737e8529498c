"""`sae list`: the definition files there are, and the choices of an experiment."""

import dataclasses
from collections.abc import Sequence
from typing import get_type_hints

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sae.cli.command import Command, read
from sae.core.console import Console
from sae.core.definitions import choices, kind
from sae.core.text import unquoted
from sae.experiment import Experiment
from sae.study import definition_files as loading

LEAST = 24  # columns that a sentence needs beside names; with fewer it goes below them


@dataclasses.dataclass(frozen=True)
class Options:
    """There are none."""


def main(argv: list[str]) -> int:
    """Print tables of definition files, with their questions, and of choices."""
    read(Options, argv, COMMAND)
    console, root = Console(), loading.checkout()
    for folder in loading.FOLDERS:
        paths = sorted((root / folder).rglob("*.py"))
        rows = [(str(path.relative_to(root)), loading.question(path)) for path in paths]
        _print(console, folder, ("file", "question"), rows)
    hints = get_type_hints(Experiment)
    rows = [
        (field.name, kind(choice), " ".join((choice.__doc__ or "").split("\n\n")[0].split()))
        for field in dataclasses.fields(Experiment)
        for choice in choices(hints[field.name])
    ]
    _print(console, "choices", ("field", "choice", "what it is"), rows)
    return 0


def _print(console: Console, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table whose last column is a sentence, which is wrapped; the names before it are whole in any width."""
    names = [max(map(len, column)) for column in zip(head, *rows, strict=True)][:-1]
    if sum(names) + 3 * len(head) + 1 + LEAST > console.width:
        console.print(Text(f"{title}\n"), soft_wrap=True)
        for *words, sentence in rows:
            console.print(Text(" ".join(words)), soft_wrap=True)
            console.print(Padding(Text(unquoted(sentence)), (0, 0, 0, 4)))
        console.print()
        return
    table = Table(*head[:-1], title=Text(title), title_justify="left")
    for column in table.columns:
        column.no_wrap = True
    table.add_column(head[-1])
    for row in rows:
        table.add_row(*map(Text, row[:-1]), Text(unquoted(row[-1])))
    console.print(table)


COMMAND = Command("list [--help]", "List definition files, data sources and choices.", main)

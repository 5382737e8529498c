"""The terminal. Nothing is printed in another way, so what comes from a file or from W&B cannot steer it."""

import sys
from collections.abc import Iterable
from typing import TextIO

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from sae.core.text import one_line, printable


class Console(rich.console.Console):
    """A console that prints what it is given as text: the only control characters are rich's own."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The pieces of a renderable."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def say(line: str, file: TextIO | None = None) -> None:
    """Print a text in one line, to stdout if no other file is given."""
    print(one_line(line), file=file or sys.stdout)


def show(text: str, file: TextIO | None = None) -> None:
    """Print a text of several lines, to stdout if no other file is given."""
    print(printable(text), file=file or sys.stdout)

"""`sae harvest`: the activations of a language model on texts, as a folder to train on."""

import dataclasses
import time
from pathlib import Path
from typing import Annotated

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text
from tyro.conf import Positional, arg

from sae.cli.command import Command, read
from sae.core.console import Console
from sae.core.text import one_line
from sae.core.types import UserError
from sae.lm.harvesting import Settings, harvest, rehearse
from sae.runner.signals import stopping_at_once

EVERY = 30.0  # seconds between lines where there is no terminal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Settings):
    """Which model, which texts, and how."""

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """A folder of transformers, a .gguf file, or a name on the Hugging Face hub."""
    texts: Annotated[Positional[tuple[str, ...]], arg(metavar="TEXT...")]
    """Files, folders, FILE.jsonl[:FIELD], or hf:NAME[:SPLIT[:COLUMN]], in equal shares."""
    out: Annotated[Path, arg(aliases=["-o"])] = Path("acts")
    """The folder; a harvest that was stopped goes on there."""
    dry_run: bool = False
    """Read the texts, say how many rows and bytes they give, and stop."""


def main(argv: list[str]) -> int:
    """Harvest, and say what is there."""
    options = read(Options, argv, COMMAND)
    if not options.texts:
        raise UserError(f"harvest: got no text, allowed: sae {COMMAND.usage}")
    settings = {field.name: getattr(options, field.name) for field in dataclasses.fields(Settings)}
    shown = Shown(Console())
    with stopping_at_once(), shown.progress:
        if options.dry_run:
            rehearse(options.model, options.texts, say=shown.say, **settings)
            return 0
        harvest(
            options.model, options.texts, options.out, command=["sae", "harvest", *argv], say=shown.say,
            progress=shown.rows, **settings,
        )  # fmt: skip
    return 0


class Shown:
    """Progress for a person: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console, self.live = console, console.is_terminal
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not self.live,
        )
        self.task, self.begun, self.told = None, 0.0, 0.0

    def say(self, line: str) -> None:
        """Print one line above the bar."""
        self.console.print(Text(one_line(line)), soft_wrap=True)

    def rows(self, done: int, total: int, new: int) -> None:
        """Show how far it is, and how fast."""
        now = time.monotonic()
        if self.task is None:
            self.task = self.progress.add_task("rows", total=total, rate="")
            self.begun = self.told = now
            return
        rate = new / max(now - self.begun, 1e-9)
        self.progress.update(self.task, completed=min(done, total), total=total, rate=f"{rate:,.0f} tokens/s")
        if not self.live and new and now - self.told > EVERY:
            self.told = now
            left = max(total - done, 0) / rate
            self.say(f"{done:,} of {total:,} rows, {rate:,.0f} tokens/s, {left:,.0f} s left")


COMMAND = Command(
    "harvest MODEL TEXT... --layer L [--hook NAME] [--tokens N] [-o DIR]",
    "Write the activations of a language model on texts, to train on.",
    main,
)

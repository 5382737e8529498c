"""Progress for a person: a bar per cohort on a terminal, a few plain lines elsewhere."""

import time

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from sae.core.text import count
from sae.engine.records import Outcome, Record, Start

MEDIANS = ("l0", "fvu", "dead_fraction")


class Terminal:
    """The sink that a person watches."""

    def __init__(self, console: Console, n_cohorts: int) -> None:
        self.console, self.n_cohorts = console, n_cohorts
        self.live = console.is_terminal
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[rates]}\n{task.fields[medians]}"),
            console=console,
            disable=not self.live,
        )
        self.progress.start()

    def title(self, index: int) -> str:
        """A cohort's name: its number, as in the tables, and the number of cohorts."""
        return f"cohort {index} of {self.n_cohorts}"

    def start(self, start: Start) -> None:
        """Say what is about to train."""
        cohort, title = start.cohort, self.title(start.index)
        self.begun, self.printed = time.perf_counter(), 0.0
        self.say(f"{title}: {count(len(cohort.members), 'member')}, compiled in {start.compile_seconds:.1f} s")
        if start.step:
            self.say(f"{title}: goes on from step {start.step}")
        self.first, total = start.step, cohort.example.n_steps
        self.task = self.progress.add_task(title, total=total, completed=start.step, rates="", medians="")

    def record(self, record: Record) -> None:
        """Show the step, the speed, and medians over members."""
        step, n_steps = record.step, record.cohort.example.n_steps
        rate = (step - self.first) / max(time.perf_counter() - self.begun, 1e-9)
        rates = f"{rate:,.0f} steps/s, {rate * len(record.cohort.members):,.0f} member-steps/s"
        medians = " ".join(f"{name} {_median(record.values['train/' + name]):.3g}" for name in MEDIANS)
        self.progress.update(self.task, completed=step, rates=rates, medians=medians)
        if not self.live and (step / n_steps >= self.printed + 0.25 or step == n_steps):
            self.printed = step / n_steps
            left = (n_steps - step) / rate
            self.say(f"{self.title(record.index)}: step {step}/{n_steps}, {rates}, {left:.0f} s left, median {medians}")

    def finish(self, outcome: Outcome) -> None:
        """Say which members diverged."""
        bad = [m for m, status in zip(outcome.cohort.members, outcome.status, strict=True) if status == "diverged"]
        if bad:
            self.say(f"{self.title(outcome.index)}: {len(bad)} diverged: members {', '.join(map(str, bad))}")

    def say(self, line: str) -> None:
        """Print one line above the bars."""
        self.console.print(Text(line), soft_wrap=True)

    def close(self) -> None:
        """Restore the terminal."""
        self.progress.stop()


def _median(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else float("nan")

"""Progress for a person: a bar per cohort on a terminal, a few plain lines elsewhere."""

import time

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from sae.core.definitions import flatten
from sae.core.text import count, one_line
from sae.engine.cohort import Cohort
from sae.engine.records import Outcome, Record, Start
from sae.report.warnings import idle, off_target

SHOWN = ("l0", "fvu", "dead_fraction")


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
            TextColumn("{task.fields[rates]}\n{task.fields[numbers]}"),
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
        for sentence in idle(_table(cohort)):
            self.say(f"{title}: {sentence}")
        if start.step:
            self.say(f"{title}: goes on from step {start.step}")
        self.first, total = start.step, cohort.example.n_steps
        self.l0 = [_l0(record) for record in start.history]
        self.task = self.progress.add_task(title, total=total, completed=start.step, rates="", numbers="")

    def record(self, record: Record) -> None:
        """Show the step, the speed, and numbers of the members: their median and range."""
        step, n_steps = record.step, record.cohort.example.n_steps
        self.l0.append(_l0(record))
        rate = (step - self.first) / max(time.perf_counter() - self.begun, 1e-9)
        rates = f"{rate:,.0f} steps/s, {rate * len(record.cohort.members):,.0f} member-steps/s"
        numbers = ", ".join(f"{name} {spread(record.values['train/' + name])}" for name in SHOWN)
        self.progress.update(self.task, completed=step, rates=rates, numbers=numbers)
        if not self.live and (step / n_steps >= self.printed + 0.25 or step == n_steps):
            self.printed = step / n_steps
            left = (n_steps - step) / rate
            self.say(f"{self.title(record.index)}: step {step}/{n_steps}, {rates}, {left:.0f} s left; {numbers}")

    def finish(self, outcome: Outcome) -> None:
        """Say which members diverged, and which missed a target of the control."""
        bad = [m for m, status in zip(outcome.cohort.members, outcome.status, strict=True) if status == "diverged"]
        if bad:
            self.say(f"{self.title(outcome.index)}: {len(bad)} diverged: members {', '.join(map(str, bad))}")
        members = _table(outcome.cohort).assign(status=outcome.status, **{"eval/l0": outcome.values["eval/l0"]})
        for sentence in off_target(members[members["status"] == "finished"], pd.concat(self.l0)):
            self.say(f"{self.title(outcome.index)}: {sentence}")

    def say(self, line: str) -> None:
        """Print one line above the bars."""
        self.console.print(Text(one_line(line)), soft_wrap=True)

    def close(self) -> None:
        """Restore the terminal."""
        self.progress.stop()


def _table(cohort: Cohort) -> pd.DataFrame:
    """A row per member: its number and its hyper-parameters."""
    members = pd.DataFrame([flatten(experiment) for experiment in cohort.experiments], dtype=object)
    return members.assign(member=cohort.members)


def _l0(record: Record) -> pd.DataFrame:
    """Training L0 of a chunk, a row per member."""
    return pd.DataFrame({"member": record.cohort.members, "step": record.step, "train/l0": record.values["train/l0"]})


def spread(values: np.ndarray) -> str:
    """The median over members and their range, "8.4 (2.1 to 60)"; one number where all are the same."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return "nan"
    low, middle, high = (f"{value:.3g}" for value in np.quantile(finite, (0, 0.5, 1)))
    return middle if low == high else f"{middle} ({low} to {high})"

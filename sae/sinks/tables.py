"""The local tables: the durable record of a run."""

import time
from pathlib import Path

import pandas as pd

from sae import results
from sae.experiment import flatten
from sae.sinks.records import Outcome, Record, Start

HISTORY_SECONDS = 15.0  # between two writings of an unfinished cohort's history


class Tables:
    """Writes history.parquet as training goes on; members.parquet and weights when a cohort is finished.

    The members table is written last, so a member that has a row there has its history and weights too.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.history: list[pd.DataFrame] = []
        self.members: list[pd.DataFrame] = []
        self.written, self.unwritten = time.monotonic(), False

    def start(self, start: Start) -> None:
        """Nothing to write yet."""

    def record(self, record: Record) -> None:
        """Keep a chunk's numbers, and write them now and then."""
        row = {"member": record.cohort.members, "step": record.step, "examples": record.examples, **record.values}
        self.history.append(pd.DataFrame(row))
        self.unwritten = True
        if time.monotonic() - self.written > HISTORY_SECONDS:
            self._write_history()

    def finish(self, outcome: Outcome) -> None:
        """Write a cohort's weights, history and members."""
        cohort = outcome.cohort
        hyper = pd.DataFrame([_plain(flatten(experiment)) for experiment in cohort.experiments])
        row = {"member": cohort.members, "cohort": outcome.index, "status": outcome.status, **outcome.values}
        self.members.append(pd.concat([hyper, pd.DataFrame(row)], axis=1))
        results.write_weights(self.folder, outcome.index, cohort.members, outcome.saes)
        self._write_history()
        table = pd.concat(self.members, ignore_index=True).sort_values("member", ignore_index=True)
        results.write_table(self.folder, results.MEMBERS, table)

    def close(self) -> None:
        """Write the history of a cohort that did not finish."""
        if self.unwritten:
            self._write_history()

    def _write_history(self) -> None:
        table = pd.concat(self.history, ignore_index=True).sort_values(["member", "step"], ignore_index=True)
        results.write_table(self.folder, results.HISTORY, table)
        self.written, self.unwritten = time.monotonic(), False


def _plain(flat: dict) -> dict:
    """Values that a table column can hold."""
    return {name: ", ".join(map(str, v)) if isinstance(v, tuple) else v for name, v in flat.items()}

"""The local tables: the durable record of a run."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from sae import results
from sae.cohort import Cohort
from sae.experiment import flatten
from sae.sinks.records import Outcome, Record, Start

HISTORY_SECONDS = 15.0  # between two writings of an unfinished cohort's history


class Tables:
    """Writes history.parquet as training goes on; members.parquet and weights when a cohort is finished.

    The members table is written last, so a member that has a row there has its history and weights too.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        # of an earlier process that was stopped
        self.members = _read(folder / results.MEMBERS)
        self.history = _read(folder / results.HISTORY)
        self.written, self.unwritten = time.monotonic(), False

    @property
    def finished(self) -> set[int]:
        """The members that have their row."""
        return {int(member) for table in self.members for member in table["member"]}

    def start(self, start: Start) -> None:
        """Drop what an earlier process wrote of this cohort after the step from which it goes on."""
        here = lambda table: table["member"].isin(start.cohort.members) & (table["step"] > start.step)
        self.history = [table[~here(table)] for table in self.history]

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
        hyper = pd.DataFrame([_plain(flatten(experiment)) for experiment in cohort.experiments], dtype=object)
        row = {"member": cohort.members, "cohort": outcome.index, "status": outcome.status, **outcome.values}
        self.members.append(pd.concat([hyper, pd.DataFrame(row)], axis=1))
        results.write_weights(self.folder, outcome.index, cohort.members, outcome.saes)
        self._write_history()
        table = pd.concat(self.members, ignore_index=True).sort_values("member", ignore_index=True)
        own = ["member", "cohort", "status", *(name for name in table if name.startswith("eval/"))]
        hyper = table.drop(columns=own).astype(object).apply(_one_type)
        results.write_table(self.folder, results.MEMBERS, pd.concat([hyper, table[own]], axis=1))

    def records(self, index: int, cohort: Cohort, step: int) -> Iterator[Record]:
        """What an earlier process recorded of a cohort up to a step, chunk by chunk."""
        for table in self.history:
            here = table[table["member"].isin(cohort.members) & (table["step"] <= step)]
            for at, chunk in here.groupby("step"):
                chunk = chunk.set_index("member").loc[list(cohort.members)]
                values = {name: chunk[name].to_numpy() for name in chunk.columns if name.startswith("train/")}
                yield Record(index, cohort, int(at), int(chunk["examples"].iloc[0]), values)

    def flush(self) -> None:
        """Write the history of a cohort that has not finished."""
        if self.unwritten:
            self._write_history()

    def close(self) -> None:
        """Leave nothing unwritten."""
        self.flush()

    def _write_history(self) -> None:
        table = pd.concat(self.history, ignore_index=True).sort_values(["member", "step"], ignore_index=True)
        results.write_table(self.folder, results.HISTORY, table)
        self.written, self.unwritten = time.monotonic(), False


def _read(path: Path) -> list[pd.DataFrame]:
    return [pd.read_parquet(path)] if path.exists() else []


def _one_type(column: pd.Series) -> pd.Series:
    """A column of plain values with one type: whole numbers stay whole where some members lack the field."""
    values = column.dropna()
    if all(isinstance(value, bool | np.bool_) for value in values):
        return column.astype(bool if len(values) == len(column) else "boolean")
    if all(isinstance(value, int | np.integer) for value in values):
        return column.astype("int64" if len(values) == len(column) else "Int64")
    if all(isinstance(value, int | float | np.number) for value in values):
        return column.astype(float)
    return column.map(str, na_action="ignore")


def _plain(flat: dict) -> dict:
    """Values that a table column can hold."""
    return {n: v if v is None or isinstance(v, bool | int | float | str) else _text(v) for n, v in flat.items()}


def _text(value) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)

"""The local tables: the durable record of a run."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from sae.core.definitions import flatten
from sae.engine.records import Outcome, Record, Start
from sae.engine.runtime import peak_bytes
from sae.store import storage
from sae.store.storage import CohortFiles

HISTORY_SECONDS = 15.0  # between two writings of an unfinished cohort's history


class Tables:
    """Writes a cohort's history as training goes on, and its members and weights when it is finished."""

    def __init__(self, folder: Path):
        self.folder, self.files, self.unwritten = folder, None, False

    def start(self, start: Start) -> None:
        """Open a cohort's folder."""
        self.files = CohortFiles(self.folder, start.index)
        self.history = [_rows(record) for record in start.history]
        self.seconds = self.files.state.get("seconds", 0.0) if start.step else 0.0  # of training, over all processes
        self.begun = self.written = time.monotonic()
        # what was written of it before, and is not to be read any more, has no checksum
        self.files.mark(
            status="running",
            members=start.cohort.members,
            step=start.step,
            n_steps=start.cohort.example.n_steps,
            lanes=start.lanes,
            compile_seconds=round(start.compile_seconds, 2),
            image_shape=start.image_shape,
            checksums={},
        )

    def record(self, record: Record) -> None:
        """Keep a chunk's numbers, and write them now and then."""
        self.history.append(_rows(record))
        self.unwritten = True
        if time.monotonic() - self.written > HISTORY_SECONDS:
            self._write("running", record.step)

    def interrupt(self, step: int) -> None:
        """Training stops at a step, to go on another time."""
        self._write("interrupted", step)

    def finish(self, outcome: Outcome) -> None:
        """Write a cohort's weights, history and members."""
        cohort = outcome.cohort
        hyper = pd.DataFrame([plain(flatten(experiment)) for experiment in cohort.experiments], dtype=object)
        row = {"member": cohort.members, "cohort": outcome.index, "status": outcome.status, **outcome.values}
        n_steps = cohort.example.n_steps
        self._write("running", n_steps)
        members = storage.join_members([pd.concat([hyper, pd.DataFrame(row)], axis=1)])
        known = {"step": n_steps, "seconds": self._seconds(), "peak_bytes": peak_bytes()}
        self.files.write_weights(cohort.members, outcome.saes, outcome.firing_rates)
        self.files.finish(members, **known)
        self.files = None

    def close(self) -> None:
        """Leave nothing unwritten."""
        if self.files is not None and self.unwritten:
            self.files.write_history(storage.join_history(self.history))

    def _write(self, status: str, step: int) -> None:
        if self.history:
            self.files.write_history(storage.join_history(self.history))
        self.files.mark(status=status, step=step, seconds=self._seconds())
        self.written, self.unwritten = time.monotonic(), False

    def _seconds(self) -> float:
        return round(self.seconds + time.monotonic() - self.begun, 2)


def _rows(record: Record) -> pd.DataFrame:
    return pd.DataFrame(
        {"member": record.cohort.members, "step": record.step, "examples": record.examples, **record.values}
    )


def plain(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Values that a table column can hold."""
    return {n: v if v is None or isinstance(v, bool | int | float | str) else _text(v) for n, v in flat.items()}


def _text(value) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)

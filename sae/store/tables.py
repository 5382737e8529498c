"""The local tables: the durable record of a run."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sae.core.definitions import flatten
from sae.core.model import Sae
from sae.engine.records import Outcome, Record, Start
from sae.engine.runtime import peak_bytes
from sae.store import storage
from sae.store.storage import CohortFiles

HISTORY_SECONDS = 1.0  # between two writes of an unfinished cohort's history, which `sae watch` reads
HISTORY_SHARE = 0.05  # most of the time that these writes may take: where they are slow, they are fewer


class Tables:
    """The sink that writes a cohort's history during training, and its members and weights at the end."""

    files: CohortFiles
    history: list[pd.DataFrame]

    def __init__(self, folder: Path) -> None:
        self.folder, self.unwritten = folder, False

    def start(self, start: Start) -> None:
        """Open a cohort's folder."""
        self.files, self.normalization = CohortFiles(self.folder, start.index), start.normalization
        self.history = [_rows(record) for record in start.history]
        self.seconds = self.files.state.get("seconds", 0.0) if start.step else 0.0  # of training, in earlier processes
        self.begun = self.written = time.monotonic()
        self.wait = HISTORY_SECONDS
        self.files.drop_kept(start.step)
        # without checksums, files of an earlier try do not count as finished
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
        """Keep a chunk's numbers; write them every HISTORY_SECONDS or less often."""
        self.history.append(_rows(record))
        self.unwritten = True
        if time.monotonic() - self.written > self.wait:
            self._write("running", record.step)

    def keep(self, step: int, members: Sequence[int], saes: Sae) -> None:
        """Write the weights after a step, in time for a checkpoint of that step."""
        self.files.keep(step, members, saes, self.normalization)

    def interrupt(self, step: int) -> None:
        """Write the history up to a step at which training stops, to be resumed later."""
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
        self.files.write_weights(cohort.members, outcome.saes, outcome.firing_rates, self.normalization)
        self.files.finish(members, **known)

    def close(self) -> None:
        """Write what is not written yet."""
        if self.unwritten:
            self.files.write_history(storage.join_history(self.history))

    def _write(self, status: str, step: int) -> None:
        begun = time.monotonic()
        if self.history:
            self.history = [storage.join_history(self.history)]
            self.files.write_history(self.history[0])
        self.files.mark(status=status, step=step, seconds=self._seconds())
        self.written, self.unwritten = time.monotonic(), False
        self.wait = max(HISTORY_SECONDS, (self.written - begun) / HISTORY_SHARE)

    def _seconds(self) -> float:
        return round(self.seconds + time.monotonic() - self.begun, 2)


def _rows(record: Record) -> pd.DataFrame:
    return pd.DataFrame(
        {"member": record.cohort.members, "step": record.step, "examples": record.examples, **record.values}
    )


def plain(flat: Mapping[str, Any]) -> dict[str, Any]:
    """A flattened experiment with values that a table's column can hold: None, bool, int, float or text."""
    return {n: v if v is None or isinstance(v, bool | int | float | str) else _text(v) for n, v in flat.items()}


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)

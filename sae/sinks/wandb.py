"""Weights & Biases: one run per member, grouped by sweep, under the names of the tables."""

from pathlib import Path
from typing import Literal

import numpy as np

from sae.experiment import flatten
from sae.metrics import HISTOGRAM_EDGES, firing_rate_histogram
from sae.sinks.records import Outcome, Record, Start
from sae.sinks.wandb_client import Client, Trial


class Wandb:
    """Sends every record to the W&B process, and never waits for it (see `wandb_client.py`)."""

    def __init__(
        self,
        folder: Path,
        *,
        mode: Literal["online", "offline"],
        project: str,
        group: str,
        token: str,
        say,
        trial: Trial | None = None,
    ):
        self.client = Client(folder, mode=mode, project=project, group=group, token=token, say=say, trial=trial)
        self.trial = trial

    def start(self, start: Start) -> None:
        """Begin a run per member, its configuration under dotted names."""
        shared = {"cohort": start.index}
        configs = [
            flatten(experiment) | {"member": member} | shared
            for member, experiment in zip(start.cohort.members, start.cohort.experiments, strict=True)
        ]
        names = [self.trial.name] if self.trial else start.names
        self.client.start_cohort(start.cohort.members, configs, names)
        # wandb may have lost the last rows of a process that was stopped: it gets them all again from the tables, and
        # sees to it that none is in W&B twice
        for record in start.history:
            self.record(record)

    def record(self, record: Record) -> None:
        """Log a chunk."""
        self.client.record(record.cohort.members, record.step, record.examples, record.values)

    def finish(self, outcome: Outcome) -> None:
        """Write held-out numbers as summary scalars and the firing rates as a histogram of their log10."""
        counts = np.stack([firing_rate_histogram(rates) for rates in outcome.firing_rates])
        histograms = {"eval/log10_firing_rate": (HISTOGRAM_EDGES, counts)}
        self.client.finish_cohort(outcome.cohort.members, outcome.status, outcome.values, histograms)

    def close(self) -> None:
        """Let W&B finish, for a bounded time."""
        self.client.close()

"""One cohort, from its last checkpoint to its evaluation, told to the sinks chunk by chunk."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sae.core.model import Sae
from sae.core.types import Interrupted
from sae.data.feed import Feed
from sae.data.source import parts_of
from sae.engine import processes, programs
from sae.engine.checkpoints import Checkpoints
from sae.engine.cohort import Cohort
from sae.engine.loop import compile_block, evaluate, train_cohort
from sae.engine.placement import Placement, fetch
from sae.engine.programs import CohortState
from sae.engine.records import Outcome, Record, Sink, Start
from sae.runner.options import RunOptions
from sae.store.storage import CHECKPOINTS, LAST_STATE, CohortFiles
from sae.store.tables import Tables

B_DEC_SAMPLE = 8_192  # training examples that set b_dec at the start


@dataclasses.dataclass(frozen=True)
class Work:
    """What the cohorts of one run have in common."""

    folder: Path
    options: RunOptions
    caught: list[int]  # signals that came
    sinks: Sequence[Sink]  # in process 0 alone, none in the others
    say: Callable[[str], None]
    n_images: int  # how often dictionaries are recorded during training

    def tell(self, event: Start | Record | Outcome) -> None:
        """Give an event to every sink."""
        for sink in self.sinks:
            match event:
                case Start():
                    sink.start(event)
                case Record():
                    sink.record(event)
                case Outcome():
                    sink.finish(event)

    def interrupt(self, step: int) -> None:
        """Write down that training stops at a step."""
        for sink in self.sinks:
            if isinstance(sink, Tables):
                sink.interrupt(step)

    def keep(self, step: int, members: Sequence[int], saes: Sae) -> None:
        """Write the weights [member, ...] after a step, which are on the host."""
        for sink in self.sinks:
            if isinstance(sink, Tables):
                sink.keep(step, members, saes)

    def orders(self, since_save: float | None) -> tuple[int, bool]:
        """What all processes do at this step -> (the signal they stop for or 0, whether they save).

        `since_save`: seconds since the last checkpoint; None where no chunk ends.
        """
        processes.note(self.caught)
        due = since_save is not None and since_save >= 60 * self.options.checkpoint_minutes
        stop, save = processes.decided(lambda: (processes.noted(self.caught), due))
        return stop, save


class _Log:
    """A cohort's log points. Each is read one chunk late, so that the device always has a chunk to work on."""

    def __init__(self, work: Work, index: int, cohort: Cohort, history: list, looks: list[int]) -> None:
        self.work, self.index, self.cohort = work, index, cohort
        self.history: list[tuple[int, dict[str, np.ndarray]]] = history
        self._looks = looks  # steps after which the dictionaries are recorded
        self._waiting: list[tuple[int, dict[str, Any], tuple[np.ndarray, np.ndarray] | None]] = []

    def records(self) -> tuple[Record, ...]:
        """The history, as sinks know it."""
        return tuple(self._record(*point) for point in self.history)

    def add(self, step: int, numbers: dict[str, Any], state: CohortState) -> None:
        """Add the numbers of a chunk, which are still on the device."""
        self._waiting.append((step, numbers, self._dictionaries(step, state)))
        if len(self._waiting) > 1:
            self._read()

    def flush(self) -> None:
        """Read all that was added."""
        while self._waiting:
            self._read()

    def _read(self) -> None:
        step, numbers, dictionaries = self._waiting.pop(0)
        values = fetch(numbers, len(self.cohort.members))
        self.history.append((step, {f"train/{name}": value for name, value in values.items()}))
        self.work.tell(dataclasses.replace(self._record(*self.history[-1]), dictionaries=dictionaries))

    def _record(self, step: int, values: dict[str, np.ndarray]) -> Record:
        return Record(self.index, self.cohort, step, step * self.cohort.example.batch_size, values)

    def _dictionaries(self, step: int, state: CohortState) -> tuple[np.ndarray, np.ndarray] | None:
        """(W_dec, dead) at the first end of a chunk after each of the looks; not at the last, which is evaluated."""
        due = [at for at in self._looks if at <= step]
        if not due or step == self.cohort.example.n_steps:
            return None
        self._looks = self._looks[len(due) :]
        W_dec, silent = fetch((state.train.sae.W_dec[...], state.train.silent), len(self.cohort.members))
        return W_dec, silent >= np.array([[experiment.dead_window] for experiment in self.cohort.experiments])


def run_cohort(work: Work, index: int, cohort: Cohort, feed: Feed, names: Sequence[str], placement: Placement) -> None:
    """Train, evaluate and record one cohort, from its last checkpoint if it has one. Raises Interrupted at a signal."""
    n, n_steps = len(cohort.members), cohort.example.n_steps
    chunk_steps, keep_every = work.options.chunk_steps, work.options.keep_every
    experiments, parts = cohort.stacked(placement), parts_of(feed.data)
    sample = feed.candidates(0, B_DEC_SAMPLE).transpose(1, 0, 2).reshape(feed.data.d_in, -1)
    state, start, history = programs.init(experiments, sample, placement=placement, parts=parts), 0, []
    folder = CohortFiles(work.folder, index).path
    checkpoints = Checkpoints(folder / CHECKPOINTS, work.say)
    if (restored := checkpoints.restore(programs.described(state, n))) is not None:
        start, state, history = restored[0], programs.place_state(restored[1], placement), restored[2]

    begun = time.perf_counter()
    program = compile_block(experiments, state, feed, placement)
    seconds = time.perf_counter() - begun
    processes.meet()  # each compiled in its own time, and devices wait for each other only so long

    image_shape, n_looks = feed.data.image_shape, work.n_images
    looks = [n_steps * i // (n_looks + 1) for i in range(1, n_looks + 1)] if image_shape else []
    log = _Log(work, index, cohort, history, [at for at in looks if at > start])
    past, normalization = log.records(), feed.data.normalization
    work.tell(Start(index, cohort, tuple(names), placement.lanes, seconds, start, past, image_shape, normalization))

    with contextlib.closing(checkpoints):
        saved = time.monotonic()
        how = {"start": start, "chunk_steps": chunk_steps, "keep_every": keep_every, "program": program}
        training = train_cohort(state, cohort, experiments, feed, placement, **how)
        for state, step, numbers in training:
            if numbers is not None:
                log.add(step, numbers, state)
            if keep_every and step % keep_every == 0:  # before a checkpoint, from which this step is not trained again
                saes = programs.trained(experiments, state, placement=placement)
                work.keep(step, cohort.members, fetch(saes, n))
            stop, save = work.orders(time.monotonic() - saved if numbers is not None else None)
            if stop or save:
                log.flush()
                checkpoints.save(step, programs.fetch_state(state, n), log.history)
                saved = time.monotonic()
            if stop:
                work.interrupt(step)
                raise Interrupted(stop)
        log.flush()
        if work.options.keep_state:  # before the cohort counts as finished
            last = Checkpoints(folder / LAST_STATE, work.say)
            last.remove()
            last.save(n_steps, programs.fetch_state(state, n), log.history)
            last.close()

        values, firing_rates, diverged, saes = evaluate(cohort, experiments, feed, state, placement)
        status = tuple("diverged" if bad else "finished" for bad in diverged)
        work.tell(Outcome(index, cohort, status, values, firing_rates, saes))
    checkpoints.remove()

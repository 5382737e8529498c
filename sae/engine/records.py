"""What training tells its sinks."""

import dataclasses
from typing import Protocol

import numpy as np

from sae.core.model import Sae
from sae.core.normalization import Normalization
from sae.engine.cohort import Cohort


@dataclasses.dataclass(frozen=True)
class Record:
    """The numbers of one chunk of a cohort."""

    index: int
    cohort: Cohort
    step: int
    """Optimizer updates at the end of the chunk."""
    examples: int
    """Training examples seen up to there."""
    values: dict[str, np.ndarray]
    """{"train/l0": [member], ...} over the chunk."""
    dictionaries: tuple[np.ndarray, np.ndarray] | None = None
    """At chosen steps, W_dec [member, d_sae, d_in] and which latents are dead [member, d_sae]."""


@dataclasses.dataclass(frozen=True)
class Start:
    """A cohort is compiled and about to train."""

    index: int
    cohort: Cohort
    names: tuple[str, ...]
    """A name per member, for people: what varies between members."""
    lanes: int
    compile_seconds: float
    step: int = 0
    """The step to train from; above 0 where an earlier process was stopped."""
    history: tuple[Record, ...] = ()
    """What the earlier process recorded up to that step."""
    image_shape: tuple[int, ...] | None = None
    """(height, width) or (height, width, channels) where examples are pictures."""
    normalization: Normalization | None = None
    """What the source does to raw rows; it is kept with weights."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A cohort is trained and evaluated."""

    index: int
    cohort: Cohort
    status: tuple[str, ...]
    """`finished` or `diverged`, per member."""
    values: dict[str, np.ndarray]
    """{"eval/l0": [member], ...}."""
    firing_rates: np.ndarray
    """[member, d_sae] share of held-out examples on which a latent is active."""
    saes: Sae
    """Parameters [member, ...]."""


class Sink(Protocol):
    """Where records go: a terminal, tables, W&B."""

    def start(self, start: Start) -> None:
        """A cohort begins."""
        ...

    def record(self, record: Record) -> None:
        """A chunk ends."""
        ...

    def finish(self, outcome: Outcome) -> None:
        """A cohort ends."""
        ...

    def close(self) -> None:
        """No more comes, whether or not the run is finished."""
        ...

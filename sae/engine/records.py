"""What training tells its sinks. A sink is any object with `start`, `record`, `finish` and `close`."""

import dataclasses

import numpy as np

from sae.core.model import Sae
from sae.engine.cohort import Cohort


@dataclasses.dataclass(frozen=True)
class Record:
    """A chunk's numbers, {"train/l0": [member], ...}, over the `examples` seen up to `step`."""

    index: int
    cohort: Cohort
    step: int
    examples: int
    values: dict[str, np.ndarray]
    dictionaries: tuple[np.ndarray, np.ndarray] | None = None  # at chosen steps: W_dec [member, d_sae, d_in], and
    # which latents are dead [member, d_sae]


@dataclasses.dataclass(frozen=True)
class Start:
    """A cohort is compiled and about to train."""

    index: int
    cohort: Cohort
    names: tuple[str, ...]  # of its members, for people: what varies
    lanes: int
    compile_seconds: float
    step: int = 0  # from which it goes on; above 0 where an earlier process was stopped
    history: tuple[Record, ...] = ()  # what that process recorded up to there
    image_shape: tuple[int, ...] | None = None  # of an example, where it is an image


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A cohort is trained and evaluated: {"eval/l0": [member], ...}, parameters [member, ...]."""

    index: int
    cohort: Cohort
    status: tuple[str, ...]  # "finished" or "diverged", per member
    values: dict[str, np.ndarray]
    firing_rates: np.ndarray  # [member, d_sae]: the share of held-out examples on which a latent is active
    saes: Sae

"""How the measures of this room ask all members of a run, and how a finished run keeps the answers."""

import contextlib
import functools
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
import pandas as pd

from sae.analysis.members import stack
from sae.core import console
from sae.core.definitions import kind
from sae.core.model import Sae, on_examples
from sae.core.types import Array, UserError
from sae.data.feed import Feed
from sae.data.source import Examples, Source
from sae.methods.tasks import Transcoder
from sae.store.results import Results
from sae.study.measures import Measure

Ask = Callable[[Sae, "Data", pd.DataFrame], Mapping[str, Array]]


class Data:
    """The data that a cohort was trained on, loaded once: the definition `source`, its `rows`, examples as arrays."""

    def __init__(self, source: Source, data_seed: int, load: Callable[[], Examples]) -> None:
        self.source, self.data_seed, self._load = source, data_seed, load

    @functools.cached_property
    def rows(self) -> Examples:
        """As `source.load()` gives it. Raises UserError where the data are others than those of the run."""
        return self._load()

    @functools.cached_property
    def train(self) -> np.ndarray:
        """[n_train, d_in] float32. Raises UserError where every batch is fresh."""
        return self.rows.training_examples()

    @functools.cached_property
    def held_out(self) -> np.ndarray:
        """[n_held_out, d_in] float32: all held-out examples; evaluation may use fewer, by `n_eval`."""
        with contextlib.closing(Feed(self.rows, self.data_seed, 1, 1, resident_bytes=0)) as feed:
            return np.concatenate([np.asarray(x.T) for x in feed.held_out()])


def by_cohort(results: Results, ask: Ask, of_inputs: bool = False) -> pd.DataFrame:
    """Put a question to each cohort of a run -> a table with a row per finished member, indexed by its number.

    ask(stacked autoencoders, their data, their rows of the members table) -> {column: values [member]}. The
    autoencoders take normalized examples, as `Data` has them. Members that diverged are left out. `of_inputs`: the
    question is about inputs and latents alone, so that a transcoder has an answer; it takes the first d_in columns of
    an example. Raises UserError if all diverged, if data or weights cannot be read, and for a transcoder otherwise.
    """
    members = results.members
    sound = members[members["status"] == "finished"]
    known: dict[tuple[Source, int], Data] = {}
    parts: list[pd.DataFrame] = []
    if sound.empty:
        raise UserError("all members diverged")
    for _, rows in sound.groupby("cohort"):
        numbers = [int(member) for member in rows["member"]]
        if not of_inputs and results.definition["members"][numbers[0]].get("task") == kind(Transcoder):
            raise UserError(
                f"got member {numbers[0]}, a transcoder, allowed: what reconstructs its own input, which this compares"
            )
        key = results.source(numbers[0]), results.definition["members"][numbers[0]]["data_seed"]
        data = known.setdefault(key, Data(*key, functools.partial(results.data, numbers[0])))
        found = ask(stack([on_examples(results.sae(member)) for member in numbers]), data, rows)
        columns = {name: np.asarray(jax.device_get(value)) for name, value in found.items()}
        parts.append(pd.DataFrame(columns, index=pd.Index(numbers, name="member")))
    return pd.concat(parts)


def settle(measures: Sequence[Measure], results: Results, say: Callable[[str], None] = console.say) -> None:
    """Ask the measures that a finished run has no answer to, and write each answer beside its tables.

    A measure that fails costs only its own columns: `say` gets a line with the reason.
    """
    results.mend(say)
    for measure in measures:
        if repr(measure) in results.asked:
            continue
        begun = time.monotonic()
        try:
            results.keep(measure, measure(results))
            say(f"{type(measure).__name__}: asked of all members in {time.monotonic() - begun:.0f} s")
        except Exception as error:  # a user's measure may raise anything, and the trained members stay
            reason = " ".join(str(error).split()) or type(error).__name__
            say(f"{results.folder}: {type(measure).__name__} has no answer: {reason}")

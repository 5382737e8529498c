"""Asking all members of a run: what the measures of `sae/analysis/` share, and how a finished run keeps the answers."""

import contextlib
import functools
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
import pandas as pd

from sae.analysis.members import stack
from sae.core.model import Sae
from sae.core.types import Array, UserError
from sae.data.feed import Feed
from sae.data.source import Examples, Source
from sae.store.results import Results
from sae.study.measures import Measure

Ask = Callable[[Sae, "Data", pd.DataFrame], Mapping[str, Array]]


class Data:
    """What a cohort was trained on, loaded once: the definition `source`, its `rows`, and examples as arrays."""

    def __init__(self, source: Source, data_seed: int):
        self.source, self.data_seed = source, data_seed

    @functools.cached_property
    def rows(self) -> Examples:
        """As `source.load()` gives it."""
        return self.source.load()

    @functools.cached_property
    def train(self) -> np.ndarray:
        """[n_train, d_in] float32. Raises UserError where every batch is fresh."""
        return self.rows.training_examples()

    @functools.cached_property
    def held_out(self) -> np.ndarray:
        """[n_held_out, d_in] float32, all there are; evaluation may be of fewer, by `n_eval`."""
        with contextlib.closing(Feed(self.rows, self.data_seed, 1, 1, resident_bytes=0)) as feed:
            return np.concatenate([np.asarray(x.T)[np.asarray(weight) > 0] for x, weight in feed.held_out()])


def by_cohort(results: Results, ask: Ask) -> pd.DataFrame:
    """ask(autoencoders stacked, data, their rows of the members table) -> {column: [member]} of each cohort, as one
    table, a row per finished member, indexed by its number.

    Members that diverged are left out. Raises UserError where that leaves none, or data or weights cannot be read.
    """
    members = results.members
    sound, known, parts = members[members["status"] == "finished"], {}, []
    if sound.empty:
        raise UserError("all members diverged")
    for _, of_cohort in sound.groupby("cohort"):
        numbers = [int(member) for member in of_cohort["member"]]
        key = results.source(numbers[0]), results.definition["members"][numbers[0]]["data_seed"]
        data = known.setdefault(key, Data(*key))
        found = ask(stack([results.sae(member) for member in numbers]), data, of_cohort)
        columns = {name: np.asarray(jax.device_get(value)) for name, value in found.items()}
        parts.append(pd.DataFrame(columns, index=pd.Index(numbers, name="member")))
    return pd.concat(parts)


def settle(measures: Sequence[Measure], results: Results, say: Callable[[str], None] = print) -> None:
    """Ask what has not been asked of a finished run yet, and write it beside its tables, each measure when it is done.

    A measure that fails costs nothing but its columns: it is told in a line.
    """
    for measure in measures:
        if repr(measure) in results.asked:
            continue
        begun = time.monotonic()
        try:
            results.keep(measure, measure(results))
            say(f"{type(measure).__name__}: asked of all members in {time.monotonic() - begun:.0f} s")
        except Exception as error:  # of any measure, a user's too: the members are trained, and stay
            reason = " ".join(str(error).split()) or type(error).__name__
            say(f"{results.folder}: {type(measure).__name__} has no answer: {reason}")

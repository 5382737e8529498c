"""Measures: what a sweep asks of its trained members beside the held-out metrics, as columns of the members table.

    Sweep(..., measures=[Copying()])   # asked at the end of `sae run`; claims and figures read its columns
    Copying()(sae.load("runs/x"))      # the same in a notebook

Those that come with the project are in `sae/analysis/`, beside the functions they are made of.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import pandas as pd

from sae.core.types import UserError

PREFIX = "analysis/"


@runtime_checkable
class Measure(Protocol):
    """The protocol: a frozen dataclass whose fields say all that decides its numbers.

    By them a run knows that it was asked: after a change of the code delete its analysis.parquet.
    """

    @property
    def columns(self) -> Mapping[str, str]:
        """{"analysis/copy_index": what it means, in a line}."""
        ...

    def __call__(self, results: Any) -> pd.DataFrame:
        """The results of a run -> a row per finished member, indexed by its number, with these columns."""
        ...


def check(measure: Any, what: str) -> None:
    """Check before training that something is a measure. Raises UserError that begins with `what`."""
    if isinstance(measure, type) or not isinstance(measure, Measure):
        raise UserError(f"{what}: got {measure!r}, allowed: measures such as sae.analysis.copying.Copying()")
    for name in measure.columns:
        if not name.startswith(PREFIX):
            raise UserError(f"{what}: {type(measure).__name__} has a column {name!r}; allowed: names after '{PREFIX}'")

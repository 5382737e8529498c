"""Measures: numbers about trained members beyond the held-out metrics, as more columns of the members table.

    Sweep(..., measures=[Copying()])   # taken at the end of `sae run`; claims and figures read its columns
    Copying()(sae.load("runs/x"))      # the same in a notebook

The project's own measures are in `sae/analysis/`, beside the functions they use.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import pandas as pd

from sae.core.types import UserError

PREFIX = "analysis/"  # how the names of their columns begin


@runtime_checkable
class Measure(Protocol):
    """A measure: a frozen dataclass whose fields hold everything that decides its numbers.

    A run recognises a measure that it has taken by these fields. After a change of the code, delete the run's
    analysis.parquet to take it again.
    """

    @property
    def columns(self) -> Mapping[str, str]:
        """The columns and what each means, in a line: {"analysis/copy_index": "..."}."""
        ...

    def __call__(self, results: Any) -> pd.DataFrame:
        """The results of a run (`sae.Results`) -> a row per finished member, by its number, with these columns."""
        ...


def check(measure: Any, what: str) -> None:
    """Check before training that something is a measure. Raises UserError, beginning with `what`."""
    if isinstance(measure, type) or not isinstance(measure, Measure):
        raise UserError(f"{what}: got {measure!r}, allowed: measures such as sae.analysis.copying.Copying()")
    for name in measure.columns:
        if not name.startswith(PREFIX):
            raise UserError(f"{what}: {type(measure).__name__} has a column {name!r}; allowed: names after '{PREFIX}'")

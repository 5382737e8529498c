"""Cells, which every quantity gives, and the check that something is a quantity."""

from collections.abc import Callable, Collection
from typing import Any, Protocol, TypeAlias

import pandas as pd

from sae.core.types import UserError

Cells: TypeAlias = dict[str, pd.Series]  # label -> a number per seed, indexed by seed
Quantity: TypeAlias = Callable[[Any], Cells]  # of a run's results; a user's own may read all that `sae.Results` has


class Tables(Protocol):
    """What the quantities of this package read of a run's results."""

    @property
    def everyone(self) -> pd.DataFrame:
        """A row per member of the sweep, finished or not."""
        ...


def check(quantity: Any, names: Collection[str]) -> None:
    """Check before training that something is a quantity and that the names it reads exist. Raises UserError.

    Any function of the results is one. A function without a method `check` is not checked further.
    """
    if not callable(quantity):
        raise UserError(f"claim: got {quantity!r} as a quantity, allowed: a function of results that gives cells")
    if (own_check := getattr(quantity, "check", None)) is not None:
        own_check(names)

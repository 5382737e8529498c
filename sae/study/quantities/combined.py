"""Quantities made of other quantities: two combined cell by cell, or all cells of one reduced to a single cell."""

import abc
import dataclasses
from collections.abc import Collection

import numpy as np
import pandas as pd

from sae.core.types import UserError
from sae.study.quantities.cells import Cells, Quantity, Tables, check


@dataclasses.dataclass(frozen=True)
class Pair(abc.ABC):
    """Two quantities with the same cells, combined cell by cell and seed by seed: the base of the three below."""

    a: Quantity
    b: Quantity

    @abc.abstractmethod
    def combine(self, a: pd.Series, b: pd.Series) -> pd.Series:
        """Two cells, aligned by seed -> one cell."""

    def check(self, names: Collection[str]) -> None:
        """Check both quantities before training. Raises UserError."""
        check(self.a, names)
        check(self.b, names)

    def __call__(self, results: Tables) -> Cells:
        """The same cells, combined; NaN for a seed that one of the two lacks. Raises UserError if the cells differ."""
        a, b = self.a(results), self.b(results)
        if a.keys() != b.keys():
            raise UserError(
                f"claim: cannot combine quantities with different cells: {sorted(a)[:3]} and {sorted(b)[:3]}"
            )
        return {key: self.combine(*a[key].align(b[key])) for key in a}


class Ratio(Pair):
    """a / b."""

    def combine(self, a: pd.Series, b: pd.Series) -> pd.Series:
        """a / b."""
        return a / b


class Difference(Pair):
    """a - b."""

    def combine(self, a: pd.Series, b: pd.Series) -> pd.Series:
        """a - b."""
        return a - b


class Decades(Pair):
    """abs(log10(a / b)): how many decades lie between a and b.

    It is rounded to nine digits, so that neighbours on a grid of half decades are exactly .5 apart.
    """

    def combine(self, a: pd.Series, b: pd.Series) -> pd.Series:
        """abs(log10(a / b))."""
        return pd.Series(np.log10(a / b)).abs().round(9)


@dataclasses.dataclass(frozen=True)
class Largest:
    """The largest cell of a quantity, seed by seed."""

    of: Quantity
    """The quantity."""

    def check(self, names: Collection[str]) -> None:
        """Check the quantity before training. Raises UserError."""
        check(self.of, names)

    def __call__(self, results: Tables) -> Cells:
        """One cell; NaN for a seed that some cell lacks."""
        return {"largest": pd.DataFrame(self.of(results)).max(axis=1, skipna=False)}


@dataclasses.dataclass(frozen=True)
class Spread:
    """The largest cell of a quantity over its smallest, seed by seed."""

    of: Quantity
    """The quantity."""

    def check(self, names: Collection[str]) -> None:
        """Check the quantity before training. Raises UserError."""
        check(self.of, names)

    def __call__(self, results: Tables) -> Cells:
        """One cell; NaN for a seed that some cell lacks."""
        table = pd.DataFrame(self.of(results))
        return {"largest / smallest": table.max(axis=1, skipna=False) / table.min(axis=1, skipna=False)}

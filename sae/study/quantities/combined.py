"""Quantities made of other quantities: two combined cell by cell, cells reduced to one, or seeds counted."""

import abc
import dataclasses
from collections.abc import Collection
from typing import Protocol

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


@dataclasses.dataclass(frozen=True)
class Ranked:
    """The n-th smallest cell of a quantity, seed by seed: at most a bound where n of its cells are."""

    of: Quantity
    """The quantity."""
    n: int = 1
    """Which cell in rising order, from 1."""

    def check(self, names: Collection[str]) -> None:
        """Check the quantity before training. Raises UserError."""
        check(self.of, names)

    def __call__(self, results: Tables) -> Cells:
        """One cell; NaN for a seed that some cell lacks. Raises UserError for fewer than n cells."""
        table = pd.DataFrame(self.of(results))
        if not 1 <= self.n <= table.shape[1]:
            raise UserError(f"claim: Ranked: got n {self.n}, allowed: 1 to {table.shape[1]}, the number of cells")
        ranked = pd.Series(np.sort(table.to_numpy(float), axis=1)[:, self.n - 1], table.index)
        return {f"number {self.n} of {table.shape[1]}": ranked.where(table.notna().all(axis=1))}


class Bound(Protocol):
    """What `InSeeds` asks of a bound: one of `AtMost`, `AtLeast` and `Within`."""

    @property
    def quantity(self) -> Quantity:
        """What is bounded."""
        ...

    def judge(self, low: float, high: float) -> str:
        """The verdict on an interval."""
        ...


@dataclasses.dataclass(frozen=True)
class InSeeds:
    """The number of seeds whose own value keeps a bound: `AtLeast(InSeeds(AtMost(quantity, 0.05)), 4)`."""

    bound: Bound
    """The bound."""

    def check(self, names: Collection[str]) -> None:
        """Check the bounded quantity before training. Raises UserError."""
        check(self.bound.quantity, names)

    def __call__(self, results: Tables) -> Cells:
        """The same cells, the number given to every seed; NaN for a seed that has no value."""
        return {
            key: pd.Series(float(sum(self.bound.judge(v, v) == "holds" for v in values)), values.index).where(
                values.notna()
            )
            for key, values in self.bound.quantity(results).items()
        }

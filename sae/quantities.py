"""Quantities that claims are about: what each seed's members give, read off the tables.

A quantity is called with the results of a run and gives *cells*: {"d_sae 64, fvu 0.1": a number per seed}. Those here
read `results.everyone`, the table of all members, finished or not. A number that the members cannot give (the frontier
does not reach the value; a member is missing or has diverged) is NaN, never a guess. Quantities of several lines come
out as one cell per line; two quantities with the same cells can be compared, seed by seed.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from sae.answers import interpolate, of_arm, require, short
from sae.types import UserError

Cells = dict[str, pd.Series]  # label -> a number per seed, indexed by seed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """The members in which one coefficient is swept, the others being 0: a line per group and seed."""

    along: str
    """The coefficient, a dotted name."""
    others: tuple[str, ...] = ()
    """Coefficients that are 0 in it."""
    group: tuple[str, ...] = ("d_sae",)
    """A line for each combination of values of these names."""
    where: Mapping[str, tuple] = dataclasses.field(default_factory=dict)
    """{name: values}: only members with one of these."""

    def check(self, names) -> None:
        """Check before training that these hyper-parameters are there. Raises UserError."""
        require(names, [self.along, *self.others, *self.group, *self.where], (), "claim")

    def lines(self, members: pd.DataFrame) -> Iterator[tuple[str, int, pd.DataFrame]]:
        """(label of the group, seed, members in the order of the coefficient). Raises UserError if there are none."""
        chosen = of_arm(members, self.along, [self.along, *self.others])
        for name, values in self.where.items():
            chosen = chosen[chosen[name].isin(values)]
        if chosen.empty:
            raise UserError(f"claim: no member has {self.along} alone{f' and {dict(self.where)}' * bool(self.where)}")
        for values, line in chosen.groupby([*self.group, "seed"]):
            if line.duplicated(self.along).any():
                raise UserError(f"claim: members of one line along {self.along} differ in something else; group by it")
            *group, seed = values
            label = ", ".join(
                f"{short(n)} {v:g}" if isinstance(v, float) else f"{short(n)} {v}"
                for n, v in zip(self.group, group, strict=True)
            )
            yield label, seed, line.reset_index(drop=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfLine:
    """What is read off each line of an arm: the part that all quantities of one metric share."""

    arm: Arm
    metric: str
    """A column of the members table."""

    def check(self, names) -> None:
        """Check before training that what it reads is there. Raises UserError."""
        self.arm.check(names)
        require(names, (), [self.metric], "claim")

    def cells(self, results, read: Callable[[pd.DataFrame], float], label: str = "") -> Cells:
        """{line: read(its members) per seed}; NaN for a line that is not whole."""
        found: dict[str, dict[int, float]] = {}
        for name, seed, line in self.arm.lines(results.everyone):
            whole = (line["status"] == "finished").all()
            key = ", ".join(part for part in (name, label) if part)
            found.setdefault(key, {})[seed] = read(line) if whole else np.nan
        return {key: pd.Series(values, dtype=float) for key, values in found.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matched(OfLine):
    """A metric where another has a given value, interpolated between neighbours in both logarithms."""

    matched: str = "eval/fvu"
    at: tuple[float, ...] = (0.1, 0.2, 0.4)

    def check(self, names) -> None:
        """Check before training that what it reads is there. Raises UserError."""
        super().check(names)
        require(names, (), [self.matched], "claim")

    def __call__(self, results) -> Cells:
        """A cell per line and value."""
        parts = [
            self.cells(
                results,
                lambda line, v=v: interpolate(v, line, self.matched, self.metric),
                f"{short(self.matched)} {v:g}",
            )
            for v in self.at
        ]
        return {key: cell for part in parts for key, cell in part.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peak(OfLine):
    """The largest value of a metric along a line, or the smallest."""

    smallest: bool = False

    def __call__(self, results) -> Cells:
        """A cell per line."""
        return self.cells(results, lambda line: line[self.metric].min() if self.smallest else line[self.metric].max())


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeakAt(OfLine):
    """The coefficient at which a metric is largest along a line."""

    def __call__(self, results) -> Cells:
        """A cell per line."""
        return self.cells(results, lambda line: float(line[self.arm.along][line[self.metric].idxmax()]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Onset(OfLine):
    """The coefficient at which a metric first reaches a level along a line, by interpolation in its logarithm."""

    level: float

    def __call__(self, results) -> Cells:
        """A cell per line; NaN where the first member is there already, or none is."""
        return self.cells(results, lambda line: onset(line[self.arm.along], line[self.metric], self.level))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Monotone(OfLine):
    """Spearman's rank correlation of a metric with the coefficient along a line."""

    def __call__(self, results) -> Cells:
        """A cell per line."""
        return self.cells(results, lambda line: spearman(line[self.arm.along], line[self.metric]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtEnd(OfLine):
    """A metric at the largest coefficient of a line, or at the smallest."""

    smallest: bool = False

    def __call__(self, results) -> Cells:
        """A cell per line."""
        return self.cells(results, lambda line: float(line[self.metric].iloc[0 if self.smallest else -1]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Zone(OfLine):
    """How many adjacent members of a line have a metric of at least a level."""

    level: float

    def __call__(self, results) -> Cells:
        """A cell per line."""
        return self.cells(results, lambda line: longest_run(line[self.metric] >= self.level))


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two quantities with the same cells, combined cell by cell and seed by seed: what the three below share."""

    a: Any
    b: Any

    def check(self, names) -> None:
        """Check both."""
        self.a.check(names)
        self.b.check(names)

    def __call__(self, results) -> Cells:
        """The cells of both. Raises UserError where they are not the same."""
        a, b = self.a(results), self.b(results)
        if a.keys() != b.keys():
            raise UserError(f"claim: two quantities have other cells: {sorted(a)[:3]} and {sorted(b)[:3]}")
        return {key: self.combine(a[key], b[key].reindex(a[key].index)) for key in a}


class Ratio(Pair):
    """a / b."""

    combine = staticmethod(lambda a, b: a / b)


class Difference(Pair):
    """a - b."""

    combine = staticmethod(lambda a, b: a - b)


class Decades(Pair):
    """abs(log10(a / b)): how many decades lie between them."""

    combine = staticmethod(lambda a, b: np.abs(np.log10(a / b)))


@dataclasses.dataclass(frozen=True)
class Spread:
    """The largest over the smallest of a quantity's cells, seed by seed."""

    of: Any

    def check(self, names) -> None:
        """Check what it is of."""
        self.of.check(names)

    def __call__(self, results) -> Cells:
        """One cell."""
        table = pd.DataFrame(self.of(results))
        return {"largest / smallest": table.max(axis=1, skipna=False) / table.min(axis=1, skipna=False)}


def onset(x: pd.Series, y: pd.Series, level: float) -> float:
    """The x at which y first comes from below to a level, linear in log x; NaN where it starts above or never comes."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    reached = np.flatnonzero(y >= level)
    if len(reached) == 0 or reached[0] == 0 or np.isnan(y).any() or x[reached[0] - 1] <= 0:
        return float("nan")
    i = reached[0]
    t = (level - y[i - 1]) / (y[i] - y[i - 1])
    return float(np.exp((1 - t) * np.log(x[i - 1]) + t * np.log(x[i])))


def spearman(x: pd.Series, y: pd.Series) -> float:
    """Spearman's rank correlation; NaN where one of them is constant or not a number."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(x) < 3 or np.isnan(y).any() or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(scipy.stats.spearmanr(x, y).statistic)


def longest_run(true: pd.Series) -> int:
    """The length of the longest run of trues."""
    best = run = 0
    for value in true:
        run = run + 1 if value else 0
        best = max(best, run)
    return best

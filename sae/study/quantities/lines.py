"""Quantities read off the lines of an arm: each reduces a line, along its coefficient, to a number per seed."""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, cast

import numpy as np
import pandas as pd

from sae.core.types import UserError
from sae.study.frontiers import Arm, interpolate, require, short
from sae.study.quantities.cells import Cells, Tables
from sae.study.quantities.numbers import falling, longest_run, onset, spearman


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfLine:
    """The base of all quantities here: an arm, a metric, and the columns that must be complete along a line."""

    arm: Arm
    """The lines."""
    metric: str
    """A column of the members table."""

    def read(self) -> tuple[str, ...]:
        """Every column that the quantity reads."""
        return (self.metric,)

    def whole(self) -> tuple[str, ...]:
        """The columns that must have a number for every member of a line; else the line gives NaN."""
        return self.read()

    def check(self, names: Collection[str]) -> None:
        """Check before training that every name it reads exists. Raises UserError."""
        self.arm.check(names)
        require(names, (), self.read(), "claim")

    def lines(self, results: Tables) -> Iterator[tuple[str, Any, pd.DataFrame]]:
        """The arm's lines, as in `Arm.lines`. Raises UserError if a column was not measured."""
        everyone = results.everyone
        for name in self.read():
            if name not in everyone:
                raise UserError(f"{name} was not measured")
        return self.arm.lines(everyone)

    def cells(self, results: Tables, read: Callable[[pd.DataFrame], float], label: str = "") -> Cells:
        """{line: read(members of the line) per seed}; NaN for a line with an unfinished member or an incomplete column.

        `label` is added to the name of every cell.
        """
        found: dict[str, dict[Any, float]] = {}
        for name, seed, line in self.lines(results):
            whole = (line["status"] == "finished").all() and line[[*self.whole()]].notna().all(axis=None)
            found.setdefault(_join(name, label), {})[seed] = read(line) if whole else np.nan
        return {key: pd.Series(values, dtype=float) for key, values in found.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matched(OfLine):
    """A metric at the points of a line where another metric has given values.

    Both are interpolated in their logarithms between neighbouring members. Where the metric is 0 at one of the
    two neighbours, it is interpolated linearly in the logarithm of the other metric; a metric that counts few things
    (dead latents) then depends on whether there is one at all.
    """

    matched: str = "eval/fvu"
    """The metric that is held equal."""
    at: tuple[float, ...] = (0.1, 0.2, 0.4)
    """Its values."""

    def read(self) -> tuple[str, ...]:
        """Both metrics."""
        return (self.metric, self.matched)

    def whole(self) -> tuple[str, ...]:
        """The matched metric; the other is needed at the two neighbours only."""
        return (self.matched,)

    def __call__(self, results: Tables) -> Cells:
        """A cell per line and value; NaN where the line does not reach the value."""
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
    """The largest value of a metric along a line."""

    smallest: bool = False
    """Take the smallest value instead."""

    def __call__(self, results: Tables) -> Cells:
        """A cell per line."""
        return self.cells(results, lambda line: line[self.metric].min() if self.smallest else line[self.metric].max())


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeakInside(OfLine):
    """The largest value of a metric over a line's zone: the members in which other metrics reach their bounds."""

    least: Mapping[str, float]
    """{metric: bound}: the zone is where each of these metrics is at least its bound."""
    smallest: bool = False
    """Take the smallest value instead."""

    def read(self) -> tuple[str, ...]:
        """The metric, and those that define the zone."""
        return (self.metric, *self.least)

    def whole(self) -> tuple[str, ...]:
        """The metrics that define the zone; the metric is needed inside it only."""
        return tuple(self.least)

    def __call__(self, results: Tables) -> Cells:
        """A cell per line; NaN where the zone is empty."""

        def peak(line: pd.DataFrame) -> float:
            for name, bound in self.least.items():
                line = line[line[name] >= bound]
            values = line[self.metric]
            return values.min(skipna=False) if self.smallest else values.max(skipna=False)

        return self.cells(results, peak)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeakAt(OfLine):
    """The coefficient at which a metric is largest along a line; the smallest such coefficient, if there are several.

    A peak found at an end of the line may in truth lie beyond it.
    """

    def __call__(self, results: Tables) -> Cells:
        """A cell per line."""
        return self.cells(results, lambda line: float(line[self.arm.along][line[self.metric].idxmax()]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Onset(OfLine):
    """The coefficient at which a metric first reaches a level along a line, interpolated in log coefficient."""

    level: float
    """The level."""

    def __call__(self, results: Tables) -> Cells:
        """A cell per line; NaN where the first member has reached the level already, or no member reaches it."""
        return self.cells(results, lambda line: onset(line[self.arm.along], line[self.metric], self.level))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Monotone(OfLine):
    """Spearman's rank correlation of a metric with the coefficient along a line."""

    most: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """{metric: bound}: only over the members in which each of these metrics is at most its bound."""

    def read(self) -> tuple[str, ...]:
        """The metric, and those that choose the members."""
        return (self.metric, *self.most)

    def whole(self) -> tuple[str, ...]:
        """The metrics that choose the members; the metric is needed for the chosen members only."""
        return tuple(self.most)

    def __call__(self, results: Tables) -> Cells:
        """A cell per line; NaN for fewer than three members."""

        def correlation(line: pd.DataFrame) -> float:
            for name, bound in self.most.items():
                line = line[line[name] <= bound]
            return spearman(line[self.arm.along], line[self.metric])

        return self.cells(results, correlation)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Follows(OfLine):
    """Spearman's rank correlation of a metric with another metric along a line."""

    other: str
    """The other metric."""

    def read(self) -> tuple[str, ...]:
        """Both metrics."""
        return (self.metric, self.other)

    def __call__(self, results: Tables) -> Cells:
        """A cell per line."""
        return self.cells(results, lambda line: spearman(line[self.other], line[self.metric]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtEnd(OfLine):
    """A metric at the largest coefficient of a line."""

    smallest: bool = False
    """Take the smallest coefficient instead."""

    def whole(self) -> tuple[str, ...]:
        """No column, as only the member at the end is read."""
        return ()

    def __call__(self, results: Tables) -> Cells:
        """A cell per line."""
        return self.cells(results, lambda line: float(line[self.metric].iloc[0 if self.smallest else -1]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtEach(OfLine):
    """A metric at every coefficient of a line."""

    def __call__(self, results: Tables) -> Cells:
        """A cell per line and coefficient; NaN for a seed whose line lacks the coefficient or has no result there.

        Each member stands alone: one that diverged leaves the other cells as they are.
        """
        found: dict[str, dict[float, dict[Any, float]]] = {}  # line, coefficient, seed
        for name, seed, line in self.lines(results):
            values = line[self.metric].where(line["status"] == "finished")
            for coefficient, value in zip(line[self.arm.along], values, strict=True):
                found.setdefault(name, {}).setdefault(coefficient, {})[seed] = value
        seeds = sorted({seed for by_value in found.values() for by_seed in by_value.values() for seed in by_seed})
        return {
            _join(name, f"{short(self.arm.along)} {coefficient:g}"): pd.Series(
                by_value[coefficient], seeds, dtype=float
            )
            for name, by_value in found.items()
            for coefficient in sorted(by_value)
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtBest(OfLine):
    """A metric at the member of a line where another metric is largest.

    So a coefficient can be chosen on one split of the data and read on another.
    """

    by: str
    """The metric that chooses the member."""

    def read(self) -> tuple[str, ...]:
        """Both metrics."""
        return (self.metric, self.by)

    def whole(self) -> tuple[str, ...]:
        """The metric that chooses; the other is needed for the chosen member only."""
        return (self.by,)

    def __call__(self, results: Tables) -> Cells:
        """A cell per line."""
        return self.cells(results, lambda line: float(line[self.metric][line[self.by].idxmax()]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtSome(OfLine):
    """A metric at the one group and coefficient that come closest to meeting several bounds at once.

    It serves claims such as "some member has a, b and c": each of the three is a claim of its own about the same
    group and coefficient. These are chosen by the means over seeds of all metrics involved: the group and coefficient
    at which the smallest of all mean / least and most / mean is largest. Bounds must be positive.
    """

    least: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """{metric: bound}: each of these metrics should be at least its bound."""
    most: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """{metric: bound}: each of these metrics should be at most its bound."""

    def read(self) -> tuple[str, ...]:
        """The metric, and those that have bounds."""
        return (self.metric, *self.least, *self.most)

    def check(self, names: Collection[str]) -> None:
        """Check before training that every name it reads exists and every bound is positive. Raises UserError."""
        super().check(names)
        for name, bound in [*self.least.items(), *self.most.items()]:
            if not bound > 0:
                raise UserError(f"claim: AtSome: got a bound of {bound:g} on {name}, allowed: more than 0")

    def __call__(self, results: Tables) -> Cells:
        """One cell, named after the group and the coefficient; NaN for a seed that lacks the metric there.

        Raises UserError if no group and coefficient have numbers for every seed and metric.
        """
        along = self.arm.along
        table = pd.concat(line.assign(_line=name, _seed=seed) for name, seed, line in self.lines(results))
        table = table.assign(**{name: table[name].where(table["status"] == "finished") for name in self.read()})
        means = table.groupby(["_line", along])[list(dict.fromkeys(self.read()))].agg(lambda v: v.mean(skipna=False))
        margins = [means[name] / bound for name, bound in self.least.items()]
        margins += [bound / means[name] for name, bound in self.most.items()]
        worst = pd.concat(margins, axis=1).min(axis=1, skipna=False).dropna()
        if worst.empty:
            raise UserError(f"no members have all of {', '.join([*self.least, *self.most])}")
        name, value = cast(tuple[str, float], worst.idxmax())
        chosen = table[(table["_line"] == name) & (table[along] == value)]
        return {_join(name, f"{short(along)} {value:g}"): chosen.set_index("_seed")[self.metric].astype(float)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span(OfLine):
    """The range of the coefficient over which a metric falls: largest / smallest over a line's longest falling stretch.

    A coefficient of 0 is left out, as it has no place in a ratio. The span is 1 where the metric never falls.
    """

    def __call__(self, results: Tables) -> Cells:
        """A cell per line."""

        def span(line: pd.DataFrame) -> float:
            line = line[line[self.arm.along] > 0]
            return falling(line[self.arm.along], line[self.metric])

        return self.cells(results, span)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Zone(OfLine):
    """The largest number of adjacent members of a line whose metric is at least a level."""

    level: float
    """The level."""

    def __call__(self, results: Tables) -> Cells:
        """A cell per line."""
        return self.cells(results, lambda line: longest_run(line[self.metric] >= self.level))


def _join(*words: str) -> str:
    return ", ".join(word for word in words if word)

"""Quantities that claims are about: what each seed's members give, read off the tables.

A quantity is called with the results of a run and gives *cells*: {"d_sae 64, fvu 0.1": a number per seed}. Those here
read `results.everyone`, the table of all members, finished or not. A number that the members cannot give (the frontier
does not reach the value; a member is missing, has diverged or lacks the metric) is NaN, never a guess. Quantities of
several lines come out as one cell per line; two quantities with the same cells can be compared, seed by seed.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from sae.core.types import UserError
from sae.study.answers import interpolate, of_arm, require, short

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
        for name, values in self.where.items():
            if isinstance(values, str) or not isinstance(values, Iterable):
                raise UserError(f"claim: where {name}: got {values!r}, allowed: a tuple of values, ({values!r},)")

    def lines(self, members: pd.DataFrame) -> Iterator[tuple[str, int, pd.DataFrame]]:
        """(label of the group, seed, members in the order of the coefficient).

        Raises UserError if there are none, or none of a value in `where`.
        """
        chosen = of_arm(members, self.along, [self.along, *self.others])
        for name, values in self.where.items():
            if absent := [value for value in values if not chosen[name].isin([value]).any()]:
                raise UserError(f"claim: no member with {self.along} alone has {name} {', '.join(map(str, absent))}")
            chosen = chosen[chosen[name].isin(values)]
        if chosen.empty:
            raise UserError(f"claim: no member has {self.along} alone{f' and {dict(self.where)}' * bool(self.where)}")
        for values, line in chosen.groupby([*self.group, "seed"], dropna=False):
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

    def read(self) -> tuple[str, ...]:
        """Every column that it reads."""
        return (self.metric,)

    def whole(self) -> tuple[str, ...]:
        """The columns of which every member of a line must have a number, or the line has none."""
        return self.read()

    def check(self, names) -> None:
        """Check before training that what it reads is there. Raises UserError."""
        self.arm.check(names)
        require(names, (), self.read(), "claim")

    def lines(self, results) -> Iterator[tuple[str, int, pd.DataFrame]]:
        """Those of the arm, with every column that is read. Raises UserError where one was not measured."""
        everyone = results.everyone
        for name in self.read():
            if name not in everyone:
                raise UserError(f"{name} was not measured")
        return self.arm.lines(everyone)

    def cells(self, results, read: Callable[[pd.DataFrame], float], label: str = "") -> Cells:
        """{line: read(its members) per seed}; NaN for a line that is not whole."""
        found: dict[str, dict[int, float]] = {}
        for name, seed, line in self.lines(results):
            whole = (line["status"] == "finished").all() and line[[*self.whole()]].notna().all(axis=None)
            key = ", ".join(part for part in (name, label) if part)
            found.setdefault(key, {})[seed] = read(line) if whole else np.nan
        return {key: pd.Series(values, dtype=float) for key, values in found.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matched(OfLine):
    """A metric where another has a given value, interpolated between neighbours in both logarithms.

    Where the metric is 0 at one of the two, it is interpolated linearly in the other's logarithm: a metric that counts
    few things (dead latents) then hangs on whether there is one at all.
    """

    matched: str = "eval/fvu"
    at: tuple[float, ...] = (0.1, 0.2, 0.4)

    def read(self) -> tuple[str, ...]:
        """Both."""
        return (self.metric, self.matched)

    def whole(self) -> tuple[str, ...]:
        """What is held equal; the metric is needed of the two neighbours only."""
        return (self.matched,)

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
class PeakInside(OfLine):
    """The largest value of a metric, or the smallest, over the members of a line that others choose: its zone."""

    least: Mapping[str, float]
    """{metric: bound}: only over the members where these are at least so much."""
    smallest: bool = False

    def read(self) -> tuple[str, ...]:
        """The metric, and those that choose."""
        return (self.metric, *self.least)

    def whole(self) -> tuple[str, ...]:
        """Those that choose; the metric is needed of the chosen only."""
        return tuple(self.least)

    def __call__(self, results) -> Cells:
        """A cell per line; NaN where no member is chosen."""

        def of(line):
            for name, bound in self.least.items():
                line = line[line[name] >= bound]
            values = line[self.metric]
            return values.min(skipna=False) if self.smallest else values.max(skipna=False)

        return self.cells(results, of)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeakAt(OfLine):
    """The coefficient at which a metric is largest along a line: the smallest of those where it is.

    At an end of the line the true peak may lie beyond.
    """

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

    most: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """{metric: bound}: only over the members where these are at most so much."""

    def read(self) -> tuple[str, ...]:
        """The metric, and those that choose."""
        return (self.metric, *self.most)

    def whole(self) -> tuple[str, ...]:
        """Those that choose; the metric is needed of the chosen only."""
        return tuple(self.most)

    def __call__(self, results) -> Cells:
        """A cell per line; NaN of fewer than three members."""

        def of(line):
            for name, bound in self.most.items():
                line = line[line[name] <= bound]
            return spearman(line[self.arm.along], line[self.metric])

        return self.cells(results, of)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Follows(OfLine):
    """Spearman's rank correlation of one metric with another along a line."""

    other: str

    def read(self) -> tuple[str, ...]:
        """Both."""
        return (self.metric, self.other)

    def __call__(self, results) -> Cells:
        """A cell per line."""
        return self.cells(results, lambda line: spearman(line[self.other], line[self.metric]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtEnd(OfLine):
    """A metric at the largest coefficient of a line, or at the smallest."""

    smallest: bool = False

    def whole(self) -> tuple[str, ...]:
        """None: only the member at the end is read."""
        return ()

    def __call__(self, results) -> Cells:
        """A cell per line."""
        return self.cells(results, lambda line: float(line[self.metric].iloc[0 if self.smallest else -1]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtEach(OfLine):
    """A metric at every coefficient of a line."""

    def __call__(self, results) -> Cells:
        """A cell per line and coefficient: one that a seed's line lacks is NaN for it, as is a member without results.

        Members stand alone here: one that diverged leaves the cells of the others as they are.
        """
        found: dict[str, dict[float, dict[int, float]]] = {}  # line, coefficient, seed
        for name, seed, line in self.lines(results):
            values = line[self.metric].where(line["status"] == "finished")
            for coefficient, value in zip(line[self.arm.along], values, strict=True):
                found.setdefault(name, {}).setdefault(coefficient, {})[seed] = value
        seeds = sorted({seed for of_line in found.values() for per_seed in of_line.values() for seed in per_seed})
        label = lambda *parts: ", ".join(part for part in parts if part)
        return {
            label(name, f"{short(self.arm.along)} {coefficient:g}"): pd.Series(of_line[coefficient], seeds, dtype=float)
            for name, of_line in found.items()
            for coefficient in sorted(of_line)
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtBest(OfLine):
    """A metric at the member of a line where another is largest: chosen on one split, say, and read on another."""

    by: str

    def read(self) -> tuple[str, ...]:
        """Both."""
        return (self.metric, self.by)

    def whole(self) -> tuple[str, ...]:
        """What chooses; the metric is needed of the chosen only."""
        return (self.by,)

    def __call__(self, results) -> Cells:
        """A cell per line."""
        return self.cells(results, lambda line: float(line[self.metric][line[self.by].idxmax()]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtSome(OfLine):
    """A metric at the one group and coefficient that come closest to meeting several bounds at once.

    For claims that there is some member with all of a, b and c: each is a claim of its own, about the same members.
    Those are chosen by their means over seeds: the largest of min over the bounds of mean / least and most / mean. So
    bounds are positive.
    """

    least: Mapping[str, float] = dataclasses.field(default_factory=dict)
    most: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def read(self) -> tuple[str, ...]:
        """The metric, and those that choose."""
        return (self.metric, *self.least, *self.most)

    def check(self, names) -> None:
        """Check before training that what it reads is there, and the bounds are positive. Raises UserError."""
        super().check(names)
        for name, bound in [*self.least.items(), *self.most.items()]:
            if not bound > 0:
                raise UserError(f"claim: AtSome: got a bound of {bound:g} of {name}, allowed: more than 0")

    def __call__(self, results) -> Cells:
        """One cell, named by the group and the coefficient. NaN for seeds without these numbers."""
        along = self.arm.along
        table = pd.concat(line.assign(_line=name) for name, _, line in self.lines(results))
        table = table.assign(**{name: table[name].where(table["status"] == "finished") for name in self.read()})
        means = table.groupby(["_line", along])[list(dict.fromkeys(self.read()))].agg(lambda of: of.mean(skipna=False))
        margins = [means[name] / bound for name, bound in self.least.items()]
        margins += [bound / means[name] for name, bound in self.most.items()]
        worst = pd.concat(margins, axis=1).min(axis=1, skipna=False).dropna()
        if worst.empty:
            raise UserError(f"no members have all of {', '.join([*self.least, *self.most])}")
        name, value = worst.idxmax()
        chosen = table[(table["_line"] == name) & (table[along] == value)]
        label = ", ".join(part for part in (name, f"{short(along)} {value:g}") if part)
        return {label: chosen.set_index("seed")[self.metric].astype(float)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span(OfLine):
    """Over what range of the coefficient a metric falls: largest / smallest of a line's longest stretch that falls.

    A coefficient of 0 has no place in a range. 1 where the metric never falls.
    """

    def __call__(self, results) -> Cells:
        """A cell per line."""

        def of(line):
            line = line[line[self.arm.along] > 0]
            return falling(line[self.arm.along], line[self.metric])

        return self.cells(results, of)


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
        check(self.a, names)
        check(self.b, names)

    def __call__(self, results) -> Cells:
        """The cells of both; a seed that one of them lacks is NaN. Raises UserError where cells are not the same."""
        a, b = self.a(results), self.b(results)
        if a.keys() != b.keys():
            raise UserError(f"claim: two quantities have other cells: {sorted(a)[:3]} and {sorted(b)[:3]}")
        return {key: self.combine(*a[key].align(b[key])) for key in a}


class Ratio(Pair):
    """a / b."""

    combine = staticmethod(lambda a, b: a / b)


class Difference(Pair):
    """a - b."""

    combine = staticmethod(lambda a, b: a - b)


class Decades(Pair):
    """abs(log10(a / b)): how many decades lie between them, to nine digits: a step of half a decade is .5 exactly."""

    combine = staticmethod(lambda a, b: np.abs(np.log10(a / b)).round(9))


@dataclasses.dataclass(frozen=True)
class Largest:
    """The largest of a quantity's cells, seed by seed."""

    of: Any

    def check(self, names) -> None:
        """Check what it is of."""
        check(self.of, names)

    def __call__(self, results) -> Cells:
        """One cell."""
        return {"largest": pd.DataFrame(self.of(results)).max(axis=1, skipna=False)}


@dataclasses.dataclass(frozen=True)
class Spread:
    """The largest over the smallest of a quantity's cells, seed by seed."""

    of: Any

    def check(self, names) -> None:
        """Check what it is of."""
        check(self.of, names)

    def __call__(self, results) -> Cells:
        """One cell."""
        table = pd.DataFrame(self.of(results))
        return {"largest / smallest": table.max(axis=1, skipna=False) / table.min(axis=1, skipna=False)}


def check(quantity: Any, names) -> None:
    """Check before training that something is a quantity, and that what it reads is there. Raises UserError.

    Any function of results will do; one without a `check` is taken at its word.
    """
    if not callable(quantity):
        raise UserError(f"claim: got {quantity!r} as a quantity, allowed: a function of results that gives cells")
    if (of := getattr(quantity, "check", None)) is not None:
        of(names)


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


def falling(x: pd.Series, y: pd.Series) -> float:
    """The largest over the smallest x of a stretch over which y falls at each step: the largest such ratio there is."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    best, start = 1.0, 0
    for i in range(1, len(x)):
        start = start if y[i] < y[i - 1] else i
        best = max(best, x[i] / x[start])
    return float(best)


def longest_run(true: pd.Series) -> int:
    """The length of the longest run of trues."""
    best = run = 0
    for value in true:
        run = run + 1 if value else 0
        best = max(best, run)
    return best

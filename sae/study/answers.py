"""Answers: how a sweep's question is answered from its members table, as a small table of its own."""

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sae.core.metrics import EVALUATED, OF_A_STEP
from sae.core.text import nearest
from sae.core.types import UserError
from sae.study.measures import PREFIX
from sae.study.replicates import is_seed, lurking, seeds


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtMatched:
    """Arms compared at the same value of one metric, interpolated along the frontier of each arm.

    Penalties cannot be compared at equal coefficients, as their units differ; they can at equal error. An arm sweeps
    one coefficient. Its frontier, for each group and seed, is the members in which the coefficients of the other arms
    are 0, in the order of its own. Both metrics are interpolated in their logarithms between neighbouring members. A
    value that the frontier does not reach is missing, never extrapolated. Members that diverged are left out. A cell
    is the mean over the seeds that reach the value; whatever else differs between its members is added to the group.
    """

    arms: Mapping[str, str] | Sequence[str]
    """Arm's name -> its coefficient, a dotted name: {"L1": "penalty.l1", "L2": "penalty.l2"}.

    A sequence of coefficients will do: an arm's name is then its coefficient. It is kept as a mapping.
    """
    matched: str = "eval/fvu"
    """The metric that is held equal."""
    at: tuple[float, ...] = (0.1, 0.2, 0.4)
    """Its values; empty for up to three round numbers that the frontiers share."""
    metrics: tuple[str, ...] = ("eval/l0", "eval/l0_relative", "eval/n_eff")
    """The metrics that are compared there."""
    group: str | tuple[str, ...] = "d_sae"
    """A row for each value of this name, or for each combination of values of these names."""

    def __post_init__(self) -> None:
        listed(self)
        arms = self.arms if isinstance(self.arms, Mapping) or isinstance(self.arms, str) else list(self.arms)
        if isinstance(arms, list) and all(isinstance(name, str) for name in arms):
            arms = {name: name for name in arms}
        if not (
            isinstance(arms, Mapping) and arms and all(isinstance(word, str) for pair in arms.items() for word in pair)
        ):
            allowed = '{"L1": "penalty.l1", "L2": "penalty.l2"}, or ("penalty.l1", "penalty.l2")'
            raise UserError(f"AtMatched: arms: got {self.arms!r}, allowed: names and coefficients, as {allowed}")
        object.__setattr__(self, "arms", arms)

    @property
    def coefficients(self) -> dict[str, str]:
        """`arms` as a mapping, which it is."""
        return dict(self.arms)  # ty: ignore[no-matching-overload]  # a sequence has become a mapping

    @property
    def groups(self) -> list[str]:
        """The names in `group`."""
        return [self.group] if isinstance(self.group, str) else list(self.group)

    @property
    def title(self) -> str:
        """The table's title."""
        return f"{', '.join(map(short, self.metrics))} at matched {short(self.matched)}"

    def complete(self, members: pd.DataFrame) -> "AtMatched":
        """The same with a group by whatever a cell would hide, other than seeds. Raises UserError without frontiers."""
        along = tuple(self.coefficients.values())
        return dataclasses.replace(self, group=(*self.groups, *hidden(members, along, self.groups, "AtMatched")))

    def check(self, names: Collection[str]) -> None:
        """Check before training that every name it reads exists. Raises UserError."""
        require(names, [*self.groups, *self.coefficients.values()], (self.matched, *self.metrics), "answer")

    def table(self, members: pd.DataFrame) -> pd.DataFrame:
        """Members table -> a row per (metric, group), a column per (matched value, arm)."""
        cells: dict[tuple, dict] = {}
        groups = self.complete(members).groups
        for row in self.compare(members).to_dict("records"):
            key = tuple(None if row[name] != row[name] else row[name] for name in ("metric", *groups))  # NaN != NaN
            cells.setdefault(key, {})[f"{short(self.matched)} {row['value']:g}", row["arm"]] = row["mean"]
        columns = dict.fromkeys(name for row in cells.values() for name in row)
        return pd.DataFrame(
            [[row[name] for name in columns] for row in cells.values()],
            index=pd.MultiIndex.from_tuples(cells, names=["", *groups]),
            columns=pd.MultiIndex.from_tuples(columns),
        )

    def compare(self, members: pd.DataFrame) -> pd.DataFrame:
        """Members table -> a row per metric, group, matched value and arm.

        Columns: `mean` over the seeds that reach the value; `low` and `high`, its bootstrap interval; `seeds`, how many
        reach it; `of_seeds`, how many there are; `lowest` and `highest`, the ends of the arm's frontier in the matched
        metric. Raises UserError if `at` is empty and the frontiers reach no round number, or if an arm is no frontier.
        """
        complete, rows = self.complete(members), []
        values = complete.values(members)
        if not values:
            raise UserError(f"no round value of {short(self.matched)} that some frontier reaches; name some with `at`")
        for metric in self.metrics:
            for group, inside in groups(members, complete.groups):
                for value in values:
                    for arm in self.arms:
                        named = dict(zip(complete.groups, group, strict=True))
                        compared = self._compare(complete.frontier(inside, arm), value, metric)
                        rows.append({**named, "metric": short(metric), "value": value, "arm": arm, **compared})
        return pd.DataFrame(rows)

    def values(self, members: pd.DataFrame) -> tuple[float, ...]:
        """`at`; if it is empty, up to three round numbers that every frontier reaches.

        Numbers that more than half of the frontiers reach follow, where those are fewer than three. If there are none
        either, the numbers that most of them reach.
        """
        if self.at:
            return self.at
        complete = self.complete(members)
        ends = [
            (line[self.matched].min(), line[self.matched].max())
            for _, inside in groups(members, complete.groups)
            for arm in self.arms
            for _, line in _per_seed(complete.frontier(inside, arm))
        ]
        reach = lambda digits: {v: sum(low <= v <= high for low, high in ends) for v in _round_numbers(digits)}
        reached = reach((1, 2, 5))
        if sum(n == len(ends) for n in reached.values()) < 3:  # frontiers that share little share less round numbers
            reached = reach((1, 1.5, 2, 3, 4, 5, 7))
        most = max(reached.values())
        least = len(ends) // 2 + 1 if most > len(ends) / 2 else max(most, 1)
        chosen: list[float] = []
        for n in range(most, least - 1, -1):
            found = [v for v in reached if reached[v] == n]
            left = 3 - len(chosen)
            chosen += (
                found if len(found) <= left else [found[len(found) * (2 * k + 1) // (2 * left)] for k in range(left)]
            )
        return tuple(sorted(chosen))

    def frontier(self, members: pd.DataFrame, arm: str) -> pd.DataFrame:
        """The members of one arm, in the order of its coefficient. Raises UserError if they are not one frontier."""
        along = self.coefficients[arm]
        chosen = of_arm(members, along, self.coefficients.values())
        if chosen.duplicated([*self.groups, *seeds(chosen), along]).any():
            same = f"{', '.join(self.groups)}, seed and {along}"
            raise UserError(
                f"arm {arm}: several members have equal {same}, so they are not one frontier; "
                "add what differs to the group, or put it into a sweep of its own"
            )
        return chosen

    def _compare(self, frontier: pd.DataFrame, value: float, metric: str) -> dict[str, float]:
        per_seed = [interpolate(value, line, self.matched, metric) for _, line in _per_seed(frontier)]
        reached = np.array([v for v in per_seed if not np.isnan(v)])
        low, high = bootstrap(reached)
        ends = {"lowest": frontier[self.matched].min(), "highest": frontier[self.matched].max()}
        mean = float(np.mean(reached)) if reached.size else float("nan")
        return {"mean": mean, "low": low, "high": high, "seeds": reached.size, "of_seeds": len(per_seed), **ends}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Best:
    """The best value of an axis in each group, by the mean of a metric over the seeds of each value.

    Whatever else differs between the members of a group and value is added to the group.
    """

    metric: str
    """The metric whose mean is to be largest."""
    along: str
    """The axis that is searched, a dotted name."""
    group: str | tuple[str, ...] = "d_sae"
    """A row for each value of this name, or for each combination of values of these names."""
    smallest: bool = False
    """Look for the smallest mean instead."""
    also: tuple[str, ...] = ()
    """Other metrics to show at the best value, as means over the same members."""

    def __post_init__(self) -> None:
        listed(self)

    @property
    def groups(self) -> list[str]:
        """The names in `group`, without the axis that is searched."""
        names = [self.group] if isinstance(self.group, str) else self.group
        return [name for name in names if name != self.along]

    @property
    def title(self) -> str:
        """The table's title."""
        return f"best {short(self.metric)} over {self.along}"

    def check(self, names: Collection[str]) -> None:
        """Check before training that every name it reads exists, and that it searches no seed. Raises UserError."""
        require(names, [*self.groups, self.along], (self.metric, *self.also), "answer")
        if is_seed(self.along):
            raise UserError(f"answer: along: got {self.along}, allowed: no seed, as means are over seeds")

    def table(self, members: pd.DataFrame) -> pd.DataFrame:
        """Members table -> a row per group."""
        of_choice = f"{self.along}."  # the fields of a choice that is searched are candidates, not rows
        hidden = lurking(members, [*self.groups, self.along])
        searched = [self.along, *(name for name in hidden if name.startswith(of_choice))]
        rows = [*self.groups, *(name for name in hidden if name not in searched)]
        numbers = list(dict.fromkeys([self.metric, *self.also]))
        means = members.groupby([*rows, *searched], dropna=False)[numbers].mean().reset_index()
        means = means.dropna(subset=[self.metric])
        if not rows:  # the axis is all that differs
            rows, means = [""], means.assign(**{"": "all members"})
        pick = means.groupby(rows, dropna=False)[self.metric]
        best = means.loc[pick.idxmin() if self.smallest else pick.idxmax()].set_index(rows)
        return best.rename(columns=short)


Answer = AtMatched | Best


def of_arm(members: pd.DataFrame, coefficient: str, coefficients: Iterable[str]) -> pd.DataFrame:
    """The members of an arm: they have this coefficient, and the others are 0 or absent. Sorted by the coefficient."""
    others = [name for name in coefficients if name != coefficient]
    chosen = members[coefficient].notna() & members[others].fillna(0).eq(0).all(axis=1)
    return members[chosen].sort_values(coefficient, kind="stable")


def hidden(members: pd.DataFrame, along: Sequence[str], names: Sequence[str], what: str) -> tuple[str, ...]:
    """What means over the members of an arm that share `names` and a coefficient would hide: see `lurking`.

    Raises UserError, beginning with `what`, where no coefficient has members in which the others are 0.
    """
    arms = {name: of_arm(members, name, along) for name in along}
    if along and all(arm.empty for arm in arms.values()):
        got, allowed = ", ".join(along), "one of them" if len(along) > 1 else "one that some member has"
        raise UserError(f"{what}: got {got}, but no member has one alone, the others at 0; allowed: {allowed}")
    found: tuple[str, ...] = ()
    for name, arm in arms.items():
        found += lurking(arm, [*names, *found, name])
    return found


def listed(definition: Any) -> None:
    """Make one name of a definition's fields for several names a tuple, which a user's slip gives as a text."""
    for field in dataclasses.fields(definition):
        value = getattr(definition, field.name)
        if field.type == tuple[str, ...] and isinstance(value, str | list):
            object.__setattr__(definition, field.name, (value,) if isinstance(value, str) else tuple(value))


def _per_seed(frontier: pd.DataFrame) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    """A frontier, cut by its seeds."""
    names = seeds(frontier)
    return groups(frontier, names) if names else iter([((), frontier)])


def _round_numbers(digits: Iterable[float]) -> list[float]:
    return [float(f"{digit}e{power}") for power in range(-6, 7) for digit in digits]


def groups(table: pd.DataFrame, names: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    """(values of these names, the rows that have them), sorted by the values; a missing value is a value too."""
    for values, rows in table.groupby(list(names), dropna=False):
        yield (values if isinstance(values, tuple) else (values,)), rows


def interpolate(value: float, frontier: pd.DataFrame, x: str, y: str) -> float:
    """y at x = value, log-log between the first two neighbours of a frontier that enclose it; NaN if none do.

    If y is 0 at one of the two (no dead latents, say), y is interpolated linearly in log x instead.
    """
    xs, ys = frontier[x].to_numpy(float), frontier[y].to_numpy(float)
    for (x0, y0), (x1, y1) in zip(zip(xs, ys, strict=True), zip(xs[1:], ys[1:], strict=True), strict=False):
        if not (min(x0, x1) <= value <= max(x0, x1)) or min(x0, x1) <= 0 or x0 == x1:
            continue
        t = np.log(value / x0) / np.log(x1 / x0)
        if min(y0, y1) > 0:
            return float(np.exp((1 - t) * np.log(y0) + t * np.log(y1)))
        return float((1 - t) * y0 + t * y1)
    return float("nan")


def bootstrap(values: np.ndarray, draws: int = 2_000) -> tuple[float, float]:
    """The bootstrap 95 % percentile interval of the mean of values [n]; (NaN, NaN) for fewer than two values."""
    if len(values) < 2:
        return float("nan"), float("nan")
    picks = np.random.default_rng(0).integers(len(values), size=(draws, len(values)))
    low, high = np.quantile(np.asarray(values, float)[picks].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def require(
    names: Collection[str], hyper: Iterable[str], numbers: Iterable[str], what: str, window: str = "eval"
) -> None:
    """Check that hyper-parameters are among `names`, and that metrics exist in a window (eval or train).

    `names` holds the columns of measures too, which count as metrics. Raises UserError, beginning with `what`.
    """
    measured = [name for name in names if name.startswith(PREFIX)]
    names = [name for name in names if not name.startswith(PREFIX)]
    metrics = [f"{window}/{metric}" for metric in EVALUATED] + measured
    metrics += [f"train/{name}" for name in OF_A_STEP if window == "train"]
    for name in hyper:
        if name not in names:
            raise UserError(f"{what}: members have no '{name}'; {nearest(name, names)}")
    for name in numbers:
        if name not in metrics:
            raise UserError(f"{what}: no metric '{name}'; {nearest(name, metrics)}")


def short(name: str) -> str:
    """ "eval/l0" -> "l0"."""
    return name.removeprefix("eval/").removeprefix(PREFIX)

"""Answers: how a sweep's question is answered from its members table, as a small table of its own."""

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sae.core.types import UserError
from sae.study.frontiers import Arm, arms_along, bootstrap, groups, hidden, interpolate, listed, require, short
from sae.study.replicates import is_seed, lurking, seeds

MANY = 3  # arms that stand side by side in a table; more are rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtMatched:
    """Arms compared at the same value of one metric, interpolated along the frontier of each arm.

    Penalties cannot be compared at equal coefficients, as their units differ; they can at equal error. An arm sweeps
    one coefficient. Its frontier, for each group and seed, is the members in which the coefficients of the other arms
    are 0, in the order of its own. Both metrics are interpolated in their logarithms between neighbouring members. A
    value that the frontier does not reach is missing, never extrapolated. Members that diverged are left out. A cell
    is the mean over the seeds that reach the value; whatever else differs between its members is added to the group.
    """

    arms: Mapping[str, str | Arm] | Sequence[str]
    """Arm's name -> its coefficient, a dotted name: {"L1": "penalty.l1", "L2": "penalty.l2"}.

    An arm that is known by its choices is an `Arm`: {"TopK": Arm(along="activation.k", where={"activation":
    ("top-k",)})}. A sequence of coefficients will do: an arm's name is then its coefficient. It is kept as a mapping.
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
        if isinstance(arms, Mapping):  # an arm that was read from JSON is a mapping
            arms = {name: Arm(**arm) if isinstance(arm, Mapping) else arm for name, arm in arms.items()}
        sound = isinstance(arms, Mapping) and arms and all(isinstance(name, str) for name in arms)
        if not sound or not all(isinstance(arm, str | Arm) for arm in arms.values()):
            allowed = '{"L1": "penalty.l1", "L2": "penalty.l2"}, or ("penalty.l1", "penalty.l2")'
            raise UserError(f"AtMatched: arms: got {self.arms!r}, allowed: names and coefficients, as {allowed}")
        object.__setattr__(self, "arms", arms)

    @property
    def lines(self) -> dict[str, Arm]:
        """Every arm by its name, as an `Arm`."""
        arms: dict[str, str | Arm] = dict(self.arms)  # ty: ignore[no-matching-overload]  # a sequence has become one
        plain = arms_along([arm for arm in arms.values() if isinstance(arm, str)])
        return {name: plain[arm] if isinstance(arm, str) else arm for name, arm in arms.items()}

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
        return dataclasses.replace(self, group=(*self.groups, *hidden(members, self.lines, self.groups, "AtMatched")))

    def check(self, names: Collection[str]) -> None:
        """Check before training that every name it reads exists. Raises UserError."""
        read = [name for arm in self.lines.values() for name in (arm.along, *arm.others, *arm.where)]
        require(names, [*self.groups, *read], (self.matched, *self.metrics), "answer")

    def table(self, members: pd.DataFrame) -> pd.DataFrame:
        """Members table -> a row per (metric, group), a column per (matched value, arm).

        With many arms, a row per (metric, group, arm) and a column per matched value.
        """
        cells: dict[tuple, dict] = {}
        rows = ["metric", *self.complete(members).groups, *["arm"] * self.many]
        for row in self.compare(members).to_dict("records"):
            key = tuple(None if row[name] != row[name] else row[name] for name in rows)  # NaN != NaN
            at = f"{short(self.matched)} {row['value']:g}"
            cells.setdefault(key, {})[at if self.many else (at, row["arm"])] = row["mean"]
        columns = list(dict.fromkeys(name for row in cells.values() for name in row))
        return pd.DataFrame(
            [[row[name] for name in columns] for row in cells.values()],
            index=pd.MultiIndex.from_tuples(cells, names=["", *rows[1:]]),
            columns=columns if self.many else pd.MultiIndex.from_tuples(columns),
        )

    @property
    def many(self) -> bool:
        """Whether there are too many arms to stand side by side."""
        return len(self.arms) > MANY

    def compare(self, members: pd.DataFrame) -> pd.DataFrame:
        """Members table -> a row per metric, group, matched value and arm.

        Columns: `mean` over the seeds that reach the value; `low` and `high`, its bootstrap interval; `seeds`, how many
        reach it; `of_seeds`, how many there are; `lowest` and `highest`, the ends of the arm's frontier in the matched
        metric. A group whose members do not have a metric, as no data but synthetic ones have MMCS, has no row for it.
        Raises UserError if `at` is empty and the frontiers reach no round number, or if an arm is no frontier.
        """
        complete, rows = self.complete(members), []
        values = complete.values(members)
        if not values:
            raise UserError(f"no round value of {short(self.matched)} that some frontier reaches; name some with `at`")
        for metric in self.metrics:
            for group, inside in groups(members, complete.groups):
                if metric in inside and inside[metric].isna().all():
                    continue
                named = dict(zip(complete.groups, group, strict=True))
                for value in values:
                    for arm in self.arms:
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
        along, chosen = self.lines[arm].along, self.lines[arm].members(members)
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


def _per_seed(frontier: pd.DataFrame) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    """A frontier, cut by its seeds."""
    names = seeds(frontier)
    return groups(frontier, names) if names else iter([((), frontier)])


def _round_numbers(digits: Iterable[float]) -> list[float]:
    return [float(f"{digit}e{power}") for power in range(-6, 7) for digit in digits]

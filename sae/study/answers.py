"""Answers: how to read a sweep's question off its members table, as a small table of its own."""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from sae.core.metrics import EVALUATED
from sae.core.text import nearest
from sae.core.types import UserError
from sae.study.measures import PREFIX


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtMatched:
    """Arms compared at the same value of one metric, interpolated along each arm's own frontier.

    An arm is named by the coefficient that is swept in it: its frontier, per group and seed, is the members
    where the other arms' coefficients are 0, in the order of the coefficient. Both axes are interpolated
    in their logarithms between neighbouring members; a value the frontier does not reach is missing, never
    extrapolated, and a member that diverged is no neighbour. Cells are means over the seeds that reach the value. At
    equal coefficients penalties cannot be compared: their units differ.
    """

    arms: Mapping[str, str]
    """Arm's name -> its coefficient, a dotted name: {"L1": "penalty.l1", "L2": "penalty.l2"}."""
    matched: str = "eval/fvu"
    """The metric held equal."""
    at: tuple[float, ...] = (0.1, 0.2, 0.4)
    """Its values; none for up to three round numbers that the frontiers reach."""
    metrics: tuple[str, ...] = ("eval/l0", "eval/l0_relative", "eval/n_eff")
    """What is compared there."""
    group: str | tuple[str, ...] = "d_sae"
    """One row per value of this name, or per combination of values of these."""

    @property
    def groups(self) -> list[str]:
        """The names in `group`."""
        return [self.group] if isinstance(self.group, str) else list(self.group)

    @property
    def title(self) -> str:
        """What the table shows."""
        return f"{', '.join(map(short, self.metrics))} at matched {short(self.matched)}"

    def check(self, names: Iterable[str]) -> None:
        """Check before training that these hyper-parameters are there to be read. Raises UserError."""
        require(names, [*self.groups, *self.arms.values()], (self.matched, *self.metrics), "answer")

    def table(self, members: pd.DataFrame) -> pd.DataFrame:
        """Members table -> a row per (metric, group), a column per (matched value, arm)."""
        cells: dict[tuple, dict] = {}
        for row in self.compare(members).to_dict("records"):
            key = (row["metric"], *(row[name] for name in self.groups))
            cells.setdefault(key, {})[f"{short(self.matched)} {row['value']:g}", row["arm"]] = row["mean"]
        table = pd.DataFrame.from_dict(cells, orient="index")
        table.index = pd.MultiIndex.from_tuples(cells, names=["", *self.groups])
        return table

    def compare(self, members: pd.DataFrame) -> pd.DataFrame:
        """Members table -> a row per metric, group, matched value and arm.

        `mean` over the seeds that reach the value, `low` and `high` its bootstrap interval, `seeds` their number of
        `of_seeds`; `lowest` and `highest` are the ends of the arm's frontier in the matched metric.
        """
        rows, values = [], self.values(members)
        if not values:
            raise UserError(f"no round value of {short(self.matched)} that every group reaches; name some with `at`")
        for metric in self.metrics:
            for group, of_group in members.groupby(self.groups, dropna=False):
                for value in values:
                    for arm in self.arms:
                        named = dict(zip(self.groups, group, strict=True))
                        compared = self._compare(self.frontier(of_group, arm), value, metric)
                        rows.append({**named, "metric": short(metric), "value": value, "arm": arm, **compared})
        return pd.DataFrame(rows)

    def values(self, members: pd.DataFrame) -> tuple[float, ...]:
        """`at`, or where it is empty at most three of 1, 2, 5, 10, 20, ... that every group has an arm to reach."""
        if self.at:
            return self.at
        reached = [
            [tuple(self.frontier(of_group, arm)[self.matched].quantile([0, 1])) for arm in self.arms]
            for _, of_group in members.groupby(self.groups, dropna=False)
        ]
        round_numbers = [float(f"{digit}e{power}") for power in range(-6, 7) for digit in (1, 2, 5)]
        shared = [v for v in round_numbers if all(any(a <= v <= b for a, b in arms) for arms in reached)]
        return tuple(shared[len(shared) * k // 6] for k in (1, 3, 5)) if len(shared) > 3 else tuple(shared)

    def frontier(self, members: pd.DataFrame, arm: str) -> pd.DataFrame:
        """The members of one arm, where the other arms' coefficients are 0, in the order of its own."""
        chosen = of_arm(members, self.arms[arm], self.arms.values())
        if chosen.duplicated([*self.groups, "seed", self.arms[arm]]).any():
            same = f"{', '.join(self.groups)}, seed and {self.arms[arm]}"
            raise UserError(
                f"arm {arm}: members with equal {same} differ in something else, "
                "so they are no one frontier; make that the group, or ask it in a sweep of its own"
            )
        return chosen

    def _compare(self, frontier: pd.DataFrame, value: float, metric: str) -> dict[str, float]:
        of_seeds = [interpolate(value, of_seed, self.matched, metric) for _, of_seed in frontier.groupby("seed")]
        reached = np.array([v for v in of_seeds if not np.isnan(v)])
        low, high = bootstrap(reached)
        ends = {"lowest": frontier[self.matched].min(), "highest": frontier[self.matched].max()}
        mean = float(np.mean(reached)) if reached.size else float("nan")
        return {"mean": mean, "low": low, "high": high, "seeds": reached.size, "of_seeds": len(of_seeds), **ends}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Best:
    """The best member of each group along an axis, by the mean over seeds of one metric."""

    metric: str
    """What is best where it is largest (or smallest, with `smallest`)."""
    along: str
    """The axis searched, a dotted name."""
    group: str = "d_sae"
    """One row per value of this name."""
    smallest: bool = False
    """Look for the smallest value."""
    also: tuple[str, ...] = ()
    """Other metrics to show for the best member."""

    @property
    def title(self) -> str:
        """What the table shows."""
        return f"best {short(self.metric)} over {self.along}"

    def check(self, names: Iterable[str]) -> None:
        """Check before training that these hyper-parameters are there to be read. Raises UserError."""
        require(names, [self.group, self.along], (self.metric, *self.also), "answer")

    def table(self, members: pd.DataFrame) -> pd.DataFrame:
        """Members table -> one row per group."""
        means = members.groupby([self.group, self.along])[[self.metric, *self.also]].mean().reset_index()
        means = means.dropna(subset=[self.metric])
        pick = means.groupby(self.group)[self.metric]
        best = means.loc[pick.idxmin() if self.smallest else pick.idxmax()].set_index(self.group)
        return best.rename(columns=short)


Answer = AtMatched | Best


def of_arm(members: pd.DataFrame, coefficient: str, coefficients: Iterable[str]) -> pd.DataFrame:
    """The members in which one coefficient is swept: the others are 0 or not there. In the order of the coefficient."""
    others = [name for name in coefficients if name != coefficient]
    chosen = members[coefficient].notna() & members[others].fillna(0).eq(0).all(axis=1)
    return members[chosen].sort_values(coefficient, kind="stable")


def interpolate(value: float, frontier: pd.DataFrame, x: str, y: str) -> float:
    """y where x = value, log-log between the first neighbours of a frontier that enclose it; NaN if none do.

    Where y is 0 at a neighbour (no dead latents, say) it is interpolated linearly in log x instead.
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
    """The 95 % percentile interval of the mean of values [n], by resampling them; (NaN, NaN) of fewer than two."""
    if len(values) < 2:
        return float("nan"), float("nan")
    picks = np.random.default_rng(0).integers(len(values), size=(draws, len(values)))
    low, high = np.quantile(np.asarray(values, float)[picks].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def require(
    names: Iterable[str], hyper: Iterable[str], numbers: Iterable[str], what: str, window: str = "eval"
) -> None:
    """Check that hyper-parameters are among `names`, and metrics among those of a window (eval or train).

    Columns of measures are among `names` too, and count as metrics. Raises UserError that begins with `what`.
    """
    measured = [name for name in names if name.startswith(PREFIX)]
    names = [name for name in names if not name.startswith(PREFIX)]
    metrics = [f"{window}/{metric}" for metric in EVALUATED] + measured
    for name in hyper:
        if name not in names:
            raise UserError(f"{what}: members have no '{name}'; {nearest(name, names)}")
    for name in numbers:
        if name not in metrics:
            raise UserError(f"{what}: no metric '{name}'; {nearest(name, metrics)}")


def short(name: str) -> str:
    """ "eval/l0" -> "l0"."""
    return name.removeprefix("eval/").removeprefix(PREFIX)

"""Answers: how to read a sweep's question off its members table, as a small table of its own."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import pandas as pd

from sae.types import UserError, nearest


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtMatched:
    """Arms compared at the same value of one metric, interpolated along each arm's own frontier.

    An arm is named by the coefficient that is swept in it: its frontier, per group and seed, is the members
    where the other arms' coefficients are 0, in the order of the coefficient. Both axes are interpolated
    in their logarithms between neighbouring members; a value the frontier does not reach is missing, never
    extrapolated. Cells are means over the seeds that reach it. Comparing penalties at equal coefficients would mean nothing: their units differ.
    """

    arms: Mapping[str, str]
    """Arm's name -> its coefficient, a dotted name: {"L1": "penalty.l1", "L2": "penalty.l2"}."""
    matched: str = "eval/fvu"
    """The metric held equal."""
    at: tuple[float, ...] = (0.1, 0.2, 0.4)
    """Its values."""
    metrics: tuple[str, ...] = ("eval/l0", "eval/l0_relative", "eval/dead_fraction")
    """What is compared there."""
    group: str = "d_sae"
    """One row per value of this name and arm."""

    @property
    def title(self) -> str:
        """What the table shows."""
        return f"{', '.join(map(short, self.metrics))} at matched {short(self.matched)}"

    def table(self, members: pd.DataFrame) -> pd.DataFrame:
        """Members table -> one row per (group, arm), one column per (matched value, metric)."""
        require(members, [self.group, self.matched, *self.metrics, *self.arms.values()])
        rows = {}
        for group, of_group in members.groupby(self.group):
            for arm, coefficient in self.arms.items():
                others = [name for name in self.arms.values() if name != coefficient]
                frontiers = of_group[(of_group[others] == 0).all(axis=1)]
                rows[group, arm] = {
                    (f"{short(self.matched)} {value:g}", short(metric)): self._mean(
                        frontiers, coefficient, value, metric
                    )
                    for value in self.at
                    for metric in self.metrics
                }
        table = pd.DataFrame.from_dict(rows, orient="index")
        table.index = pd.MultiIndex.from_tuples(rows, names=[self.group, "arm"])
        return table

    def _mean(self, frontiers, coefficient, value, metric) -> float:
        values = [
            interpolate(value, seed.sort_values(coefficient), self.matched, metric)
            for _, seed in frontiers.groupby("seed")
        ]
        reached = [v for v in values if not np.isnan(v)]
        return float(np.mean(reached)) if reached else float("nan")


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

    def table(self, members: pd.DataFrame) -> pd.DataFrame:
        """Members table -> one row per group."""
        require(members, [self.group, self.along, self.metric, *self.also])
        means = members.groupby([self.group, self.along])[[self.metric, *self.also]].mean().reset_index()
        means = means.dropna(subset=[self.metric])
        pick = means.groupby(self.group)[self.metric]
        best = means.loc[pick.idxmin() if self.smallest else pick.idxmax()].set_index(self.group)
        return best.rename(columns=short)


Answer = AtMatched | Best


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


def require(members: pd.DataFrame, columns: list[str]) -> None:
    """Check that the members table has these columns. Raises UserError naming the first that it lacks."""
    for column in columns:
        if column not in members.columns:
            raise UserError(f"the members table has no column '{column}'; {nearest(column, members.columns)}")


def short(name: str) -> str:
    """"eval/l0" -> "l0"."""
    return name.removeprefix("eval/")

"""Answers: how to read a sweep's question off its members table, as a small table of its own."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae.metrics import EVALUATED
from sae.types import UserError, nearest


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtMatched:
    """Arms compared at the same value of one metric, interpolated along each arm's own frontier.

    An arm is named by the coefficient that is swept in it: its frontier, per group and seed, is the members
    where the other arms' coefficients are 0, in the order of the coefficient. Both axes are interpolated
    in their logarithms between neighbouring members; a value the frontier does not reach is missing, never
    extrapolated. Cells are means over the seeds that reach it. At equal coefficients penalties cannot be compared:
    their units differ.
    """

    arms: Mapping[str, str]
    """Arm's name -> its coefficient, a dotted name: {"L1": "penalty.l1", "L2": "penalty.l2"}."""
    matched: str = "eval/fvu"
    """The metric held equal."""
    at: tuple[float, ...] = (0.1, 0.2, 0.4)
    """Its values."""
    metrics: tuple[str, ...] = ("eval/l0", "eval/l0_relative", "eval/n_eff")
    """What is compared there."""
    group: str = "d_sae"
    """One row per value of this name."""

    @property
    def title(self) -> str:
        """What the table shows."""
        return f"{', '.join(map(short, self.metrics))} at matched {short(self.matched)}"

    def check(self, names: Iterable[str]) -> None:
        """Check before training that these hyper-parameters are there to be read. Raises UserError."""
        require(names, [self.group, *self.arms.values()], (self.matched, *self.metrics))

    def table(self, members: pd.DataFrame) -> pd.DataFrame:
        """Members table -> a row per (metric, group), a column per (matched value, arm)."""
        cells = {
            (short(metric), group): {
                (f"{short(self.matched)} {value:g}", arm): self._mean(self.frontier(of_group, arm), value, metric)
                for value in self.at
                for arm in self.arms
            }
            for metric in self.metrics
            for group, of_group in members.groupby(self.group)
        }
        table = pd.DataFrame.from_dict(cells, orient="index")
        table.index = pd.MultiIndex.from_tuples(cells, names=["", self.group])
        return table

    def frontier(self, members: pd.DataFrame, arm: str) -> pd.DataFrame:
        """The members of one arm, where the other arms' coefficients are 0, in the order of its own."""
        others = [name for name in self.arms.values() if name != self.arms[arm]]
        chosen = members[(members[others] == 0).all(axis=1)].sort_values(self.arms[arm])
        if chosen.duplicated([self.group, "seed", self.arms[arm]]).any():
            raise UserError(
                f"arm {arm}: members with equal {self.group}, seed and {self.arms[arm]} differ in something else, "
                "so they are no one frontier; make that the group, or ask it in a sweep of its own"
            )
        return chosen

    def figure(self, members: pd.DataFrame) -> Figure:
        """The frontiers themselves: the first metric against the matched one, a line per arm and group."""
        metric = self.metrics[0]
        title = f"{short(metric)} against {short(self.matched)}: lower and further left is better"
        figure, axes = new_figure(xlabel=self.matched, ylabel=metric, title=title)
        groups = sorted(members[self.group].unique())
        for arm, colour in zip(self.arms, itertools.cycle(f"C{i}" for i in range(10)), strict=False):
            for i, group in enumerate(groups):
                frontier = self.frontier(members[members[self.group] == group], arm)
                points = frontier.groupby(self.arms[arm])[[self.matched, metric]]
                mean, low, high = points.mean(), points.min()[metric], points.max()[metric]
                alpha = (i + 1) / len(groups)
                label = f"{arm}, {self.group} {group}"
                axes.plot(mean[self.matched], mean[metric], "o-", ms=3.5, color=colour, alpha=alpha, label=label)
                axes.fill_between(mean[self.matched], low, high, color=colour, alpha=0.15 * alpha, lw=0)
        for value in self.at:
            axes.axvline(value, color="0.8", lw=0.8, zorder=0)
        axes.set(xscale="log", yscale="log")
        axes.legend(frameon=False, fontsize=8)
        return figure

    def _mean(self, frontier: pd.DataFrame, value: float, metric: str) -> float:
        values = [interpolate(value, of_seed, self.matched, metric) for _, of_seed in frontier.groupby("seed")]
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

    def check(self, names: Iterable[str]) -> None:
        """Check before training that these hyper-parameters are there to be read. Raises UserError."""
        require(names, [self.group, self.along], (self.metric, *self.also))

    def table(self, members: pd.DataFrame) -> pd.DataFrame:
        """Members table -> one row per group."""
        means = members.groupby([self.group, self.along])[[self.metric, *self.also]].mean().reset_index()
        means = means.dropna(subset=[self.metric])
        pick = means.groupby(self.group)[self.metric]
        best = means.loc[pick.idxmin() if self.smallest else pick.idxmax()].set_index(self.group)
        return best.rename(columns=short)

    def figure(self, members: pd.DataFrame) -> Figure:
        """The metric along the axis, a line per group: the mean over seeds, and the band they span."""
        figure, axes = new_figure(xlabel=self.along, ylabel=self.metric, title=self.title)
        groups = sorted(members[self.group].unique())
        for i, group in enumerate(groups):
            points = members[members[self.group] == group].groupby(self.along)[self.metric]
            colour = colormaps["viridis"](0.9 * i / max(len(groups) - 1, 1))
            axes.plot(points.mean(), "o-", ms=3.5, color=colour, label=f"{self.group} {group}")
            axes.fill_between(points.mean().index, points.min(), points.max(), color=colour, alpha=0.15, lw=0)
        axes.set(xscale="log" if members[self.along].min() > 0 else "linear")
        axes.legend(frameon=False, fontsize=8)
        return figure


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


def new_figure(*, title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """An empty figure, without pyplot and so without a display or a global state."""
    figure = Figure(figsize=(6.4, 4.4), dpi=130, layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def require(names: Iterable[str], hyper: Iterable[str], numbers: Iterable[str]) -> None:
    """Check that hyper-parameters are among `names` and metrics among those that evaluation gives. Raises UserError."""
    names = list(names)
    for name in hyper:
        if name not in names:
            raise UserError(f"answer: members have no '{name}'; {nearest(name, names)}")
    for name in numbers:
        if name.removeprefix("eval/") not in EVALUATED or not name.startswith("eval/"):
            raise UserError(f"answer: no metric '{name}'; {nearest(name, [f'eval/{metric}' for metric in EVALUATED])}")


def short(name: str) -> str:
    """ "eval/l0" -> "l0"."""
    return name.removeprefix("eval/")

"""What is computed from the numbers of one line: where it rises, whether it falls, how long it holds."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike


def onset(x: ArrayLike, y: ArrayLike, level: float) -> float:
    """The x at which y first reaches a level from below, interpolated linearly in log x.

    NaN if y begins at or above the level, never reaches it or holds a NaN, or if the x before it is not above 0.
    """
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    reached = np.flatnonzero(ys >= level)
    if len(reached) == 0 or reached[0] == 0 or np.isnan(ys).any() or xs[reached[0] - 1] <= 0:
        return float("nan")
    i = reached[0]
    t = (level - ys[i - 1]) / (ys[i] - ys[i - 1])
    return float(np.exp((1 - t) * np.log(xs[i - 1]) + t * np.log(xs[i])))


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rank correlation. NaN for fewer than three points, where y holds a NaN, or where one is constant."""
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    if len(xs) < 3 or np.isnan(ys).any() or np.ptp(xs) == 0 or np.ptp(ys) == 0:
        return float("nan")
    from scipy.stats import spearmanr  # importing scipy takes a second, which only this needs

    return float(spearmanr(xs, ys).statistic)


def falling(x: ArrayLike, y: ArrayLike) -> float:
    """The largest ratio last x / first x of a stretch in which y falls at every step; 1 if y never falls."""
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    best, start = 1.0, 0
    for i in range(1, len(xs)):
        start = start if ys[i] < ys[i - 1] else i
        best = max(best, xs[i] / xs[start])
    return float(best)


def longest_run(values: Iterable[bool]) -> int:
    """The length of the longest run of true values."""
    best = run = 0
    for value in values:
        run = run + 1 if value else 0
        best = max(best, run)
    return best

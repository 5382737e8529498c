"""Quantities: what a claim's bound is about, read from the table of all members as one number per seed.

A quantity is a function of a run's results. It gives *cells*: `{"d_sae 64, fvu 0.1": a number per seed}`. Several
lines give one cell each. Two quantities with the same cells can be combined, seed by seed:

    L1 = Arm(along="penalty.l1", others=("penalty.l2",))
    L2 = Arm(along="penalty.l2", others=("penalty.l1",))
    Ratio(Matched(arm=L1, metric="eval/l0"), Matched(arm=L2, metric="eval/l0"))

A number is NaN, never a guess, where the members cannot give it: the frontier does not reach the value, or a member is
missing, has diverged or lacks the metric. Any function of the results that gives cells is a quantity too.
"""

from sae.study.frontiers import Arm
from sae.study.quantities.cells import Cells, Quantity
from sae.study.quantities.combined import Decades, Difference, InSeeds, Largest, Ranked, Ratio, Spread
from sae.study.quantities.lines import (
    AtBest,
    AtEach,
    AtEnd,
    AtSome,
    Follows,
    Matched,
    Monotone,
    Onset,
    Peak,
    PeakAt,
    PeakInside,
    Span,
    Zone,
)
from sae.study.quantities.others import Beside

__all__ = [
    "Arm",
    "AtBest",
    "AtEach",
    "AtEnd",
    "AtSome",
    "Beside",
    "Cells",
    "Decades",
    "Difference",
    "Follows",
    "InSeeds",
    "Largest",
    "Matched",
    "Monotone",
    "Onset",
    "Peak",
    "PeakAt",
    "PeakInside",
    "Quantity",
    "Ranked",
    "Ratio",
    "Span",
    "Spread",
    "Zone",
]

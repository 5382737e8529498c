"""Quantities that compare a sweep's lines with the autoencoders in its `others`."""

import dataclasses
from typing import Any

import pandas as pd

from sae.core.text import nearest
from sae.core.types import UserError
from sae.study.frontiers import interpolate, short
from sae.study.quantities.cells import Cells
from sae.study.quantities.lines import OfLine


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beside(OfLine):
    """A metric of a line over that of another autoencoder, where both have the other's value of a second metric.

    `AtMost(Beside(arm=TOPK, metric="eval/fvu", other="theirs"), 1.0)`: at the L0 of the autoencoder in the folder
    "theirs", TopK errs no more. The line is interpolated as by `Matched`, which says how.
    """

    other: str
    """Which one: its path in `Sweep.others`; of a run with several members, "path/number"."""
    matched: str = "eval/l0"
    """The metric that is held equal."""

    def read(self) -> tuple[str, ...]:
        """Both metrics."""
        return (self.metric, self.matched)

    def whole(self) -> tuple[str, ...]:
        """The matched metric; the other is needed at the two neighbours only."""
        return (self.matched,)

    def __call__(self, results: Any) -> Cells:
        """A number per line and seed; NaN where the line does not reach the other's value."""
        others: pd.DataFrame = results.others
        if self.other not in others.index:
            raise UserError(f"other: got {self.other!r}; {nearest(self.other, [*others.index] or ['none'])}")
        row = others.loc[self.other]
        for name in self.read():
            if name not in row or not row[name] > 0:
                raise UserError(f"{self.other} has no {name} above 0")
        at, value = float(row[self.matched]), float(row[self.metric])
        over = lambda line: interpolate(at, line, self.matched, self.metric) / value
        return self.cells(results, over, f"{short(self.matched)} of {self.other}")

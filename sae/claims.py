"""Claims: statements about a sweep's results whose thresholds stand in the sweep file before the first run.

    Claim(
        "L1 leaves half as many latents active as L2 at equal error",
        AtMost(Ratio(Matched(arm=L1, metric="eval/l0"), Matched(arm=L2, metric="eval/l0")), 0.5),
        source="paper, figure",
    )

A clause is a bound on a quantity. A quantity gives a number per seed in each of its cells (a width, say, at an FVU);
the mean over seeds is what was measured, and a bootstrap over seeds its 95 % interval. A cell *holds* where the whole
interval lies within the bound, *fails* where none of it does, and is *undecided* where the interval straddles the
bound or a seed has no number. A claim holds if all of its cells hold, and fails if one of them fails.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from sae.answers import bootstrap
from sae.files import write_json
from sae.quantities import Cells
from sae.types import UserError

NAME = "claims.json"
Verdict = Literal["holds", "fails", "undecided"]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its 95 % interval; NaN, with the reason, where it cannot be told."""

    value: float
    low: float
    high: float
    seeds: int
    reason: str = ""


def estimate(per_seed: pd.Series) -> Estimate:
    """The mean over seeds, and its bootstrap interval; equal numbers in all seeds have an interval of one point."""
    values = per_seed.to_numpy(float)
    if np.isnan(values).any():
        lacking = f"{int(np.isnan(values).sum())} of {len(values)} seeds"
        known = values[~np.isnan(values)]
        mean = float(known.mean()) if len(known) else math.nan
        return Estimate(
            mean, math.nan, math.nan, len(known), f"{lacking} have no number: out of reach, missing or diverged"
        )
    if len(values) < 2:
        return Estimate(float(values[0]), math.nan, math.nan, 1, "one seed has no interval")
    return Estimate(float(values.mean()), *bootstrap(values), len(values))


@dataclasses.dataclass(frozen=True)
class AtMost:
    """quantity <= bound."""

    quantity: Callable[[Any], Cells]
    bound: float

    @property
    def threshold(self) -> str:
        """As a person reads it."""
        return f"≤ {self.bound:g}"

    def judge(self, low: float, high: float) -> Verdict:
        """Of an interval."""
        return "holds" if high <= self.bound else "fails" if low > self.bound else "undecided"


@dataclasses.dataclass(frozen=True)
class AtLeast:
    """quantity >= bound."""

    quantity: Callable[[Any], Cells]
    bound: float

    @property
    def threshold(self) -> str:
        """As a person reads it."""
        return f"≥ {self.bound:g}"

    def judge(self, low: float, high: float) -> Verdict:
        """Of an interval."""
        return "holds" if low >= self.bound else "fails" if high < self.bound else "undecided"


@dataclasses.dataclass(frozen=True)
class Within:
    """least <= quantity <= most."""

    quantity: Callable[[Any], Cells]
    least: float
    most: float

    @property
    def threshold(self) -> str:
        """As a person reads it."""
        return f"in [{self.least:g}, {self.most:g}]"

    def judge(self, low: float, high: float) -> Verdict:
        """Of an interval."""
        inside = self.least <= low and high <= self.most
        return "holds" if inside else "fails" if high < self.least or low > self.most else "undecided"


Clause = AtMost | AtLeast | Within


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement, the clause that decides it, and where it comes from."""

    text: str
    clause: Clause
    source: str = ""

    def check(self, names) -> None:
        """Check before training that what the clause reads is there. Raises UserError."""
        if not isinstance(self.clause, Clause):
            raise UserError(f"claim {self.text!r}: got {self.clause!r}, allowed: AtMost, AtLeast, Within")
        check = getattr(self.clause.quantity, "check", None)
        if check is not None:
            check(names)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell of a claim, decided."""

    label: str
    estimate: Estimate
    verdict: Verdict


@dataclasses.dataclass(frozen=True)
class Decided:
    """A claim and its verdict."""

    claim: Claim
    cells: tuple[Cell, ...]

    @property
    def verdict(self) -> Verdict:
        """fails if a cell fails, holds if all hold."""
        of = {cell.verdict for cell in self.cells}
        return "fails" if "fails" in of else "holds" if of == {"holds"} else "undecided"


def decide(claim: Claim, results) -> Decided:
    """A claim's verdict on a run's results, finished or not."""
    try:
        found = claim.clause.quantity(results)
    except Exception as error:  # of any quantity, a user's too: it decides nothing, and costs no result
        reason = " ".join(str(error).split()) or type(error).__name__
        return Decided(claim, (Cell("", Estimate(math.nan, math.nan, math.nan, 0, reason), "undecided"),))
    cells = []
    for label, per_seed in found.items():
        over_seeds = estimate(per_seed)
        known = not math.isnan(over_seeds.low)
        cells.append(
            Cell(label, over_seeds, claim.clause.judge(over_seeds.low, over_seeds.high) if known else "undecided")
        )
    return Decided(claim, tuple(cells))


def as_json(decided: Sequence[Decided]) -> list[dict[str, Any]]:
    """What claims.json holds."""
    number = lambda value: None if math.isnan(value) else value
    return [
        {
            "text": one.claim.text,
            "source": one.claim.source,
            "verdict": one.verdict,
            "clauses": [
                {
                    "text": cell.label,
                    "measured": number(cell.estimate.value),
                    "low": number(cell.estimate.low),
                    "high": number(cell.estimate.high),
                    "seeds": cell.estimate.seeds,
                    "threshold": one.claim.clause.threshold,
                    "verdict": cell.verdict,
                    "reason": cell.estimate.reason,
                }
                for cell in one.cells
            ],
        }
        for one in decided
    ]


def settle(claims: Sequence[Claim], results) -> list[dict[str, Any]]:
    """Decide all claims on a run's results, write claims.json into its folder -> what it holds."""
    decided = as_json([decide(claim, results) for claim in claims])
    write_json(results.folder / NAME, decided)
    return decided


def read(folder: Path) -> list[dict[str, Any]]:
    """What claims.json holds; [] where there is none that can be read."""
    try:
        return json.loads((folder / NAME).read_text())
    except (OSError, ValueError):
        return []


def table(decided: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """A row per cell: claim, at, measured, low, high, threshold, verdict, reason, source."""
    rows = [
        {
            "claim": claim["text"],
            "at": cell["text"],
            **{name: cell[name] for name in ("measured", "low", "high", "threshold", "verdict", "reason")},
            "source": claim["source"],
        }
        for claim in decided
        for cell in claim["clauses"]
    ]
    return pd.DataFrame(rows)


def measured(cell: dict[str, Any]) -> str:
    """What was measured in a cell of claims.json, with its interval: "0.188 [0.186, 0.191]"."""
    number = lambda value: "–" if value is None else f"{value:.3g}"
    return number(cell["measured"]) + (
        "" if cell["low"] is None else f" [{number(cell['low'])}, {number(cell['high'])}]"
    )


def markdown(decided: Sequence[dict[str, Any]]) -> str:
    """A row per cell, as a table in Markdown: claim, at, threshold, measured with its interval, verdict."""
    lines = ["| claim | at | threshold | measured [95 %] | verdict |", "|---|---|---|---|---|"]
    for claim in decided:
        for i, cell in enumerate(claim["clauses"]):
            text, verdict = claim["text"] if i == 0 else "", cell["verdict"]
            reason = f" ({cell['reason']})" if cell["reason"] else ""
            row = (text, cell["text"], cell["threshold"], measured(cell), verdict + reason)
            lines.append("| " + " | ".join(word.replace("|", "\\|") for word in row) + " |")
    return "\n".join(lines)

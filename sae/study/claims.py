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

An interval of few seeds is too narrow: of normal numbers it covers the true mean in half of all cases with 2 seeds (it
reaches from one to the other), in 75 % with 3, 84 % with 5 and 88 % with 8.

What a run claimed when it began is kept in its definition: a claim that is not among those is marked, and one of those
that is claimed no longer is listed.
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from sae.core.files import write_json
from sae.core.types import UserError
from sae.study import quantities
from sae.study.answers import bootstrap
from sae.study.quantities import Cells

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
    known = values[np.isfinite(values)]
    if not len(values):
        return Estimate(math.nan, math.nan, math.nan, 0, "no seeds")
    if len(known) < len(values):
        lacking = f"{len(values) - len(known)} of {len(values)} seeds have no number"
        why = "out of reach, not defined there, missing or diverged"
        mean = float(known.mean()) if len(known) else math.nan
        return Estimate(mean, math.nan, math.nan, len(known), f"{lacking}: {why}")
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
        quantities.check(self.clause.quantity, names)


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
        found = {label: estimate(per_seed) for label, per_seed in claim.clause.quantity(results).items()}
        if not found:
            raise UserError("no cells: there is nothing to decide")
        return Decided(claim, tuple(_cell(claim, label, over_seeds) for label, over_seeds in found.items()))
    except Exception as error:  # of any quantity, a user's too: it decides nothing, and costs no result
        reason = " ".join(str(error).split()) or type(error).__name__
        return Decided(claim, (_cell(claim, "", Estimate(math.nan, math.nan, math.nan, 0, reason)),))


def _cell(claim: Claim, label: str, over_seeds: Estimate) -> Cell:
    known = not math.isnan(over_seeds.low)
    return Cell(str(label), over_seeds, claim.clause.judge(over_seeds.low, over_seeds.high) if known else "undecided")


def written(claim: Claim) -> dict[str, str]:
    """A claim in words, as a run's definition keeps it; two clauses are the same if their words are.

    A function of one's own is known by its name only, and what the code of a quantity does is not seen.
    """
    return {"text": claim.text, "threshold": claim.clause.threshold, "clause": _words(claim.clause)}


def _words(value: Any) -> str:
    """A definition in words, fields at their defaults left out: one that is new does not change what was written."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        bare = lambda f: f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        told = [(f.name, _words(getattr(value, f.name)), _words(bare(f))) for f in dataclasses.fields(value)]
        return f"{type(value).__name__}({', '.join(f'{name}={of}' for name, of, default in told if of != default)})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_words(of)}" for name, of in value.items()) + "}"
    if isinstance(value, tuple | list | range):
        return f"({', '.join(map(_words, value))})"
    if isinstance(value, bool | str) or not isinstance(value, int | float):
        return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    return repr(float(value))


def as_json(decided: Sequence[Decided], first: Sequence[Mapping[str, str]] | None = None) -> list[dict[str, Any]]:
    """What claims.json holds. `first`: the claims that the run began with, as `written`, where that is known.

    One of these that is claimed no longer stands there too, undecided.
    """
    number = lambda value: None if math.isnan(value) else value
    clauses = None if first is None else [claim["clause"] for claim in first]
    now = [written(one.claim)["clause"] for one in decided]
    dropped = [claim for claim in first or () if claim["clause"] not in now]
    return [
        {
            "text": one.claim.text,
            "source": one.claim.source,
            "verdict": one.verdict,
            "later": None if clauses is None else clause not in clauses,
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
        for one, clause in zip(decided, now, strict=True)
    ] + [
        {
            "text": claim["text"],
            "source": "",
            "verdict": "undecided",
            "later": False,
            "clauses": [
                {"text": "", "measured": None, "low": None, "high": None, "seeds": 0, "verdict": "undecided"}
                | {"threshold": claim["threshold"], "reason": "claimed at the first run, and no longer"}
            ],
        }
        for claim in dropped
    ]


def settle(claims: Sequence[Claim], results) -> list[dict[str, Any]]:
    """Decide all claims on a run's results, write claims.json into its folder if it is new -> what it holds."""
    decided = as_json([decide(claim, results) for claim in claims], results.definition.get("claims"))
    if decided != read(results.folder):
        write_json(results.folder / NAME, decided)
    return decided


def read(folder: Path) -> list[dict[str, Any]]:
    """What claims.json holds; [] where there is none that can be read."""
    try:
        return json.loads((folder / NAME).read_text())
    except (OSError, ValueError):
        return []


def named(claim: dict[str, Any]) -> str:
    """The text of a claim of claims.json, and that it was not claimed at the first run, where that is so."""
    return claim["text"] + " (not claimed at the first run)" * bool(claim.get("later"))


def table(decided: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """A row per cell: claim, at, measured, low, high, threshold, verdict, reason, source."""
    rows = [
        {
            "claim": named(claim),
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
            text, verdict = named(claim) if i == 0 else "", cell["verdict"]
            reason = f" ({cell['reason']})" if cell["reason"] else ""
            row = (text, cell["text"], cell["threshold"], measured(cell), verdict + reason)
            lines.append("| " + " | ".join(word.replace("|", "\\|") for word in row) + " |")
    return "\n".join(lines)

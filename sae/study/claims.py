"""Claims: statements about a sweep's results, with thresholds that stand in the sweep file before the first run.

    Claim(
        "L1 leaves half as many latents active as L2 at equal error",
        AtMost(Ratio(Matched(arm=L1, metric="eval/l0"), Matched(arm=L2, metric="eval/l0")), 0.5),
        source="paper, figure",
    )

A clause is a bound on a quantity. A quantity has cells (a width at an FVU, say) and gives a number per seed in each.
The measured value of a cell is the mean over seeds; its 95 % interval is a bootstrap over seeds. A cell *holds* if the
whole interval lies within the bound and *fails* if none of it does. It is *undecided* if the interval straddles the
bound or a seed has no number. A claim holds if all of its cells hold, and fails if one of them fails.

The interval of few seeds is too narrow. For normally distributed numbers it covers the true mean in half of all cases
with 2 seeds (it reaches from one to the other), in 75 % with 3, 84 % with 5 and 88 % with 8.

A run's definition keeps the claims that the run began with. A claim that came later is marked as such, and a claim that
was dropped later is still listed.
"""

import dataclasses
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd

from sae.core.files import DamagedError, read_checked, write_checked
from sae.core.shapes import fault
from sae.core.text import in_markdown
from sae.core.types import UserError
from sae.study.frontiers import bootstrap
from sae.study.quantities import cells
from sae.study.quantities.cells import Quantity, Tables

NAME = "claims.json"
Verdict = Literal["holds", "fails", "undecided"]


class Run(Tables, Protocol):
    """What is read of a run's results to decide and keep its claims."""

    folder: Path
    definition: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its 95 % interval; NaN, with a reason, where there is none."""

    value: float
    low: float
    high: float
    seeds: int
    reason: str = ""


def estimate(per_seed: pd.Series) -> Estimate:
    """The mean over seeds and its bootstrap interval, which is a single point if all seeds have the same number."""
    values = per_seed.to_numpy(float)
    known = values[np.isfinite(values)]
    if not len(values):
        return Estimate(math.nan, math.nan, math.nan, 0, "no seeds")
    if len(known) < len(values):
        reason = f"{len(values) - len(known)} of {len(values)} seeds have no number"
        reason += ": out of reach, not defined there, missing or diverged"
        mean = float(known.mean()) if len(known) else math.nan
        return Estimate(mean, math.nan, math.nan, len(known), reason)
    if len(values) < 2:
        return Estimate(float(values[0]), math.nan, math.nan, 1, "one seed has no interval")
    return Estimate(float(values.mean()), *bootstrap(values), len(values))


@dataclasses.dataclass(frozen=True)
class AtMost:
    """quantity <= bound."""

    quantity: Quantity
    bound: float

    @property
    def threshold(self) -> str:
        """The bound, as a person reads it."""
        return f"≤ {self.bound:g}"

    def judge(self, low: float, high: float) -> Verdict:
        """The verdict on an interval."""
        return "holds" if high <= self.bound else "fails" if low > self.bound else "undecided"


@dataclasses.dataclass(frozen=True)
class AtLeast:
    """quantity >= bound."""

    quantity: Quantity
    bound: float

    @property
    def threshold(self) -> str:
        """The bound, as a person reads it."""
        return f"≥ {self.bound:g}"

    def judge(self, low: float, high: float) -> Verdict:
        """The verdict on an interval."""
        return "holds" if low >= self.bound else "fails" if high < self.bound else "undecided"


@dataclasses.dataclass(frozen=True)
class Within:
    """least <= quantity <= most."""

    quantity: Quantity
    least: float
    most: float

    @property
    def threshold(self) -> str:
        """The bound, as a person reads it."""
        return f"in [{self.least:g}, {self.most:g}]"

    def judge(self, low: float, high: float) -> Verdict:
        """The verdict on an interval."""
        inside = self.least <= low and high <= self.most
        return "holds" if inside else "fails" if high < self.least or low > self.most else "undecided"


Clause = AtMost | AtLeast | Within


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement, the clause that decides it, and its source."""

    text: str
    """The statement, in words."""
    clause: Clause
    """The bound on what is measured."""
    source: str = ""
    """The paper or question that it comes from."""

    def check(self, names: Collection[str]) -> None:
        """Check before training that every name the clause reads exists. Raises UserError."""
        if not isinstance(self.clause, Clause):
            raise UserError(f"claim {self.text!r}: got {self.clause!r}, allowed: AtMost, AtLeast, Within")
        cells.check(self.clause.quantity, names)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell of a claim, with its verdict."""

    label: str
    estimate: Estimate
    verdict: Verdict


@dataclasses.dataclass(frozen=True)
class Decided:
    """A claim with the verdicts on its cells."""

    claim: Claim
    cells: tuple[Cell, ...]

    @property
    def verdict(self) -> Verdict:
        """It fails if a cell fails, holds if all cells hold, and is undecided otherwise."""
        verdicts = {cell.verdict for cell in self.cells}
        return "fails" if "fails" in verdicts else "holds" if verdicts == {"holds"} else "undecided"


def decide(claim: Claim, results: Any) -> Decided:
    """Decide a claim on the results of a run, finished or not.

    An error in its quantity, ours or a user's own, leaves it undecided and becomes the reason.
    """
    try:
        found = {label: estimate(per_seed) for label, per_seed in claim.clause.quantity(results).items()}
        if not found:
            raise UserError("no cells: there is nothing to decide")
        return Decided(claim, tuple(_cell(claim, label, over_seeds) for label, over_seeds in found.items()))
    except Exception as error:  # whatever a quantity raises must not cost the run its results
        reason = " ".join(str(error).split()) or type(error).__name__
        return Decided(claim, (_cell(claim, "", Estimate(math.nan, math.nan, math.nan, 0, reason)),))


def _cell(claim: Claim, label: str, over_seeds: Estimate) -> Cell:
    known = not math.isnan(over_seeds.low)
    return Cell(str(label), over_seeds, claim.clause.judge(over_seeds.low, over_seeds.high) if known else "undecided")


def written(claim: Claim) -> dict[str, str]:
    """A claim in words, as a run's definition keeps it. Two clauses are the same if their words are the same.

    A user's own function is known by its name only; a change in its code goes unnoticed.
    """
    return {"text": claim.text, "threshold": claim.clause.threshold, "clause": _words(claim.clause)}


def _words(value: Any) -> str:
    """A definition in words, without the fields at their defaults, so that a new field does not change old words."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        default = lambda f: f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        fields = [(f.name, _words(getattr(value, f.name)), _words(default(f))) for f in dataclasses.fields(value)]
        changed = [f"{name}={words}" for name, words, of_default in fields if words != of_default]
        return f"{type(value).__name__}({', '.join(changed)})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_words(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, tuple | list | range):
        return f"({', '.join(map(_words, value))})"
    if isinstance(value, bool | str) or not isinstance(value, int | float):
        return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    return repr(float(value))


def as_json(decided: Sequence[Decided], first: Sequence[Mapping[str, str]] | None = None) -> list[dict[str, Any]]:
    """The content of claims.json: a row per claim, with its cells under "clauses".

    `first`: the claims that the run began with, as `written` gives them; None if they are not known. A claim that was
    dropped since then is listed too, as undecided.
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


def settle(claims: Sequence[Claim], results: Run) -> list[dict[str, Any]]:
    """Decide claims on a run's results and write claims.json into its folder, if it changed -> its content."""
    decided = as_json([decide(claim, results) for claim in claims], results.definition.get("claims"))
    try:
        known = read(results.folder)
    except DamagedError:
        known = None
    if decided != known:
        write_checked(results.folder / NAME, {"claims": decided})
    return decided


def read(folder: Path) -> list[dict[str, Any]]:
    """The claims in claims.json; [] if there is none. Raises DamagedError."""
    path = folder / NAME
    try:
        found = read_checked(path)
    except FileNotFoundError:
        return []
    decided = found.get("claims") if isinstance(found, dict) else found  # an older file is the list alone
    if wrong := fault(decided, list[Any], "claims") or next(filter(None, map(_unsound, decided)), None):
        raise DamagedError(f"{path} is damaged, or was edited by hand: {wrong}; `sae run` makes it anew")
    return decided


CELL: dict[str, Any] = {
    "text": str,
    "measured": float | None,
    "low": float | None,
    "high": float | None,
    "seeds": int,
    "threshold": str,
    "verdict": Verdict,
    "reason": str,
}
CLAIM: dict[str, Any] = {"text": str, "source": str, "verdict": Verdict, "later": bool | None, "clauses": list[Any]}


def _unsound(claim: Any) -> str | None:
    """What is wrong with an entry of claims.json, in words."""
    return _wrong(claim, CLAIM) or next(filter(None, (_wrong(cell, CELL) for cell in claim["clauses"])), None)


def _wrong(entry: Any, shape: Mapping[str, Any]) -> str | None:
    missing = (f"a claim has no {name}" for name in shape if name not in entry)
    return fault(entry, shape, "claim") or next(missing, None)


def named(claim: dict[str, Any]) -> str:
    """The text of a claim of claims.json; it says so if the claim was not made at the first run."""
    return claim["text"] + " (not claimed at the first run)" * bool(claim.get("later"))


def table(decided: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Claims of claims.json -> a row per cell: claim, at, measured, low, high, threshold, verdict, reason, source."""
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
    """The measured value of a cell of claims.json, with its interval: "0.188 [0.186, 0.191]"."""
    number = lambda value: "–" if value is None else f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.3g}"
    return number(cell["measured"]) + (
        "" if cell["low"] is None else f" [{number(cell['low'])}, {number(cell['high'])}]"
    )


def markdown(decided: Sequence[dict[str, Any]]) -> str:
    """Claims of claims.json -> a table in Markdown, a row per cell: claim, at, threshold, measured, verdict."""
    lines = ["| claim | at | threshold | measured [95 %] | verdict |", "|---|---|---|---|---|"]
    for claim in decided:
        for i, cell in enumerate(claim["clauses"]):
            text, verdict = named(claim) if i == 0 else "", cell["verdict"]
            reason = f" ({cell['reason']})" if cell["reason"] else ""
            row = (text, cell["text"], cell["threshold"], measured(cell), verdict + reason)
            lines.append("| " + " | ".join(in_markdown(word) for word in row) + " |")
    return "\n".join(lines)

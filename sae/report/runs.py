"""The runs of a report: their tables together, and the figures that they ask for."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sae.core.text import abbreviated
from sae.report import data
from sae.store import storage
from sae.store.results import Results
from sae.study import figures
from sae.study.answers import Answer
from sae.study.figures import Figure

LONGEST = 40  # characters of a run's name on the page


@dataclasses.dataclass(frozen=True)
class Runs:
    """The tables of one or several runs together.

    `members` has a row per finished member; the whole page refers to members by its index. Its column `number` is the
    member's number in its run, and `member` its name on the page. With several runs there is a column `run`, and the
    name is "run/number".
    """

    results: tuple[Results, ...]
    names: tuple[str, ...]
    members: pd.DataFrame
    history: pd.DataFrame
    rates: Mapping[Any, np.ndarray]  # member -> firing rates [d_sae]
    figures: tuple[Figure, ...]
    answer: Answer | None
    along: tuple[str, ...]  # coefficients, one arm each
    group: tuple[str, ...]  # d_sae, and what else differs between members, except seeds

    @property
    def sound(self) -> pd.DataFrame:
        """The members that did not diverge."""
        return self.members[self.members["status"] == "finished"]


def gather(results: Sequence[Results]) -> Runs:
    """Read the tables. Raises UserError where no member is finished, or a file is damaged."""
    whole = data.unique([r.folder.resolve().name for r in results])
    short = abbreviated(whole, LONGEST)
    names = [short[name] for name in whole]
    members: list[pd.DataFrame] = []
    history: list[pd.DataFrame] = []
    rates: dict[Any, np.ndarray] = {}
    for one, run in zip(results, names, strict=True):
        call = (lambda number, run=run: f"{run}/{number}") if len(results) > 1 else int
        table = one.members
        named = {"number": table["member"], "member": table["member"].map(call)}
        members.append(table.assign(**named, **({"run": run} if len(results) > 1 else {})))
        history.append((rows := one.history).assign(member=rows["member"].map(call)))
        for cohort in one.cohorts:
            if cohort.finished:
                rates |= {call(number): of_member for number, of_member in cohort.firing_rates().items()}
    joined = members[0] if len(members) == 1 else storage.join_members(members).reset_index(drop=True)
    if len(results) > 1:
        joined = joined.sort_values(["run", "number"], ignore_index=True)
        others = {name: row for table in members for name, row in table.attrs.get("others", {}).items()}
        joined.attrs = {
            "others": others,
            "meanings": {k: v for table in members for k, v in table.attrs.get("meanings", {}).items()},
        }
    past = pd.concat(history, ignore_index=True)
    shown = _shown(results, names)
    shown["along"] = tuple(name for name in shown["along"] if name in joined)  # of members that are finished
    return Runs(tuple(results), tuple(names), joined, past, rates, **shown)


def _shown(results: Sequence[Results], names: Sequence[str]) -> dict[str, Any]:
    """The figures, answer, coefficients and groups of a run; several runs get the default figures and no answer."""
    arms = dict.fromkeys(name for one in results for name in one.arms)
    if len(results) == 1:
        flats, figures_shown, answer = results[0].definition["members"], results[0].figures, results[0].answer
    else:
        # a name that has one value in each run is left out: the run's name tells its value
        inside = {name for one in results for name in figures.varying(one.definition["members"])} | {"d_sae"}
        flats = [
            {"run": run} | {name: value for name, value in flat.items() if name in inside}
            for one, run in zip(results, names, strict=True)
            for flat in one.definition["members"]
        ]
        known = all(one.knows_true_features for one in results)
        figures_shown, answer = figures.default_figures(flats, arms, true_features=known), None
    along, others = figures.axes(flats, arms)
    group = ("d_sae", *(name for name in others if name != "d_sae"))
    return {"figures": figures_shown, "answer": answer, "along": along, "group": group}

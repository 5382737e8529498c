"""The results of a run, as a notebook reads them: `sae.load("runs/patches_l1")`."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import pandas as pd

from sae import figures, storage
from sae.answers import Answer, AtMatched
from sae.data.source import Source
from sae.experiment import Experiment, unflatten
from sae.figures import Figure
from sae.measures import PREFIX, Measure
from sae.model import Sae
from sae.storage import DEFINITION, PARAMETERS, CohortFiles
from sae.types import UserError, ranges

if TYPE_CHECKING:
    import plotly.graph_objects as go


class Results:
    """The results of a run, read from its folder, finished or not."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser()
        path = self.folder / DEFINITION
        if not path.exists():
            raise UserError(f"{self.folder}: no {DEFINITION} there, so no run; allowed: a folder that `sae run` wrote")
        try:
            self.definition: dict[str, Any] = json.loads(path.read_text())
            self.cohorts = [CohortFiles(self.folder, i) for i in range(len(self.definition["cohorts"]))]
        except (ValueError, KeyError) as error:
            raise UserError(f"{path}: not readable as JSON of a run ({type(error).__name__}: {error})") from None

    def __repr__(self) -> str:
        n = len(self.definition["members"])
        return f"<Results of {self.definition['name']!r}, {n} members, {self.status}: {self.folder}>"

    @property
    def finished(self) -> bool:
        """Whether every member is trained and evaluated."""
        return all(cohort.finished for cohort in self.cohorts)

    @property
    def status(self) -> str:
        """finished; interrupted, where a signal stopped it; running; new. A process killed with -9 left "running"."""
        of = [cohort.state.get("status", "new") for cohort in self.cohorts]
        return next((s for s in ("running", "interrupted") if s in of), "finished" if self.finished else "new")

    @property
    def members(self) -> pd.DataFrame:
        """A row per finished member: hyper-parameters by dotted name, `member`, `cohort`, `status`, `eval/...`, and
        `analysis/...` once the sweep's measures were asked; what those are, in a line each, is in `attrs["meanings"]`.
        """
        tables = [cohort.members() for cohort in self.cohorts if cohort.finished]
        members = storage.join_members(self._some(tables, "finished member"))
        found = storage.read_analysis(self.folder)
        members = members.join(found, on="member")
        members.attrs = {"meanings": {n: line for of in found.attrs["asked"].values() for n, line in of.items()}}
        return members

    @property
    def everyone(self) -> pd.DataFrame:
        """A row per member of the sweep, as in `members`; one without results has status "missing" and no numbers."""
        rows = pd.DataFrame(self.definition["members"]).rename_axis("member").reset_index()
        if not any(cohort.finished for cohort in self.cohorts):
            return rows.assign(status="missing")
        members = self.members
        found = members[[name for name in members if name in ("member", "status") or name.startswith(storage.NUMBERS)]]
        joined = rows.merge(found, on="member", how="left")
        return joined.assign(status=joined["status"].fillna("missing"))

    @property
    def history(self) -> pd.DataFrame:
        """A row per member and chunk: `member`, `step`, `examples`, `train/...`."""
        tables = [table for cohort in self.cohorts if (table := cohort.history()) is not None]
        return storage.join_history(self._some(tables, "history"))

    @property
    def asked(self) -> tuple[str, ...]:
        """The measures whose columns the members table has (each as its `repr`)."""
        return tuple(storage.read_analysis(self.folder).attrs["asked"])

    def keep(self, measure: Measure, found: pd.DataFrame) -> None:
        """Add a measure's columns to the members table: a row per member, indexed by its number."""
        storage.write_analysis(self.folder, repr(measure), found, measure.columns)

    def source(self, member: int) -> Source:
        """The definition of a member's data. Raises UserError for a class of the user's own: it is not known here."""
        flat = {n: tuple(v) if isinstance(v, list) else v for n, v in self.definition["members"][member].items()}
        return unflatten(Experiment, "data", flat)

    @property
    def answer(self) -> Answer | None:
        """How the sweep asks its question of the members table."""
        return figures.read(answer) if (answer := self.definition.get("answer")) else None

    @property
    def figures(self) -> tuple[Figure, ...]:
        """What the sweep shows: the figures it names, or those worth seeing where it names none."""
        named = tuple(figures.read(figure) for figure in self.definition.get("figures", ()))
        return named or figures.default_figures(self.definition["members"], self.answer)

    def frontier(self, **fields) -> "go.Figure":
        """L0 against FVU, a line per arm and group (`sae.figures.Frontier`); fields replace those of the sweep's."""
        return self.draw(figures.Frontier, **fields)

    def profile(self, **fields) -> "go.Figure":
        """A metric along a hyper-parameter (`sae.figures.Profile`)."""
        return self.draw(figures.Profile, **fields)

    def heatmap(self, **fields) -> "go.Figure":
        """A metric over two hyper-parameters (`sae.figures.Heatmap`)."""
        return self.draw(figures.Heatmap, **fields)

    def parallel(self, **fields) -> "go.Figure":
        """Every member through parallel axes (`sae.figures.Parallel`)."""
        return self.draw(figures.Parallel, **fields)

    def matched(self, **fields) -> "go.Figure":
        """Arms compared where one metric is equal (`sae.AtMatched`)."""
        return self.draw(AtMatched, **fields)

    def curves(self, members: Sequence[int] = (), **fields) -> "go.Figure":
        """Metrics over training of some members (`sae.figures.Curves`)."""
        return self.draw(figures.Curves, members, **fields)

    def firing_rates(self, members: Sequence[int] = (), **fields) -> "go.Figure":
        """Histograms of firing rates of some members (`sae.figures.FiringRates`)."""
        return self.draw(figures.FiringRates, members, **fields)

    def draw(self, figure: Figure | type[Figure], members: Sequence[int] = (), **fields) -> "go.Figure":
        """A figure in plotly: a definition, or the first of its kind that the sweep shows, with some fields replaced.

        Raises UserError for names that are not there.
        """
        from sae.report import draw  # a second, that only those pay who look at figures

        if isinstance(figure, type):
            shown = next((known for known in self.figures if isinstance(known, figure)), None)
            try:
                figure = dataclasses.replace(shown, **fields) if shown else figure(**fields)
            except TypeError as error:
                names = ", ".join(field.name for field in dataclasses.fields(figure))
                raise UserError(f"{figure.__name__}: {' '.join(str(error).split())}; fields: {names}") from None
        table = self.members
        names = [name for flat in self.definition["members"] for name in flat]
        figure.check(dict.fromkeys([*names, *(name for name in table if name.startswith(PREFIX))]))
        sound = table[table["status"] == "finished"]
        rates = {m: of for cohort in self.cohorts if cohort.finished for m, of in cohort.firing_rates().items()}
        chosen = [int(row) for member in members for row in sound.index[sound["member"] == member]]
        return draw.draw(figure, sound, self.history, rates, chosen).update_layout(template="simple_white")

    def sae(self, member: int) -> Sae:
        """The trained autoencoder of a member. Raises UserError where there is none, or its file is damaged."""
        finished = [m for c in self.cohorts if c.finished for m in self.definition["cohorts"][c.index]]
        if member not in finished:
            raise UserError(
                f"{self.folder}: got member {member}, allowed: those that are finished: {ranges(finished) or 'none'}"
            )
        cohort = next(i for i, members in enumerate(self.definition["cohorts"]) if member in members)
        weights = self.cohorts[cohort].weights(member)
        flat = self.definition["members"][member]
        parameters = [jnp.asarray(weights[name]) for name in PARAMETERS]
        activation = unflatten(Experiment, "activation", flat)
        precision = flat.get("precision", "float32")  # a folder older than this choice has no such name
        return Sae(*parameters, activation, flat["apply_b_dec_to_input"], precision)

    def _some(self, tables: list[pd.DataFrame], what: str) -> list[pd.DataFrame]:
        if not tables:
            raise UserError(f"{self.folder}: no {what} yet; `sae run` goes on with it")
        return tables


def load(folder: str | Path) -> Results:
    """Open a run's folder. Raises UserError where there is no run."""
    return Results(folder)

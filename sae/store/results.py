"""The results of a run, read from its folder. `report.notebook.Results`, which `sae.load` gives, adds the figures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pandas as pd

from sae.core.definitions import unflatten, written_in
from sae.core.files import DamagedError, expanded
from sae.core.model import Sae, from_parameters
from sae.core.text import ranges
from sae.core.types import UserError
from sae.data.source import Examples, Source
from sae.engine.loading import Loaded, change, fingerprint, load
from sae.experiment import Experiment
from sae.store import schema, storage
from sae.store.storage import DEFINITION, CohortFiles
from sae.study import arms, claims, figures
from sae.study.answers import Answer
from sae.study.figures import Figure
from sae.study.measures import Measure


class ChangedError(UserError):
    """The data of a run are not those that it was trained on."""


class Results:
    """The results of a run, read from its folder, finished or not."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = expanded(folder)
        path = self.folder / DEFINITION
        if not path.exists():
            raise UserError(f"{self.folder}: no {DEFINITION} there, so no run; allowed: a folder that `sae run` wrote")
        self.definition = schema.read(path)
        self.cohorts = [CohortFiles(self.folder, i) for i in range(len(self.definition["cohorts"]))]

    def __repr__(self) -> str:
        n = len(self.definition["members"])
        return f"<Results of {self.definition['name']!r}, {n} members, {self.status}: {self.folder}>"

    @property
    def finished(self) -> bool:
        """Whether every member is trained and evaluated."""
        return all(cohort.finished for cohort in self.cohorts)

    @property
    def status(self) -> str:
        """ "new", "running", "interrupted" (by a signal) or "finished". A killed process (-9) leaves "running"."""
        found = [cohort.state.get("status", "new") for cohort in self.cohorts]
        return next((s for s in ("running", "interrupted") if s in found), "finished" if self.finished else "new")

    @property
    def members(self) -> pd.DataFrame:
        """A row per finished member.

        The columns are the hyper-parameters by dotted name, `member`, `cohort`, `status`, `eval/...`, and once the
        sweep's measures have been asked `analysis/...`. `attrs["meanings"]` says in a line what each of the last is.
        """
        tables = [cohort.members() for cohort in self.cohorts if cohort.finished]
        members = storage.join_members(self._some(tables, "finished member"))
        found = storage.read_analysis(self.folder, self.cohorts)
        members = members.join(found, on="member")
        asked = found.attrs["asked"].values()
        members.attrs = {"meanings": {name: line for columns in asked for name, line in columns.items()}}
        if len(others := self.others):
            members.attrs["others"] = others.to_dict("index")
        return members

    @property
    def others(self) -> pd.DataFrame:
        """A row of `eval/...` for each of the sweep's `others`, by its path.

        Empty where it has none, or where their folder is damaged: they are evaluated anew when the run is carried out.
        """
        folder = self.folder / storage.OTHERS
        try:
            table = Results(folder).members if (folder / DEFINITION).is_file() else pd.DataFrame()
        except UserError:
            table = pd.DataFrame()
        if "autoencoder" not in table:
            return pd.DataFrame()
        table = table[table["status"] == "finished"].set_index("autoencoder")
        return table[[name for name in table if name.startswith("eval/")]]

    @property
    def everyone(self) -> pd.DataFrame:
        """A row per member of the sweep, as in `members`; members without results have status "missing", no numbers."""
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
        """The measures, each as its `repr`, whose columns are in the members table."""
        return tuple(storage.read_analysis(self.folder, self.cohorts).attrs["asked"])

    def keep(self, measure: Measure, found: pd.DataFrame) -> None:
        """Add a measure's columns to the members table: a row per member, indexed by its number."""
        storage.write_analysis(self.folder, self.cohorts, repr(measure), found, measure.columns)

    def mend(self, say: Callable[[str], object]) -> None:
        """Delete a damaged analysis.parquet, after a line that says so: its measures will be asked again."""
        try:
            storage.read_analysis(self.folder, self.cohorts)
        except DamagedError as error:
            if not (path := self.folder / storage.ANALYSIS).is_file():
                raise  # it is not ours
            say(str(error))
            path.unlink()

    def source(self, member: int) -> Source:
        """The definition of a member's data.

        Raises UserError for a member that the run does not have, and for a user's own class that is not defined here.
        """
        if member not in range(n := len(self.definition["members"])):
            raise UserError(f"{self.folder}: got member {member}, allowed: {ranges(range(n))}")
        flat = {n: tuple(v) if isinstance(v, list) else v for n, v in self.definition["members"][member].items()}
        source = unflatten(Experiment, "data", flat, self.definition.get("own"))
        beside = self.definition.get("beside")
        return written_in(Path(beside), source) if beside else source

    def data(self, member: int) -> Examples:
        """The data that a member was trained on, loaded: `data.train[:]` and `data.held_out[:]` are raw rows.

        Raises UserError where they cannot be loaded, and ChangedError where they are others than then.
        """
        source, loaded = self.source(member), {}
        self.check_data(member, source, loaded)
        return loaded.get(source) or load(source)

    def check_data(self, member: int, source: Source, loaded: Loaded) -> None:
        """Check that a member's source has the data that it was trained on. Raises ChangedError, and UserError.

        `loaded` gets the data where the check takes loading them. A run that is older than the fingerprints of data, or
        was pulled from W&B, says nothing of them.
        """
        flat = [
            {n: v for n, v in m.items() if n == "data" or n.startswith("data.")} for m in self.definition["members"]
        ]
        for entry in self.definition.get("data", []):
            if flat[entry["member"]] == flat[member]:
                if difference := change(entry["fingerprint"], fingerprint(source, loaded)):
                    path = flat[member].get("data.path")
                    place = " and ".join(path) if isinstance(path, list) else path or flat[member]["data"]
                    raise ChangedError(
                        f"{self.folder}: the data have changed since it began: {place}: {difference}; "
                        "--fresh moves the run aside and starts again, --out DIR keeps both"
                    )

    @property
    def answer(self) -> Answer | None:
        """The sweep's answer: how to read its question off the members table. None where it has none."""
        return figures.read_answer(answer) if (answer := self.definition.get("answer")) else None

    @property
    def claims(self) -> list[dict[str, Any]]:
        """The sweep's claims as they were decided, those of claims.json; [] where none are. Raises DamagedError."""
        return claims.read(self.folder)

    @property
    def figures(self) -> tuple[Figure, ...]:
        """The figures that the sweep names, or the default ones where it names none."""
        if named := self.definition.get("figures"):
            return tuple(figures.read(figure) for figure in named)
        known = self.knows_true_features
        return figures.default_figures(self.definition["members"], self.arms, self.answer, true_features=known)

    @property
    def arms(self) -> tuple[str, ...]:
        """The dotted names that trade sparsity for error: a sweep along one is an arm of a frontier."""
        return arms.recorded(self.definition)

    @property
    def knows_true_features(self) -> bool:
        """Whether every finished member was compared with the true features of its data."""
        tables = [cohort.members() for cohort in self.cohorts if cohort.finished]
        return bool(tables) and all("eval/mmcs" in table for table in tables)

    def steps(self, member: int) -> tuple[int, ...]:
        """The steps after which a member's weights are kept (`--keep-every`), and the last one once it is finished."""
        cohort = self._cohort(member)
        last = [self.definition["members"][member]["n_steps"]] if cohort.finished and cohort.has_weights else []
        return tuple(sorted({*cohort.kept, *last}))

    def sae(self, member: int, step: int | None = None) -> Sae:
        """The trained autoencoder of a member: it takes raw rows of its source and gives raw reconstructions.

        A transcoder takes raw inputs and gives raw targets; a crosscoder takes and gives its sources side by side.

        With a step, as it was after that step, where it was kept (`steps`). `model.on_examples` makes one that takes
        normalized examples instead. Raises UserError if there is none, or if its file is damaged.
        """
        finished = [m for c in self.cohorts if c.finished for m in self.definition["cohorts"][c.index]]
        if step is None and member not in finished:
            raise UserError(
                f"{self.folder}: got member {member}, allowed: those that are finished: {ranges(finished) or 'none'}"
            )
        cohort = self._cohort(member)
        if step is not None and step not in self.steps(member):
            kept = ", ".join(map(str, self.steps(member))) or "none; `sae run --keep-every N` keeps some"
            raise UserError(f"{self.folder}: member {member}: got step {step}, allowed: those that are kept: {kept}")
        weights, normalization, parts = cohort.weights(member, step if step in cohort.kept else None)
        flat = self.definition["members"][member]
        parameters = {name: jnp.asarray(value) for name, value in weights.items()}
        activation = unflatten(Experiment, "activation", flat, self.definition.get("own"))
        # a folder older than `precision` has no such name
        precision = flat.get("precision", "float32")
        return from_parameters(parameters, activation, flat["apply_b_dec_to_input"], precision, normalization, parts)

    def _cohort(self, member: int) -> CohortFiles:
        """The files of the cohort that a member belongs to. Raises UserError."""
        for cohort, members in zip(self.cohorts, self.definition["cohorts"], strict=True):
            if member in members:
                return cohort
        raise UserError(f"{self.folder}: got member {member}, allowed: 0 to {len(self.definition['members']) - 1}")

    def _some(self, tables: list[pd.DataFrame], what: str) -> list[pd.DataFrame]:
        if not tables:
            raise UserError(f"{self.folder}: no {what} yet; `sae run` goes on with it")
        return tables

"""Upload what W&B lacks of a run, and check that it arrived: `sae sync DIR`.

The run's own tables are the record. W&B's server must have what they have: every row of a member's history once, its
last step, its status and its held-out numbers. If the server knows nothing of a member that was recorded offline, the
offline run is uploaded as it is. The rest is made from the tables, by the process that also uploads while a sweep
trains; it sends no row that the server has. So nothing is sent twice, a second call finds everything done, and a
stopped call can be repeated.
"""

import contextlib
import dataclasses
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sae.core import console
from sae.core.files import expanded
from sae.core.text import count
from sae.core.types import UserError
from sae.store import folder as folders
from sae.store.results import Results
from sae.store.storage import CohortFiles
from sae.study.sweep import member_names
from sae.wandb import settings, sink
from sae.wandb.client import Client, Trial
from sae.wandb.server import Server, connect

COUNT_SECONDS = 12.0  # until the server's answers include what it was sent; mostly 2 to 4 s
UPLOAD_SECONDS, RUN_SECONDS = 120.0, 5.0  # time to upload: for all runs together, and more for each run
MOST_NAMED = 5  # most runs named that did not arrive


@dataclasses.dataclass(frozen=True)
class Options:
    """Where in W&B to upload to."""

    entity: str | None = None
    """The W&B entity, a person or a team; by default the one of the API key."""
    project: str | None = None
    """The W&B project; by default the one of the run."""


@dataclasses.dataclass(frozen=True)
class Expected:
    """What the server must have of one W&B run."""

    run_id: str
    rows: int = 0
    step: int = 0  # step of the last row
    summary: dict[str, Any] = dataclasses.field(default_factory=dict)
    finished: bool = True

    def missing(self, run: Any | None) -> str:
        """What the server lacks, in words; "" for nothing."""
        if run is None:
            return "is not there"
        rows, last = run.historyLineCount or 0, (run.historyKeys or {}).get("lastStep", -1)
        if not self.finished and rows >= self.rows:
            return ""  # the server may have rows that the tables of a killed run lack, and will get the same again
        if rows > self.rows:
            return f"has {rows} rows where the tables have {self.rows}: delete it in W&B, then repeat"
        if rows < self.rows:
            gap = "; it has the last one, so delete it in W&B, then repeat" if last >= self.step else ""
            return f"has {rows} of {self.rows} rows{gap}"
        if last != self.step:
            return f"ends at step {last}, not {self.step}"
        found = run.summary_metrics
        for name, value in self.summary.items():
            if not _same(value, found.get(name)):
                return f"has {name} {found.get(name)!r}, not {value!r}"
        return "" if run.state == "finished" or not self.finished else f"is {run.state}, not finished"


def place(results: Results, entity: str | None, project: str | None) -> tuple[str | None, str]:
    """(entity, project) in W&B of a run's folder: those asked for, else those that the run noted. Raises UserError."""
    noted = sink.noted(results.folder)
    project = project or noted.get("project") or os.environ.get("WANDB_PROJECT") or "sparsity-lab"
    entity = entity or noted.get("entity")
    settings.check_place(project, entity)
    return entity, project


def sync(folder: Path, options: Options, say: Callable[[str], None] = console.say) -> bool:
    """Upload a run's folder to W&B -> whether all of it arrived. Raises UserError."""
    results = Results(folder)
    if "pulled" in results.definition:
        raise UserError(f"{folder} was pulled from W&B, so there is nothing to upload")
    if "token" not in results.definition:
        raise UserError(f"{folder}: its definition.json has no token, by which W&B knows its runs")
    server = connect(*place(results, options.entity, options.project), write=True)
    with contextlib.ExitStack() as stack:
        free, busy = _lock(results.cohorts, stack, say)
        upload = _Upload(results, server, free)
        if not upload.expected and not busy:
            say(f"{folder}: nothing is trained yet, so there is nothing to upload")
            return True
        missing = upload.missing()
        before = len(missing)
        if missing and (offline := upload.offline(missing)):
            say(f"uploading {count(len(offline), 'offline run')} to {server.path}")
            upload.send_offline(offline)
            missing = upload.missing(wait=True)
        if missing:
            say(f"uploading {count(len(missing), 'run')} from the tables to {server.path}")
            upload.send_tables(missing)
            missing = upload.missing(wait=True)
    n = len(upload.expected)
    already = f", {n - before} were there already" if before < n else ""
    say(f"{server.path}: {n - len(missing)} of {count(n, 'run')} arrived{already}")
    for key in list(missing)[:MOST_NAMED]:
        say(f"{upload.expected[key].run_id} {missing[key]}")
    if len(missing) > MOST_NAMED:
        say(f"and {len(missing) - MOST_NAMED} more did not arrive")
    if lost := {key: reason for key, reason in upload.lost.items() if key in missing}:
        say(f"{next(iter(lost.values()))}; more in {upload.log}")
    return not missing and not busy


def _lock(
    cohorts: Sequence[CohortFiles], stack: contextlib.ExitStack, say: Callable[[str], None]
) -> tuple[list[CohortFiles], bool]:
    """Lock the cohorts that have a folder -> (cohorts that are free, whether other processes work on some)."""
    free, busy = [], False
    for cohort in cohorts:
        if not cohort.path.exists():
            continue
        try:
            stack.enter_context(folders.lock(cohort.path))
        except UserError as error:
            busy = True
            say(f"left out: {str(error).split(';')[0]}")
            continue
        free.append(cohort)
    return free, busy


class _Upload:
    """The W&B runs of a folder. `expected` is {member or "sweep": what the server must have of its run}."""

    def __init__(self, results: Results, server: Server, cohorts: Sequence[CohortFiles]) -> None:
        self.results, self.server = results, server
        self.token = results.definition["token"]
        noted = sink.noted(results.folder)
        self.trial = Trial("", noted["run_id"], results.definition["name"]) if "run_id" in noted else None
        self.artifacts = bool(noted.get("artifacts"))
        self.folder = expanded(os.environ.get("WANDB_DIR") or results.folder) / "wandb"
        self.log = self.folder / "wandb-process.log"
        self.lost: dict[int | str, str] = {}
        self.histories: dict[int, pd.DataFrame] = {}
        self.members: dict[int, pd.DataFrame | None] = {}
        self.cohorts: list[CohortFiles] = []
        self.expected: dict[int | str, Expected] = {}
        for cohort in cohorts:
            if (history := cohort.history()) is None:
                continue
            table = cohort.members().set_index("member") if cohort.finished else None
            self.cohorts.append(cohort)
            self.histories[cohort.index], self.members[cohort.index] = history, table
            for member in sorted(history["member"].unique().tolist()):
                self.expected[member] = self._of_member(member, history[history["member"] == member], table)
        if sink.has_sweep_run(results, self.trial):
            digest = {"digest": sink.digest(results)}
            self.expected["sweep"] = Expected(f"{self.token}-sweep", summary=digest)

    def _of_member(self, member: int, rows: pd.DataFrame, table: pd.DataFrame | None) -> Expected:
        run_id, last = self.trial.run_id if self.trial else f"{self.token}-{member:04d}", int(rows["step"].max())
        if table is None:
            return Expected(run_id, len(rows), last, finished=False)
        numbers = [name for name in table if name.startswith("eval/")]
        summary = {"status": table.at[member, "status"]} | {name: table.at[member, name] for name in numbers}
        return Expected(run_id, len(rows) + 1, last + 1, summary)  # one row more, that of the histogram

    def missing(self, wait: bool = False) -> dict[int | str, str]:
        """{member: what the server lacks}. With `wait`, ask until it lacks nothing or has had time to count."""
        ids = {self.trial.run_id} if self.trial else None
        name = {"$in": sorted(ids)} if ids else {"$regex": f"^{self.token}-"}
        deadline = time.monotonic() + COUNT_SECONDS
        while True:
            found = {run.id: run for run in self.server.runs({"name": name})}
            missing = {}
            for key, expected in self.expected.items():
                if key == "sweep":
                    lacks = self._lacks_sweep(expected, found.get(expected.run_id))
                else:
                    # a run that began online and went on offline has a second id
                    lacks = expected.missing(found.get(expected.run_id))
                    if lacks and (other := found.get(f"{expected.run_id}-offline")):
                        lacks = "" if not expected.missing(other) else lacks
                if lacks:
                    missing[key] = lacks
            if not missing or not wait or time.monotonic() > deadline:
                self.known = set(found)
                return missing
            time.sleep(1)

    def _lacks_sweep(self, expected: Expected, run: Any | None) -> str:
        if run is None:
            return "is not there"
        same = _same(expected.summary["digest"], run.summary_metrics.get("digest"))
        return "" if same and run.state == "finished" else "is not of these results"

    def offline(self, missing: Iterable[int | str]) -> dict[int | str, Path]:
        """{member: its offline run} for the members of which the server knows nothing."""
        found = {}
        for key in missing:
            run_id = self.expected[key].run_id
            if run_id not in self.known and (paths := sorted(self.folder.glob(f"offline-run-*-{run_id}"))):
                found[key] = paths[-1]
        return found

    def send_offline(self, offline: dict[int | str, Path]) -> None:
        """Upload offline runs as they are. The server will say whether that worked, not `wandb sync`."""
        # -P: where the working directory is a run's folder, its `wandb` is no package
        command = [sys.executable, "-P", "-m", "wandb", "sync", "--entity", self.server.entity]
        command += ["--project", self.server.project, "--include-synced"]
        env = {name: value for name, value in os.environ.items() if name not in ("WANDB_MODE", "WANDB_RUN_ID")}
        with open(self.log, "ab") as log:
            job = subprocess.Popen(
                [*command, *map(str, offline.values())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                start_new_session=True,
            )
            try:
                job.wait(UPLOAD_SECONDS + RUN_SECONDS * len(offline))
            except subprocess.TimeoutExpired:
                pass
            finally:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(job.pid, signal.SIGKILL)
                job.wait()

    def send_tables(self, missing: Collection[int | str]) -> None:
        """Send W&B what it lacks, row by row, from the tables."""
        client = Client(
            self.results.folder,
            mode="online",
            project=self.server.project,
            group=self.results.definition["name"],
            token=self.token,
            say=lambda line: None,  # the server will say what is lacking
            trial=self.trial,
            entity=self.server.entity,
            cohorts=[cohort.index for cohort in self.cohorts],
            fall_back=False,
        )
        try:
            for cohort in self.cohorts:
                members = [m for m in self.results.definition["cohorts"][cohort.index] if m in missing]
                if members:
                    self._send_cohort(client, cohort, members)
            if "sweep" in missing:
                sink.log_sweep(client, self.results, self.artifacts)
        finally:
            client.close(UPLOAD_SECONDS + RUN_SECONDS * len(missing))
            self.lost = client.lost

    def _send_cohort(self, client: Client, cohort: CohortFiles, members: list[int]) -> None:
        flats = self.results.definition["members"]
        names = member_names(flats, self.results.definition["name"])
        sink.begin(
            client, cohort.index, members, [flats[m] for m in members], [names[m] for m in members], self.results.arms
        )
        history, table = self.histories[cohort.index], self.members[cohort.index]
        values = [name for name in history if name not in ("member", "step", "examples")]
        for step, rows in history[history["member"].isin(members)].groupby("step"):
            rows = rows.set_index("member").loc[members]
            client.record(members, step, rows["examples"].iloc[0], {name: rows[name].to_numpy() for name in values})
        if table is not None:
            finished, rates = table.loc[members], cohort.firing_rates()
            W_dec = np.stack([cohort.weights(m)[0]["W_dec"] for m in members])
            numbers = {str(n): finished[n].to_numpy() for n in finished if str(n).startswith("eval/")}
            shape = cohort.state.get("image_shape")
            sink.end(
                client,
                members,
                list(finished["status"]),
                numbers | sink.at_target(numbers, [flats[m] for m in members]),
                np.stack([rates[m] for m in members]),
                W_dec,
                tuple(shape) if shape else None,
            )


def _same(ours: Any, theirs: Any) -> bool:
    """Whether W&B holds our value. Its summaries have no NaN or infinity, and its whole numbers may be floats."""
    if isinstance(ours, float | np.floating) and not math.isfinite(ours):
        return theirs is None or isinstance(theirs, str) or not math.isfinite(theirs)
    return ours == theirs

"""The W&B sink: a run per member, grouped and named as in the tables, and a run of the sweep itself."""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sae.core.definitions import flatten
from sae.core.files import DamagedError, read_checked, sha256, write_checked
from sae.core.metrics import HISTOGRAM_EDGES, firing_rate_histogram
from sae.core.shapes import fault
from sae.engine.records import Outcome, Record, Start
from sae.report.images import dictionary_grid
from sae.store.results import Results
from sae.store.storage import DEFINITION, MEMBERS, WEIGHTS
from sae.study import claims
from sae.study.arms import marked
from sae.study.figures import Heatmap
from sae.study.frontiers import of_arm
from sae.wandb.client import Client, Pictures, Trial
from sae.wandb.settings import Mode, is_id

PLACE = "wandb.json"  # the file in a run's folder that says where in W&B its runs are
SWEEP_CONFIG = ("name", "question", "answer", "figures", "arms", "packages", "python", "device", "git_commit")
AT_TARGET = "sweep/fvu_at_l0"  # a summary value: the FVU where a control has a target, with a fine for a miss
MOST_TILES = 400  # most latents in a picture of a dictionary in W&B


def noted(folder: Path) -> dict[str, Any]:
    """What a run noted of its place in W&B: entity, project, artifacts, an agent's run_id; empty where it did not."""
    with contextlib.suppress(OSError, DamagedError):
        found = read_checked(folder / PLACE)
        wanted = {"entity": str | None, "project": str, "artifacts": bool, "run_id": str}
        return {} if fault(found, wanted, "") or not is_id(found.get("run_id", "none")) else found
    return {}


class Wandb:
    """Sends every record to the W&B process and never waits for it (see `client.py`)."""

    def __init__(
        self,
        folder: Path,
        *,
        mode: Mode,
        project: str,
        group: str,
        token: str,
        say: Callable[[str], None],
        trial: Trial | None = None,
        artifacts: bool = False,
        cohorts: Sequence[int] = (),
    ) -> None:
        self.client = Client(
            folder, mode=mode, project=project, group=group, token=token, say=say, trial=trial, cohorts=cohorts
        )
        self.trial, self.artifacts, self.say = trial, artifacts, say
        self.image_shape: tuple[int, ...] | None = None
        with contextlib.suppress(OSError):  # results matter more than W&B does
            place = {"entity": self.client.entity, "project": self.client.project, "artifacts": artifacts}
            write_checked(folder / PLACE, place | ({"run_id": trial.run_id} if trial else {}))

    def start(self, start: Start) -> None:
        """Begin a run per member, with its configuration under dotted names."""
        self.image_shape = start.image_shape
        configs = [flatten(experiment) for experiment in start.cohort.experiments]
        names = [self.trial.name] if self.trial else start.names
        begin(self.client, start.index, start.cohort.members, configs, names, marked(start.cohort.experiments))
        # wandb may have lost the last rows of a stopped process. The W&B process gets all rows again, and sends none
        # twice.
        for record in start.history:
            self.record(record)

    def record(self, record: Record) -> None:
        """Log a chunk."""
        images = {}
        if record.dictionaries is not None and self.image_shape is not None:
            images["train/dictionary"] = pictures(self.image_shape, *record.dictionaries)
        self.client.record(record.cohort.members, record.step, record.examples, record.values, images)

    def finish(self, outcome: Outcome) -> None:
        """Write the held-out numbers as summary values, a histogram of firing rates, and pictures of dictionaries."""
        W_dec, members = np.asarray(outcome.saes.W_dec[...]), outcome.cohort.members
        values = dict(outcome.values) | at_target(outcome.values, list(map(flatten, outcome.cohort.experiments)))
        end(self.client, members, outcome.status, values, outcome.firing_rates, W_dec, self.image_shape)

    def sweep(self, results: Results) -> None:
        """Write the run of a finished sweep: its members, figures and claims, and its weights where asked."""
        if has_sweep_run(results, self.trial):
            try:
                log_sweep(self.client, results, self.artifacts)
            except Exception as error:  # the sweep is finished, whatever its figures and claims raise
                self.say(f"W&B lacks the run of the sweep itself: {type(error).__name__}: {error}")

    def close(self) -> None:
        """Let W&B finish, for a bounded time."""
        self.client.close()


def begin(
    client: Client,
    cohort: int,
    members: Sequence[int],
    configs: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    arms: Sequence[str],
) -> None:
    """Start the runs of a cohort's members. A config is a flattened experiment, `arms` names its marked numbers."""
    own = [{**config, "member": member, "cohort": cohort} for member, config in zip(members, configs, strict=True)]
    client.start_cohort(members, own, names, [tags(config, arms) for config in configs])


def end(
    client: Client,
    members: Sequence[int],
    status: Sequence[str],
    values: Mapping[str, Any],
    firing_rates: np.ndarray,
    W_dec: np.ndarray,
    image_shape: tuple[int, ...] | None,
) -> None:
    """Finish the runs of a cohort's members, with firing_rates [member, d_sae] and W_dec [member, d_sae, d_in]."""
    counts = [firing_rate_histogram(rates) for rates in firing_rates]
    histograms = {"eval/log10_firing_rate": (HISTOGRAM_EDGES, counts)}
    images = {"eval/dictionary": pictures(image_shape, W_dec, firing_rates=firing_rates)} if image_shape else {}
    client.finish_cohort(members, status, values, histograms, images)


def at_target(values: Mapping[str, Any], configs: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """{AT_TARGET: [member]} for the held-out numbers of members with a target L0, flattened; {} for others.

    The value is FVU + |log(L0 / target)|. Along a frontier FVU changes far less than the fine does, so no run gains by
    missing its target.
    """
    if not all("control.l0" in config for config in configs):
        return {}
    targets = np.array([config["control.l0"] for config in configs])
    missed = np.log(np.maximum(np.asarray(values["eval/l0"], float), 1e-2) / targets)
    return {AT_TARGET: np.asarray(values["eval/fvu"], float) + np.abs(missed)}


def log_sweep(client: Client, results: Results, artifacts: bool = False) -> None:
    """Write the run of a finished sweep."""
    definition, folder, members = results.definition, results.folder, results.members
    config = {name: definition.get(name) for name in SWEEP_CONFIG}
    every = [tags(member, results.arms) for member in definition["members"]]
    summary = {
        "members": len(members),
        "diverged": int((members["status"] == "diverged").sum()),
        "seconds": sum(cohort.state.get("seconds", 0.0) for cohort in results.cohorts),
        "digest": digest(results),
    }
    files = [DEFINITION, MEMBERS, *(f"cohorts/{c.path.name}/{WEIGHTS}" for c in results.cohorts)]
    client.sweep(
        config,
        list(dict.fromkeys(tag for of_member in every for tag in of_member)),
        summary,
        tables(results),
        {f"figures/{path.stem}": path for path in figures(folder)},
        {name: folder / name for name in files} if artifacts else None,
    )


def has_sweep_run(results: Results, trial: Trial | None) -> bool:
    """Whether a sweep gets a run of its own: it is finished, has several members, and no agent started it."""
    return trial is None and results.finished and len(results.definition["members"]) > 1


def tables(results: Results) -> dict[str, pd.DataFrame]:
    """The tables of a sweep's run: its members, heatmaps and claims."""
    members = results.members
    found = {"results": members}
    for figure in results.figures:
        if isinstance(figure, Heatmap):
            found |= {heatmap_key(figure, arm): pivot(members, figure, arm) for arm in figure.along}
    if decided := claims.read(results.folder):
        found["claims"] = claims.table(decided)
    return found


def heatmap_key(heatmap: Heatmap, arm: str) -> str:
    """The name of a heatmap's table in W&B."""
    return f"heatmap/{heatmap.metric.rpartition('/')[2]}/{arm}"


def pivot(members: pd.DataFrame, heatmap: Heatmap, arm: str) -> pd.DataFrame:
    """A heatmap as a table of means: a row per value of its `y`, a column per value of the arm's coefficient."""
    chosen = of_arm(members[members["status"] == "finished"], arm, heatmap.along)
    table = chosen.pivot_table(index=heatmap.y, columns=arm, values=heatmap.metric, aggfunc="mean")
    table.columns = [f"{arm} {value:g}" for value in table.columns]
    return table.reset_index()


def figures(folder: Path) -> list[Path]:
    """The pictures in a run's folder."""
    return [*sorted(folder.glob("*.png")), *sorted((folder / "report").glob("*.png"))]


def digest(results: Results) -> str:
    """A digest of what a sweep's run shows. It changes with the members, the figures and the verdicts."""
    members = [cohort.state["checksums"][MEMBERS][:8] for cohort in results.cohorts]
    verdicts = results.folder / claims.NAME
    more = [*figures(results.folder), *([verdicts] if verdicts.exists() else [])]
    return "-".join([*members, *(sha256(path)[:8] for path in more)])


def tags(config: Mapping[str, Any], arms: Sequence[str]) -> list[str]:
    """Data, activation, and the coefficients that are not 0 in a flattened experiment: ["digits", "relu", "l1"].

    Where none of the `arms` is the experiment's, the kind of penalty stands for the coefficients.
    """
    own = [name for name in arms if name in config]
    coefficients = [name.rpartition(".")[2] for name in own if config[name]]
    return [str(config["data"]), str(config["activation"]), *(coefficients if own else [str(config["penalty"])])]


def pictures(
    image_shape: tuple[int, ...],
    W_dec: np.ndarray,
    dead: np.ndarray | None = None,
    firing_rates: np.ndarray | None = None,
) -> Pictures:
    """A function that draws the dictionaries of members: W_dec [member, d_sae, d_in], the others [member, d_sae]."""
    draw = functools.partial(dictionary_grid, image_shape=image_shape, most=MOST_TILES)
    own = lambda array, i: None if array is None else array[i]
    one = lambda i: draw(W_dec[i], firing_rates=own(firing_rates, i), dead=own(dead, i))
    return lambda: np.stack([one(i) for i in range(len(W_dec))])

"""Tables from W&B: `sae pull ENTITY/PROJECT [--group G]` makes a run's folder from the runs there.

`sae.load` and `sae report` read the folder like one that was trained here; it has no weights. Runs are read through
W&B's public API, whoever in the team made them. Runs that `sae run` did not make come along as far as their names are
alike: their config as hyper-parameters, the numbers of their history as curves, `eval/...` in their summary as results.
"""

import dataclasses
import functools
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_type_hints

import pandas as pd

from sae.core import console
from sae.core.definitions import choices, fields, kind
from sae.core.files import write_json
from sae.core.text import count, nearest
from sae.core.types import UserError
from sae.experiment import Experiment
from sae.store import folder as folders
from sae.store import storage
from sae.store.results import Results
from sae.store.storage import DEFINITION, CohortFiles
from sae.store.tables import plain
from sae.wandb import sink
from sae.wandb.server import Server, connect

AT_ONCE = 8  # histories fetched side by side
OWN = ("member", "cohort")  # names in a config that are not hyper-parameters
UNKNOWN = {
    "question": "",
    "packages": {},
    "python": "unknown",
    "device": {"kind": "unknown", "platform": "unknown", "count": 0},
    "git_commit": None,
}  # what a definition says unless the sweep's own run says more


@dataclasses.dataclass(frozen=True)
class Options:
    """What to read and where to write it."""

    group: str | None = None
    """Read only this group, which `sae run` names after the sweep; by default the whole project."""
    out: Path | None = None
    """The folder to write; by default runs/<group or project>-pulled."""


def pull(path: str, options: Options, say: Callable[[str], None] = console.say) -> Results:
    """Write a run's folder from W&B's runs, in place of an older pulled one. Raises UserError."""
    entity, slash, project = path.strip("/").partition("/")
    if not (entity and project) or "/" in project:
        raise UserError(f"pull: got {path!r}, allowed: ENTITY/PROJECT, as in the address of the W&B page")
    name = re.sub(r"[^\w .,=+-]", "_", options.group or project)
    out = (options.out or Path("runs") / f"{name}-pulled").expanduser()
    _refuse(out)
    server = connect(entity, project)
    runs, sweep = _find(server, options.group)
    say(f"reading {count(len(runs), 'run')} of {server.path}")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        histories = list(pool.map(server.history, runs))

    several = len({run.group for run in runs}) > 1
    members = [_hyper(run) | ({"group": run.group} if several else {}) for run in runs]
    tables = [_history(rows, i, member) for i, (rows, member) in enumerate(zip(histories, members, strict=True))]
    cohorts, now = _cohorts(runs), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    new = out.with_name(out.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    folders.make(new)
    known = {
        key: value
        for key, value in (sweep.config if sweep else {}).items()
        if key in sink.SWEEP_CONFIG and key != "name"
    }
    write_json(
        new / DEFINITION,
        UNKNOWN
        | {"name": options.group or project, "token": "pulled", "cohorts": cohorts, "members": members}
        | known
        | {
            "command": ["sae", "pull", path, *(["--group", options.group] if options.group else [])],
            "host": f"W&B at {server.host}",
            "started": min(str(run.createdAt) for run in runs),
            "pulled": {"from": server.path, "group": options.group, "runs": [run.id for run in runs], "at": now},
        },
    )
    for index, numbers in enumerate(cohorts):
        _write(CohortFiles(new, index), numbers, runs, members, tables)
    results = Results(new)
    if any(cohort.finished for cohort in results.cohorts):
        storage.write_joined(new, results.cohorts)
    if out.exists():
        shutil.rmtree(out)
    new.rename(out)
    unfinished = sum(not _finished(run) for run in runs)
    say(f"{out}: {count(len(runs), 'member')}" + (f", {unfinished} of them not finished" if unfinished else ""))
    return Results(out)


def _refuse(out: Path) -> None:
    """Raises UserError where the folder holds something that was not pulled."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if (out / DEFINITION).exists() and "pulled" in Results(out).definition:
        return
    raise UserError(f"{out} holds something that was not pulled from W&B; use --out DIR with a new or empty folder")


def _find(server: Server, group: str | None) -> tuple[list[Any], Any | None]:
    """(runs in the order of their members, the sweep's own run if there is one). Raises UserError."""
    found = server.runs({"group": group} if group else {}, there=True)
    sweeps = [run for run in found if run.jobType == "sweep"]
    runs = [run for run in found if run.jobType != "sweep" and run.config]
    if not runs and group:
        groups = {run.group for run in server.runs({}) if run.group}
        raise UserError(f"{server.path} has no runs of group {group!r}; {nearest(group, sorted(groups) or ['none'])}")
    if not runs:
        raise UserError(f"{server.path} has no runs")
    order = lambda run: (str(run.group), _whole(run.config.get("member")), str(run.createdAt), run.id)
    return sorted(runs, key=order), sweeps[0] if len(sweeps) == 1 else None


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 10**9


def _hyper(run: Any) -> dict[str, Any]:
    """A run's config as hyper-parameters; what is nested gets dotted names."""
    flat = {"name": run.group or run.name}
    for name, value in run.config.items():
        flat |= _flat(name, value)
    return {name: flat[name] for name in sorted(flat, key=functools.partial(_place, flat)) if name not in OWN}


def _place(flat: Mapping[str, Any], name: str) -> tuple:
    """A sorting key, as W&B keeps no order: the name's place in an experiment's definition, unknown names last."""
    head, _, inner = name.partition(".")
    hints = get_type_hints(Experiment)
    if head not in hints:
        return (len(hints), name)
    known = {kind(choice): [field.name for field in fields(choice)] for choice in choices(hints[head])}
    names = known.get(str(flat.get(head)), [])
    return (list(hints).index(head), names.index(inner) if inner in names else len(names) if inner else -1, name)


def _flat(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {name: value}
    return {inner: v for key, below in value.items() for inner, v in _flat(f"{name}.{key}", below).items()}


def _number(value: Any) -> float | int | bool | None:
    """A number as W&B returns it; None for anything else."""
    words = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
    return words.get(value) if isinstance(value, str) else value if isinstance(value, bool | int | float) else None


def _history(rows: Sequence[Mapping[str, Any]], member: int, hyper: Mapping[str, Any]) -> pd.DataFrame:
    """A run's rows as a table of our history."""
    table = []
    for row in rows:
        numbers = {name: number for name, value in row.items() if (number := _number(value)) is not None}
        step = int(numbers.pop("train/step", numbers.get("_step", 0)))
        examples = numbers.pop("train/examples", step * (_number(hyper.get("batch_size")) or 0))
        numbers = {name: number for name, number in numbers.items() if not name.startswith(("_", "eval/"))}
        if numbers:
            table.append({"member": member, "step": step, "examples": int(examples), **numbers})
    return pd.DataFrame(table)


def _finished(run: Any) -> bool:
    return run.state == "finished"


def _cohorts(runs: Sequence[Any]) -> list[list[int]]:
    """Members by the cohort that trained them, with those of one cohort that are not finished apart."""
    keys = [(str(run.group), _whole(run.config.get("cohort")), not _finished(run)) for run in runs]
    return [[i for i, key in enumerate(keys) if key == wanted] for wanted in sorted(set(keys))]


def _write(
    files: CohortFiles,
    numbers: Sequence[int],
    runs: Sequence[Any],
    members: Sequence[dict[str, Any]],
    tables: Sequence[pd.DataFrame],
) -> None:
    """Write the folder of one cohort, given the numbers of its members."""
    history = storage.join_history([tables[i] for i in numbers])
    files.mark(members=list(numbers), status="running", step=int(history["step"].max()) if len(history) else 0)
    if len(history):
        files.write_history(history)
    if not _finished(runs[numbers[0]]):
        return
    hyper = pd.DataFrame([plain(members[i]) for i in numbers], dtype=object)
    values = pd.DataFrame([_evaluated(runs[i]) for i in numbers], index=range(len(numbers)))
    status = [str(runs[i].summary_metrics.get("status", "finished")) for i in numbers]
    own = pd.DataFrame({"member": list(numbers), "cohort": files.index, "status": status})
    files.finish(storage.join_members([pd.concat([hyper, own, values], axis=1)]))


def _evaluated(run: Any) -> dict[str, float]:
    numbers = {name: _number(value) for name, value in run.summary_metrics.items() if name.startswith("eval/")}
    return {name: number for name, number in numbers.items() if number is not None}

"""Tables from W&B: `sae pull ENTITY/PROJECT [--group G]` makes a run's folder from the runs there.

`sae.load` and `sae report` read the folder like one that was trained here; it has no weights. Runs are read through
W&B's public API, whoever in the team made them. Runs that `sae run` did not make come along as far as their names are
alike: their config as hyper-parameters, the numbers of their history as curves, `eval/...` in their summary as results.
"""

import contextlib
import dataclasses
import functools
import json
import re
import secrets
import shutil
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_type_hints

import pandas as pd

from sae.core import console
from sae.core.definitions import choices, fields, kind
from sae.core.files import expanded, write_checked
from sae.core.shapes import fault
from sae.core.text import count, nearest
from sae.core.types import UserError
from sae.experiment import Experiment
from sae.store import folder as folders
from sae.store import schema, storage
from sae.store.results import Results
from sae.store.storage import DEFINITION, CohortFiles
from sae.store.tables import plain
from sae.wandb import settings, sink
from sae.wandb.server import Server, connect

FILES = ("definition.json", "members.parquet", "history.parquet", "analysis.parquet", "claims.json", "cohorts")
FILES += ("report.html", "report", ".lock")  # of a pulled folder: the new one has its own, or they are made again
AT_ONCE = 8  # histories fetched side by side
OWN = ("member", "cohort", "status")  # names in a config that are not hyper-parameters
MOST = 2**53  # a whole number that is larger is no count
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
    settings.check_place(project, entity)
    name = re.sub(r"[^\w .,=+-]", "_", options.group or project)
    out = expanded(options.out or Path("runs") / f"{name}-pulled")
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
    made = UNKNOWN | {"name": options.group or project, "token": "pulled", "cohorts": cohorts, "members": members}
    told = {name: value for name, value in (sweep.config if sweep else {}).items() if name in sink.SWEEP_CONFIG}
    odd = [name for name, value in told.items() if schema.unsound(made | {name: value})]
    if odd:
        say(f"left out, as it is not what a sweep's run has: {', '.join(odd)}")
    told = {name: value for name, value in told.items() if name not in ("name", *odd)}
    here = {
        "command": ["sae", "pull", path, *(["--group", options.group] if options.group else [])],
        "host": f"W&B at {server.host}",
        "started": min(str(run.createdAt) for run in runs),
        "pulled": {"from": server.path, "group": options.group, "runs": [run.id for run in runs], "at": now},
    }
    with _replacing(out) as new:
        write_checked(new / DEFINITION, made | told | here)
        for index, numbers in enumerate(cohorts):
            _write(CohortFiles(new, index), numbers, runs, members, tables)
        results = Results(new)
        if any(cohort.finished for cohort in results.cohorts):
            storage.write_joined(new, results.cohorts)
    unfinished = sum(not _finished(run) for run in runs)
    say(f"{out}: {count(len(runs), 'member')}" + (f", {unfinished} of them not finished" if unfinished else ""))
    return Results(out)


def _refuse(out: Path) -> None:
    """Raises UserError where the folder holds something that was not pulled."""
    if out.resolve() in (here := Path.cwd(), *here.parents):
        raise UserError(f"pull: got --out {out}, allowed: a folder that you are not in, as it is replaced")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if (out / DEFINITION).exists() and "pulled" in Results(out).definition:
        return
    raise UserError(f"{out} holds something that was not pulled from W&B; use --out DIR with a new or empty folder")


@contextlib.contextmanager
def _replacing(out: Path) -> Generator[Path]:
    """A new folder, which takes the place of another at the end. What somebody else put there comes along."""
    whole = out.resolve()
    new, old = (whole.with_name(f".{whole.name}.{secrets.token_hex(4)}") for _ in range(2))
    folders.make(new)
    try:
        yield new
        if whole.exists():
            whole.rename(old)
        new.rename(whole)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    if old.exists():
        for path in [path for path in old.iterdir() if path.name not in FILES]:
            path.rename(whole / path.name)
        shutil.rmtree(old)


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
    flat: dict[str, Any] = {}
    for name, value in run.config.items():
        flat |= _flat(name, value)
    kept = {name: _value(value) for name, value in flat.items()}
    # another program may mean something else by a name of ours
    kept = {name: value for name, value in kept.items() if not schema.misfit({name: value}, "")}
    kept = {"name": str(run.group or run.name)} | kept
    names = [name for name in kept if name not in OWN and not name.startswith(storage.NUMBERS)]
    return {name: kept[name] for name in sorted(names, key=functools.partial(_place, kept))}


def _value(value: Any) -> Any:
    """A value of a config as a definition can hold it. W&B's whole numbers may be floats."""
    if isinstance(value, float) and value.is_integer() and abs(value) < MOST:
        return int(value)
    return value if not fault(value, schema.Value, "") else json.dumps(value)


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


def _number(value: Any) -> float | int | None:
    """A number as W&B returns it; None for anything else."""
    words = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
    if isinstance(value, str):
        return words.get(value)
    if isinstance(value, int) and abs(value) < MOST:
        return int(value)
    with contextlib.suppress(OverflowError):
        return float(value) if isinstance(value, int | float) else None
    return None


def _count(value: float | int | None) -> int:
    """A number as a count; 0 where it is none."""
    return int(value) if value is not None and 0 <= value < MOST else 0


def _history(rows: Sequence[Mapping[str, Any]], member: int, hyper: Mapping[str, Any]) -> pd.DataFrame:
    """A run's rows as a table of our history."""
    table = []
    for row in rows:
        numbers = {name: number for name, value in row.items() if (number := _number(value)) is not None}
        step = _count(numbers.pop("train/step", numbers.get("_step", 0)))
        examples = _count(numbers.pop("train/examples", step * (_number(hyper.get("batch_size")) or 0)))
        own = {"member": member, "step": step, "examples": examples}
        numbers = {n: number for n, number in numbers.items() if n not in own and not n.startswith(("_", "eval/"))}
        if numbers:
            table.append(own | numbers)
    return pd.DataFrame(table or {name: pd.Series(dtype="int64") for name in ("member", "step", "examples")})


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
    files.write_history(history)
    if not _finished(runs[numbers[0]]):
        return
    hyper = pd.DataFrame([plain(members[i]) for i in numbers], dtype=object)
    values = pd.DataFrame([_evaluated(runs[i]) for i in numbers], index=range(len(numbers)))
    said = [runs[i].summary_metrics.get("status") for i in numbers]
    status = ["diverged" if word == "diverged" else "finished" for word in said]
    own = pd.DataFrame({"member": list(numbers), "cohort": files.index, "status": status})
    files.finish(storage.join_members([pd.concat([hyper, own, values], axis=1)]))


def _evaluated(run: Any) -> dict[str, float]:
    numbers = {name: _number(value) for name, value in run.summary_metrics.items() if name.startswith("eval/")}
    return {name: float(number) for name, number in numbers.items() if number is not None}

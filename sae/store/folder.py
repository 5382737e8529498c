"""A run's folder: which run it holds, which process works on it, and its definition.json."""

import contextlib
import errno
import fcntl
import importlib.metadata
import json
import os
import platform
import secrets
import subprocess
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from sae.core.definitions import flatten
from sae.core.files import LEFTOVER, Written, remove_leftovers, sha256, write_checked
from sae.core.types import UserError
from sae.data.source import Source
from sae.engine.loading import Loaded, fingerprint
from sae.experiment import complete, own_files
from sae.store.results import Results
from sae.store.storage import DEFINITION
from sae.study import arms, claims, figures
from sae.study.sweep import Sweep

LOCK = ".lock"
PACKAGES = ("sparsity-lab", "jax", "jaxlib", "flax", "optax", "numpy", "tensorflow-datasets", "wandb")


def older_run(folder: Path, sweep: Sweep) -> Results | None:
    """The run of this sweep in the folder, finished or not; None for a new or empty folder.

    Raises UserError if the folder holds something else.
    """
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; use --out DIR with a new or empty folder")
    if not (folder / DEFINITION).exists():
        if not _empty(folder):
            what = f"{folder} is not empty and holds no run (no {DEFINITION})"
            raise UserError(f"{what}; use --out DIR with a new or empty folder")
        return None
    older = Results(folder)
    if difference := _first_difference(older.definition["members"], plain(sweep)):
        raise UserError(
            f"{folder} holds a different definition: {difference}; use --out DIR, or --fresh to move it aside"
        )
    return older


def move_aside(folder: Path) -> Path | None:
    """Rename a folder that holds a run to the first free NAME.old-N -> its new path; None for a new or empty folder.

    Raises UserError if the folder holds something else, or if a process works on it.
    """
    if not folder.exists() or (folder.is_dir() and not (folder / DEFINITION).exists() and _empty(folder)):
        return None
    if not (folder / DEFINITION).exists():
        raise UserError(f"{folder} holds no run, so --fresh leaves it where it is; use --out DIR")
    folder = folder.resolve()
    with contextlib.ExitStack() as stack:
        for part in (folder, *sorted(path for path in (folder / "cohorts").glob("*") if path.is_dir())):
            stack.enter_context(lock(part))
        aside = next(p for i in range(1, 10**6) if not (p := folder.with_name(f"{folder.name}.old-{i}")).exists())
        return folder.rename(aside)


def _empty(folder: Path) -> bool:
    """Whether a folder holds nothing, or only what a process leaves that was killed before it had written anything."""
    return all(path.name == LOCK or LEFTOVER.fullmatch(path.name) for path in folder.iterdir())


def make(folder: Path) -> None:
    """Make the folder. Raises UserError if it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(f"{folder}: not writable ({error.strerror}); use --out DIR with a folder of your own") from None


@contextlib.contextmanager
def lock(folder: Path, wait: bool = False) -> Generator[None]:
    """Hold a run's or a cohort's folder for this process, which alone writes there; what a killed one left is removed.

    If another process holds it, either wait for that process, or raise UserError with its number and host. The system
    releases the lock when its process ends, however it ends, so a lock file left behind means nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a+", encoding="utf-8", opener=_follow_no_link) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(f"{folder} is in use by {holder}; wait for it, or use --out DIR") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        remove_leftovers(folder)
        yield


@contextlib.contextmanager
def held(folder: Path) -> Generator[bool]:
    """Hold a run's folder, as soon as no other process does -> whether it can be written to; else it is only read."""
    with contextlib.ExitStack() as stack:
        if writable := os.access(folder, os.W_OK):
            stack.enter_context(lock(folder, wait=True))
        yield writable


def _follow_no_link(path: str, flags: int) -> int:
    """A folder is data from anyone: the file that is written may be no link to another."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def fingerprints(sweep: Sweep, loaded: Loaded) -> list[dict[str, Any]]:
    """What tells the data of each source of a sweep from others, with the first member that trains on it."""
    first: dict[Source, int] = {}
    for i, member in enumerate(sweep.members):
        first.setdefault(member.data, i)
    return [{"member": i, "fingerprint": fingerprint(source, loaded)} for source, i in first.items()]


def describe(
    folder: Path,
    sweep: Sweep,
    cohorts: Sequence[Sequence[int]],
    data: Sequence[Mapping[str, Any]],
    question: str,
    command: Sequence[str],
) -> None:
    """Write definition.json for a new run. cohorts: the numbers of the members of each; data: as by `fingerprints`."""
    write_checked(folder / DEFINITION, _describe(sweep, cohorts, question, command) | {"data": list(data)})


def describe_again(results: Results, sweep: Sweep) -> None:
    """Put the sweep's answer, figures and arms in definition.json where they have changed: they decide no result."""
    if any(results.definition.get(name) != value for name, value in shown(sweep).items()):
        results.definition |= shown(sweep)
        with lock(results.folder, wait=True):
            write_checked(results.folder / DEFINITION, results.definition)


def file_sha256(command: Sequence[str]) -> str | None:
    """The SHA-256 of the definition file in a run's command, by which it is known again; None where it names none."""
    try:
        return sha256(Path(command[2]))
    except (IndexError, OSError):
        return None


def _first_difference(theirs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> str | None:
    """The first difference between the folder's members and the sweep's, in words."""
    for i, (old, new) in enumerate(zip(theirs, ours, strict=False)):
        old = complete(old)  # the folder may be older than a field
        for name in dict.fromkeys([*old, *new]):
            if old.get(name) != new.get(name) and repr(old.get(name)) != repr(new.get(name)):  # NaN != NaN
                return f"{name} of member {i} is {old.get(name)!r} in the folder and {new.get(name)!r} in the sweep"
    if len(theirs) != len(ours):
        return f"{len(theirs)} members in the folder and {len(ours)} in the sweep"
    return None


def _describe(sweep: Sweep, cohorts: Sequence[Sequence[int]], question: str, command: Sequence[str]) -> dict[str, Any]:
    """The contents of definition.json."""
    device = jax.devices()[0]
    return {
        "name": sweep.name,
        "question": question,
        "command": list(command),
        "file_sha256": file_sha256(command),
        "token": secrets.token_hex(4),  # makes the ids of its W&B runs unique
        "cohorts": [list(members) for members in cohorts],
        "members": plain(sweep),
        "beside": _definition_folder(sweep),
        "own": {name: file for member in sweep.members for name, file in own_files(member).items()},
        **shown(sweep),
        "claims": [claims.written(claim) for claim in sweep.claims],  # as they were before the run: never changed
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "device": {"kind": device.device_kind, "platform": device.platform, "count": jax.device_count()},
        "host": platform.node(),
        "git_commit": _git_commit(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _definition_folder(sweep: Sweep) -> str | None:
    """The folder in which relative paths of the data are looked for first; None where there are none."""
    fields = [value for member in sweep.members for value in flatten(member).values()]
    values = [one for value in fields for one in (value if isinstance(value, tuple) else (value,))]
    return next((str(value.folder) for value in values if isinstance(value, Written)), None)


def shown(sweep: Sweep) -> dict[str, Any]:
    """What definition.json says about how to read the results: the sweep's answer, figures and arms."""
    answer = figures.plain(sweep.answer) if sweep.answer else None
    shown = [figures.plain(figure) for figure in sweep.figures]
    return json.loads(json.dumps({"answer": answer, "figures": shown, "arms": arms.marked(sweep.members)}))


def plain(sweep: Sweep) -> list[dict[str, Any]]:
    """Every member, flattened, with values as JSON returns them."""
    return json.loads(json.dumps([flatten(member) for member in sweep.members], default=str))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The checkout's commit, with "+changes" if tracked files differ from it; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, timeout=10, check=True)
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.decode().strip() + ("+changes" if dirty.stdout.strip() else "")

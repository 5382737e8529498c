"""A run's folder: whose it is, and what it says of the run."""

import errno
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import jax

from sae import results
from sae.experiment import flatten
from sae.results import Results
from sae.sweep import Sweep
from sae.types import UserError

PACKAGES = ("sparsity-lab", "jax", "jaxlib", "flax", "optax", "numpy", "tensorflow-datasets", "wandb")


def finished_before(folder: Path, sweep: Sweep) -> bool:
    """Whether the folder holds a finished run of this sweep. Raises UserError if it holds something else."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; use --out DIR with a new or empty folder")
    if not (folder / results.DEFINITION).exists():
        if any(folder.iterdir()):
            raise UserError(f"{folder} is not empty and holds no run; use --out DIR with a new or empty folder")
        return False
    older = Results(folder)
    if difference := _first_difference(older.definition["members"], _plain(sweep)):
        raise UserError(
            f"{folder} holds a different definition: {difference}; use --out DIR, or --fresh to move it aside"
        )
    return older.finished


def move_aside(folder: Path) -> Path | None:
    """Rename a folder that holds a run; None where there is none. Raises UserError for a folder of something else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not (folder / results.DEFINITION).exists():
        raise UserError(f"{folder} holds no run, so --fresh leaves it where it is; use --out DIR")
    folder = folder.resolve()
    aside = next(p for i in range(1, 10**6) if not (p := folder.with_name(f"{folder.name}.old-{i}")).exists())
    return folder.rename(aside)


def open_folder(folder: Path, sweep: Sweep, question: str, token: str) -> None:
    """Make the folder and write definition.json; tables of an unfinished run go, since they are written anew."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(f"{folder}: not writable ({error.strerror}); use --out DIR with a folder of your own") from None
    for name in (results.MEMBERS, results.HISTORY):
        (folder / name).unlink(missing_ok=True)
    results.write_definition(folder, _describe(sweep, question, token))


def _first_difference(theirs: list[dict], ours: list[dict]) -> str | None:
    for i, (old, new) in enumerate(zip(theirs, ours, strict=False)):
        for name in dict.fromkeys([*old, *new]):
            if old.get(name) != new.get(name) and repr(old.get(name)) != repr(new.get(name)):  # NaN != NaN
                return f"{name} of member {i} is {old.get(name)!r} there and {new.get(name)!r} here"
    if len(theirs) != len(ours):
        return f"{len(theirs)} members there and {len(ours)} here"
    return None


def _describe(sweep: Sweep, question: str, token: str) -> dict[str, Any]:
    """What definition.json holds."""
    device = jax.devices()[0]
    return {
        "name": sweep.name,
        "question": question,
        "token": token,
        "members": _plain(sweep),
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "device": {"kind": device.device_kind, "platform": device.platform, "count": jax.device_count()},
        "host": platform.node(),
        "git_commit": _git_commit(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _plain(sweep: Sweep) -> list[dict[str, Any]]:
    """Every member, flattened, as JSON gives it back."""
    return json.loads(json.dumps([flatten(member) for member in sweep.members]))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The checkout's commit, with "+changes" where files differ from it; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")

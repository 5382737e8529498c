"""A part of a sweep as a process of its own: its start, and what is said of one that failed."""

import dataclasses
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

Say = Callable[[str], Any]  # shows one line to the user

GRACE = 60.0  # seconds to save in, after SIGTERM; Slurm warns 90 seconds before a time limit
TAIL = 10  # lines of a failed part's log that are shown

# A path and no import: a Slurm job gets this module by value, and is to import nothing of the package.
_KEEPER = str(Path(__file__).with_name("keeper.py"))
_HEADER = "=== "  # begins the line in a log that says what was started


@dataclasses.dataclass(frozen=True)
class LaunchOptions:
    """Where the programs of a sweep run. None of it changes a result."""

    launcher: Literal["none", "local", "slurm"] = "none"
    """Where programs run: none, one after another in this process; local, each in a process; slurm, each in a job."""
    workers: int = 2
    """Processes at once, for --launcher local."""
    slurm_partition: str | None = None
    """Slurm: the partition; the cluster's default if not given."""
    slurm_minutes: int = 240
    """Slurm: time limit of a job; a job that reaches it is saved, queued again and resumed."""
    slurm_gpus: int = 0
    """Slurm: GPUs of a job."""
    slurm_cpus: int | None = None
    """Slurm: CPU cores of a job; the cluster's default if not given."""
    slurm_mem_gb: float | None = None
    """Slurm: memory of a job; the cluster's default if not given."""
    slurm_extra: tuple[str, ...] = ()
    """Slurm: more of sbatch's options, as account=physics qos=low exclusive."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One process's work. `name` ("cohort 3/8") is unique among the parts of a run; `command` is an argument list."""

    name: str
    command: list[str]

    @property
    def slug(self) -> str:
        """The name as files and jobs may have it: "cohort-3-of-8"."""
        return re.sub(r"[^A-Za-z0-9]+", "-", self.name.replace("/", " of ")).strip("-")


@dataclasses.dataclass(frozen=True)
class Failure:
    """A part that failed: its name, the reason ("exit code 1"), its log and the last lines of that."""

    name: str
    reason: str
    log: Path
    tail: tuple[str, ...]

    def __str__(self) -> str:
        lines = self.tail or ("(nothing)",)
        return f"{self.name}: {self.reason}; {self.log} ends with\n" + "\n".join(f"  | {line}" for line in lines)


def make_logs(folder: Path) -> Path:
    """Make the folder of logs in a run's folder -> its path."""
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    return logs


def start(command: list[str], log: Path, env: dict[str, str], cwd: str | None = None) -> subprocess.Popen[bytes]:
    """Start a command, under a keeper and in a session of its own; its output is added to the log."""
    shown = shlex.join(command).replace("\n", "\\n")  # a header is one line
    line = f"{_HEADER}{time.strftime('%Y-%m-%d %H:%M:%S')} {platform.node()}: {shown}\n"
    command = [sys.executable, "-I", "-S", _KEEPER, str(os.getpid()), *command]
    with open(log, "ab") as file:
        file.write(line.encode())
        file.flush()
        return subprocess.Popen(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )


def failed(part: Part, reason: str, log: Path) -> Failure:
    """A part's failure, with the end of its log."""
    return Failure(part.name, reason, log, tail(log))


def tail(log: Path) -> tuple[str, ...]:
    """The last lines of a log, of the last attempt only."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 16_384))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ()
    last = max((i for i, line in enumerate(lines) if line.startswith(_HEADER)), default=-1)
    return tuple([line for line in lines[last + 1 :] if line.strip()][-TAIL:])


def ending(code: int) -> str:
    """A process's return code in words."""
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"

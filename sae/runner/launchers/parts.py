"""A part of a sweep as a process of its own: how it is started and stopped, and what is said of one that failed."""

import contextlib
import dataclasses
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

Say = Callable[[str], Any]  # shows one line to the user

GRACE = 60.0  # seconds to save in, after SIGTERM; Slurm warns 90 seconds before a time limit
TAIL = 10  # lines of a failed part's log that are shown

_HEADER = "=== "  # begins the line in a log that says what was started

# A part is the child of this small program, which passes SIGTERM on once, however often it comes (a part that saves may
# take a second one as "now"), stops the part where its launcher has gone (kill -9), and ends as the part does. Linux's
# PR_SET_PDEATHSIG would be shorter, but its signal may come twice from a launcher that has threads.
_KEEPER = """import os, signal, subprocess, sys
part, asked, told = None, False, False
def stop(*_):
    global asked, told
    asked = True
    if part is not None and not told:
        told = True
        part.terminate()
signal.signal(signal.SIGTERM, stop)
part = subprocess.Popen(sys.argv[2:])
while True:
    if asked or os.getppid() != int(sys.argv[1]):
        stop()
    try:
        code = part.wait(0.5)
        break
    except subprocess.TimeoutExpired:
        pass
if code < 0:
    if -code not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)"""


@dataclasses.dataclass(frozen=True)
class Options:
    """Where the programs of a sweep run; none of it changes a result."""

    launcher: Literal["none", "local", "slurm"] = "none"
    """Where programs run: none, one after another in this process; local, each in a process; slurm, each in a job."""
    workers: int = 2
    """Processes at once, for --launcher local."""
    slurm_partition: str | None = None
    """Slurm: the partition; the cluster's default if not given."""
    slurm_minutes: int = 240
    """Slurm: time limit of a job; one that reaches it is saved, queued again and goes on."""
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
    """A part that did not get through: its name, the reason ("exit code 1"), its log and how that ends."""

    name: str
    reason: str
    log: Path
    tail: tuple[str, ...]

    def __str__(self) -> str:
        lines = self.tail or ("(nothing)",)
        return f"{self.name}: {self.reason}; {self.log} ends with\n" + "\n".join(f"  | {line}" for line in lines)


def make_logs(folder: Path) -> Path:
    """The folder of logs in a run's folder."""
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    return logs


def start(command: list[str], log: Path, env: dict[str, str], cwd: str | None = None) -> subprocess.Popen:
    """Start a command in a session of its own, its output added to the log."""
    shown = shlex.join(command).replace("\n", "\\n")  # a header is one line
    line = f"{_HEADER}{time.strftime('%Y-%m-%d %H:%M:%S')} {platform.node()}: {shown}\n"
    command = [sys.executable, "-I", "-S", "-c", _KEEPER, str(os.getpid()), *command]
    with open(log, "ab") as file:
        file.write(line.encode())
        file.flush()
        return subprocess.Popen(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """A list that every SIGINT, SIGTERM and SIGHUP is written in; what is ignored (nohup) stays ignored."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught  # only the main thread may handle signals
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, lambda number, _: caught.append(number))
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def failed(part: Part, reason: str, log: Path) -> Failure:
    """A part's failure, with the end of its log."""
    return Failure(part.name, reason, log, _tail(log))


def _tail(log: Path) -> tuple[str, ...]:
    """How a log ends: lines of the last attempt only."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 16_384))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ()
    last = max((i for i, line in enumerate(lines) if line.startswith(_HEADER)), default=-1)
    return tuple([line for line in lines[last + 1 :] if line.strip()][-TAIL:])


def ending(code: int) -> str:
    """How a process ended, in words."""
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"

"""The child process that drives W&B: a program of its own, started by `sae.wandb.client.Client`.

It loads neither this package nor jax. On stdin it reads JSON lines `[method, arguments]`: first
`["open", arguments of Runs]`, then calls of the public methods of `Runs`. End of file means that the sweep is over, or
that its process died; either way every run is finished. On stdout it writes JSON lines:

    {"lost": [member, reason]}   this run is missing or incomplete in W&B (at most one line per member)
    {"offline": reason}          the server cannot be reached, so runs are recorded on disk
    {"error": reason}            no more calls are served
    {"done": true}               everything is finished

Whatever else this process, wandb and wandb-core print goes to stderr.

A resumed run keeps its id and gets all its rows again. Online, W&B appends whatever it is sent, so this process asks
which rows it has and does not send those. Offline, the new file has every row, and the older files are removed.
"""

import contextlib
import fcntl
import json
import logging
import os
import pathlib
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np

# Python puts a program's own folder first on its path, where a file of this room would hide a package's module.
_HERE = os.path.dirname(os.path.realpath(__file__))
sys.path[:] = [path for path in sys.path if os.path.realpath(path) != _HERE]

INIT_SECONDS = float(os.environ.get("WANDB_INIT_TIMEOUT", 8))  # then runs are recorded offline, and nothing is lost
FINISH_SECONDS = 60.0  # longest upload of one run after its end; `sae sync` can do the rest
COUNT_SECONDS = 5.0  # until W&B's answer about a run includes the last rows it got; mostly 2 to 4 s
MOST_OF_NAME, MOST_OF_TAG = 128, 64  # characters that the server takes

Member = int | str  # "sweep" is the run of the sweep itself


class Runs:
    """The W&B runs of a sweep, by member. A failure of one is reported and stops no other."""

    def __init__(
        self,
        mode: Literal["online", "offline"],
        project: str,
        group: str,
        token: str,
        folder: str,
        report: Callable[..., None],
        fall_back: bool = True,
        sweep_id: str | None = None,
        run_id: str | None = None,
    ) -> None:
        import wandb

        self.wandb, self.report = wandb, report
        self.mode: Literal["online", "offline"] = mode
        self.fall_back, self.project, self.group, self.token, self.run_id = fall_back, project, group, token, run_id
        self.dead: Exception | None = None
        self.folder = pathlib.Path(folder)
        settings: dict[str, Any] = dict(
            console="off",
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
            init_timeout=INIT_SECONDS,
            silent=True,
            sweep_id=sweep_id,
            x_disable_meta=True,  # the x_ settings bring an init from 95 to 20 ms
            x_disable_stats=True,
            x_save_requirements=False,
            x_transaction_log_flush_interval=2.0,  # the most that a kill can cost; wandb's default is 15 s
        )
        known = wandb.Settings.model_fields  # versions of wandb differ in the x_ settings
        self.settings = wandb.Settings(**{name: value for name, value in settings.items() if name in known})
        self.running: dict[Member, Any] = {}
        self.finishing: dict[Member, Any] = {}
        self.offline_files: dict[Member, str] = {}
        self.lost: set[Member] = set()
        self.steps: dict[Member, int] = {}  # member -> step of its last row
        self.suffix = ""
        self.lock = threading.Lock()
        self.finishers = ThreadPoolExecutor(64)  # they only wait for wandb-core

    def start_cohort(
        self, members: Sequence[int], configs: Sequence[dict], names: Sequence[str], tags: Sequence[list[str]]
    ) -> None:
        """Start one run per member. The first starts alone, so that an absent server costs INIT_SECONDS once."""
        first, *others = zip(members, configs, names, tags, strict=True)
        self._start(*first)
        with ThreadPoolExecutor(8 if self.mode == "online" else 1) as starters:  # online, each waits for an answer
            list(starters.map(lambda run: self._start(*run), others))

    def record(
        self, members: Sequence[int], step: int, examples: int, values: dict[str, list], images: dict[str, str]
    ) -> None:
        """Log a row per member: `values` {name: column [member]}, `images` {name: file of pictures [member, ...]}."""
        pictures = self._read(images)
        for index, member in enumerate(members):
            if run := self.running.get(member):
                with self._surviving(member):
                    row = {name: column[index] for name, column in values.items()} | self._drawn(pictures, index)
                    self.steps[member] = step
                    _log(run, {"train/step": step, "train/examples": examples, **row}, step)

    def finish_cohort(
        self,
        members: Sequence[int],
        status: Sequence[str],
        values: dict[str, list],
        histograms: dict[str, Any],
        images: dict[str, str],
    ) -> None:
        """Write each member's held-out evaluation and finish its run, in the background.

        `values` and `images` are as in `record`; `histograms` is {name: (edges [bin + 1], counts [member, bin])}.
        """
        pictures = self._read(images)
        for index, member in enumerate(members):
            with self._surviving(member):
                summary = {name: column[index] for name, column in values.items()} | {"status": status[index]}
                bars = {name: (counts[index], edges) for name, (edges, counts) in histograms.items()}
                last = {name: self.wandb.Histogram(np_histogram=bar) for name, bar in bars.items()}
                self._finish_later(member, summary, last | self._drawn(pictures, index), exit_code=0)

    def sweep(
        self,
        config: dict,
        tags: list[str],
        summary: dict,
        tables: dict[str, dict],
        images: dict[str, str],
        artifact: dict | None,
    ) -> None:
        """Write the run of the sweep itself: `tables` {name: {columns, data}}, `images` {name: path of a PNG}.

        `artifact`, if any, is {"name": ..., "files": {name in it: path}}; the files stay where they are.
        """
        _wait_for_an_older_process(self.folder, [self._id("sweep")])  # two parts may end at once
        self._start("sweep", config, self.group, tags, job_type="sweep")
        if not (run := self.running.get("sweep")):
            return
        with self._surviving("sweep"):
            row = {name: self.wandb.Table(**table) for name, table in tables.items()}
            run.log(row | {name: self.wandb.Image(path) for name, path in images.items()})
        with self._surviving("sweep"):
            if artifact:
                weights = self.wandb.Artifact(artifact["name"], type="sae-weights")
                for name, path in artifact["files"].items():
                    weights.add_file(path, name=name, policy="immutable")
                run.log_artifact(weights)
        self._finish_later("sweep", summary, {}, exit_code=0)

    def close(self) -> None:
        """Finish the runs that an interrupted sweep left, which W&B shows as failed, and wait for all."""
        for member in list(self.running):
            self._finish_later(member, {}, {}, exit_code=1)
        self.finishers.shutdown()
        try:
            self.wandb.teardown()  # wandb-core writes the ends of the files when it ends
        except Exception:  # wandb-core is dead, which each run has noticed
            traceback.print_exc()
        for member, path in self.offline_files.items():
            with self._surviving(member):
                if not _is_whole(path):
                    raise OSError(f"{path} lacks its end; is the disk full?")

    def _start(self, member: Member, config: dict, name: str, tags: list[str], job_type: str = "train") -> None:
        with self._surviving(member):
            if self.dead:
                raise self.dead
            older = self._older(member)
            if self.mode == "online":
                _let_it_count(older)
            try:
                run = self._init(member, config, name, tags, job_type, older)
            except (self.wandb.errors.CommError, self.wandb.errors.UsageError) as error:
                if not self.fall_back:
                    self.dead = error
                    raise
                self._go_offline(error)
                run = self._init(member, config, name, tags, job_type, older)
            for folder in older:  # the new run has all its rows, and `wandb sync` would upload them a second time
                shutil.rmtree(folder, ignore_errors=True)
            run.define_metric("train/*", step_metric="train/step")
            run.define_metric("eval/*", step_metric="train/step")
            self.running[member] = run
            if run.offline:
                self.offline_files[member] = run.settings.sync_file

    def _id(self, member: Member) -> str:
        return self.run_id or f"{self.token}-{member:04d}" if member != "sweep" else f"{self.token}-sweep"

    def _older(self, member: Member) -> list[pathlib.Path]:
        """The folders of a run that earlier, stopped processes left."""
        name = re.compile(rf"(offline-)?run-\d{{8}}_\d{{6}}-{re.escape(self._id(member))}(-offline)?(-\d+)?")
        return [path for path in self.folder.glob("*run-*") if name.fullmatch(path.name)]

    def _init(
        self, member: Member, config: dict, name: str, tags: list[str], job_type: str, older: list[pathlib.Path]
    ) -> Any:
        online = self.mode == "online"
        # W&B may have rows of a run that began online. `wandb sync` would double them, so this run gets another id.
        apart = not online and any(path.name.startswith("run-") or "-offline" in path.name for path in older)
        return self.wandb.init(
            mode=self.mode,
            project=self.project,
            group=self.group,
            job_type=job_type,
            tags=[_shortened(tag, MOST_OF_TAG) for tag in tags],
            id=self._id(member) + ("-offline" if apart else self.suffix),
            resume="allow" if online else None,
            name=_shortened(name, MOST_OF_NAME),
            config=config,
            reinit="create_new",
            settings=self.settings,
        )

    def _go_offline(self, error: Exception) -> None:
        with self.lock:
            if self.mode == "offline":
                return
            self.mode = "offline"
            self.report(offline=_one_line(error))
            # wandb-core keeps the id of a run that failed to start. Only a new wandb-core frees the id, and the runs of
            # the present one would not survive that.
            if self.running or self.finishing:
                self.suffix = "-offline"
            else:
                self.wandb.teardown()

    def _read(self, files: dict[str, str]) -> dict[str, np.ndarray]:
        """Read pictures {name: uint8 [member, height, width] or with channels}, and remove their files."""
        images = {}
        for name, path in files.items():
            with contextlib.suppress(OSError, ValueError):  # a full disk cut it off
                images[name] = np.load(path)
            with contextlib.suppress(OSError):
                os.unlink(path)
        return images

    def _drawn(self, pictures: dict[str, np.ndarray], index: int) -> dict[str, Any]:
        return {name: self.wandb.Image(of_members[index]) for name, of_members in pictures.items()}

    def _finish_later(self, member: Member, summary: dict, last: dict, exit_code: int) -> None:
        if run := self.running.pop(member, None):
            self.finishing[member] = run
            self.finishers.submit(self._finish, member, run, summary, last, exit_code)

    def _finish(self, member: Member, run: Any, summary: dict, row: dict, exit_code: int) -> None:
        with self._surviving(member):
            if row:
                step = self.steps.get(member, 0)
                _log(run, {"train/step": step, **row}, step + 1)
        with self._surviving(member):
            run.summary.update(summary)
        with self._surviving(member):
            run.finish(exit_code)
        del self.finishing[member]

    @contextlib.contextmanager
    def _surviving(self, member: Member) -> Generator[None]:
        """Report an exception as the loss of a member's run, and go on."""
        try:
            yield
        except Exception as error:
            if member not in self.lost:
                self.lost.add(member)
                self.report(lost=[member, _one_line(error)])
                with contextlib.suppress(OSError):
                    traceback.print_exc()


def _log(run: Any, row: dict, step: int) -> None:
    """Log a row that the server lacks. Rows after the last checkpoint are computed again, to the same bits."""
    if step >= run.starting_step:  # 0 for a new run
        run.log(row, step=step, commit=True)


def _let_it_count(older: list[pathlib.Path]) -> None:
    """Wait until the server counts the rows that an older process sent a moment ago."""
    times = [path.stat().st_mtime for folder in older for path in folder.rglob("*") if path.is_file()]
    time.sleep(min(max(max(times, default=0) + COUNT_SECONDS - time.time(), 0), COUNT_SECONDS))


def _shortened(text: str, most: int) -> str:
    """A text of at most so many characters; one that is longer lacks its middle, as names differ at their ends."""
    half = most // 2
    return text if len(text) <= most else f"{text[: half - 1]}…{text[-half:]}"


def _one_line(error: Exception) -> str:
    text = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {text}"[:300]


def _is_whole(path: str) -> bool:
    """Whether an offline run's file ends with the exit record. A file in an unknown format counts as whole.

    wandb-core notes a failed write (a full disk) in its own log and `finish` succeeds, so the file must be read. It is
    a LevelDB log: blocks of 32 KiB, with chunks of (checksum, size, kind) and payload that never cross a block.
    """
    from wandb.proto.wandb_internal_pb2 import Record  # ty: ignore[missing-module-member]  made when it is imported

    with open(path, "rb") as file:
        data = file.read(7)
        if data and not data.startswith(b":W&B"):
            return True
        size = os.fstat(file.fileno()).st_size
        start = max(7, (size - 1) // 32768 * 32768)
        file.seek(start)
        data = file.read()
    at, kind, payload = 0, 0, b""
    while at + 7 <= len(data):
        length, kind = struct.unpack_from("<HB", data, at + 4)
        payload = data[at + 7 : at + 7 + length]
        at += 7 + length
    # Kinds of chunk. A record that a block's border cuts is taken for the exit record.
    whole, last = 1, 4
    return at == len(data) and (kind == last or kind == whole and Record.FromString(payload).HasField("exit"))


class _PopenHere(subprocess.Popen):
    """Starts wandb-core in this process's session, so that the parent can end both with one signal.

    wandb-core shares our lock, because after a kill -9 it may live, and upload, a little longer than we do.
    """

    locks: list[int] = []

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        here: dict[str, Any] = {"start_new_session": False, "pass_fds": self.locks}
        super().__init__(*args, **(kwargs | here))


def _wait_for_an_older_process(folder: str | pathlib.Path, names: Sequence[str]) -> None:
    """Take the locks of W&B runs, as the W&B process of a sweep that was killed with -9 still uploads what it has.

    Other parts of the sweep have other locks, so nobody waits for them.
    """
    deadline = time.monotonic() + 2 * FINISH_SECONDS  # more than its uploads may take
    for name in names:
        with contextlib.suppress(OSError):  # a file system without locks
            lock = os.open(os.path.join(folder, f"{name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
            _PopenHere.locks.append(lock)
            while time.monotonic() < deadline:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.1)


def main() -> None:
    """Serve the calls on stdin."""
    # This process ends with its stdin. A signal to the whole job must not take the last rows with it.
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    os.nice(10)  # training comes first
    logging.raiseExceptions = False  # on a full disk, each line of wandb's log would print a traceback
    subprocess.Popen = _PopenHere  # ty: ignore[invalid-assignment]  wandb starts wandb-core through it
    # wandb-core inherits descriptors 0 and 1. It must not hold the pipes, whose ends tell the parent that we are gone.
    calls, reports = os.fdopen(os.dup(0), "rb"), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)

    def report(**event: Any) -> None:
        with contextlib.suppress(OSError):  # the parent may be dead
            os.write(reports, json.dumps(event).encode() + b"\n")

    runs = None
    try:
        for line in calls:
            try:
                method, arguments = json.loads(line)
            except ValueError:
                break  # the parent died while it wrote this line
            if method == "open":
                _wait_for_an_older_process(arguments["folder"], arguments.pop("locks"))
                runs = Runs(**arguments, report=report)
            else:
                getattr(runs, method)(**arguments)
    except Exception as error:
        report(error=_one_line(error))
        traceback.print_exc()
    if runs:
        runs.close()
    report(done=True)


if __name__ == "__main__":
    main()

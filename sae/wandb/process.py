"""The child process that drives W&B, and the only file that imports `wandb`.

`sae.wandb.client.Client` runs it as a program: it loads neither this package nor jax. On stdin come JSON lines
`[method, arguments]`: first `["open", arguments of Runs]`, then calls of the public methods of `Runs`. End of file
means that the sweep is over, or that its process died; either way every run is finished. On stdout go JSON lines:

    {"lost": [member, reason]}   this run is not, or not wholly, in W&B (at most one line per member)
    {"offline": reason}          the server cannot be reached: runs are recorded on disk instead
    {"error": reason}            no more calls are served
    {"done": true}               everything is finished

All else that this process, wandb and wandb-core print goes to stderr.

A run that goes on after it was stopped keeps its id, and gets all its rows again. Online, W&B appends whatever it is
sent, so it is asked which rows it has, and those are not sent. Offline, the new file has every row, and older ones go.
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
from concurrent.futures import ThreadPoolExecutor

import numpy as np

# Python puts a program's own folder first on its path, where a file of ours could hide a package's module.
_HERE = os.path.dirname(os.path.realpath(__file__))
sys.path[:] = [path for path in sys.path if os.path.realpath(path) != _HERE]

INIT_SECONDS = float(os.environ.get("WANDB_INIT_TIMEOUT", 8))  # then runs are recorded offline, and nothing is lost
FINISH_SECONDS = 60.0  # how long one run may go on uploading after its end; `sae sync` can do the rest
COUNT_SECONDS = 5.0  # until W&B, asked what it has of a run, knows of the last rows it got; 2 to 4 s as a rule


class Runs:
    """The W&B runs of a sweep, by member. What fails for one of them is reported and stops no other."""

    def __init__(
        self,
        mode: str,
        project: str,
        group: str,
        token: str,
        folder: str,
        report,
        fall_back: bool = True,
        sweep_id: str | None = None,
        run_id: str | None = None,
    ):
        import wandb

        self.wandb, self.report = wandb, report
        self.fall_back, self.dead = fall_back, None
        self.mode, self.project, self.group, self.token, self.run_id = mode, project, group, token, run_id
        self.folder = pathlib.Path(folder)
        settings = dict(
            console="off",
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
            init_timeout=INIT_SECONDS,
            silent=True,
            sweep_id=sweep_id,
            x_disable_meta=True,  # this and the like bring an init from 95 to 20 ms
            x_disable_stats=True,
            x_save_requirements=False,
            x_transaction_log_flush_interval=2.0,  # what a kill can cost; wandb's default is 15 s
        )
        known = wandb.Settings.model_fields  # names that start with x_ come and go
        self.settings = wandb.Settings(**{name: value for name, value in settings.items() if name in known})
        self.running, self.finishing, self.offline_files, self.lost = {}, {}, {}, set()
        self.steps = {}  # member -> that of its last row
        self.suffix = ""
        self.lock = threading.Lock()
        self.finishers = ThreadPoolExecutor(64)  # they only wait for wandb-core

    def start_cohort(self, members, configs, names, tags):
        """Start one run per member. The first goes alone, so that an absent server costs INIT_SECONDS once."""
        first, *others = zip(members, configs, names, tags, strict=True)
        self._start(*first)
        with ThreadPoolExecutor(8 if self.mode == "online" else 1) as starters:  # online, each waits for an answer
            list(starters.map(lambda run: self._start(*run), others))

    def record(self, members, step, examples, values, images):
        """Log one row per member; `values` holds a column [member] per name, `images` the file of one."""
        images = self._read(images)
        for index, member in enumerate(members):
            if run := self.running.get(member):
                with self._surviving(member):
                    row = {name: column[index] for name, column in values.items()} | self._drawn(images, index)
                    self.steps[member] = step
                    _log(run, {"train/step": step, "train/examples": examples, **row}, step)

    def finish_cohort(self, members, status, values, histograms, images):
        """Write each member's held-out evaluation and finish its run, in the background."""
        images = self._read(images)
        for index, member in enumerate(members):
            with self._surviving(member):
                summary = {name: column[index] for name, column in values.items()} | {"status": status[index]}
                bars = {name: (counts[index], edges) for name, (edges, counts) in histograms.items()}
                last = {name: self.wandb.Histogram(np_histogram=bar) for name, bar in bars.items()}
                self._finish_later(member, summary, last | self._drawn(images, index), exit_code=0)

    def sweep(self, config, tags, summary, tables, images, artifact):
        """Write the run of the sweep itself: `tables` {name: {columns, data}}, `images` {name: path of a PNG}.

        `artifact`, if any, is {"name", "files": {name in it: path}}; the files stay where they are.
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

    def close(self):
        """Finish what the sweep did not finish (it was interrupted; W&B shows such runs as failed), wait for all."""
        for member in list(self.running):
            self._finish_later(member, {}, {}, exit_code=1)
        self.finishers.shutdown()
        try:
            self.wandb.teardown()  # wandb-core writes the ends of the files when it ends
        except Exception:  # it is dead, which each run has noticed
            traceback.print_exc()
        for member, path in self.offline_files.items():
            with self._surviving(member):
                if not _is_whole(path):
                    raise OSError(f"{path} lacks its end, is the disk full?")

    def _start(self, member, config, name, tags, job_type="train"):
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
            for folder in older:  # all it holds comes again, and `wandb sync` would upload it a second time
                shutil.rmtree(folder, ignore_errors=True)
            run.define_metric("train/*", step_metric="train/step")
            run.define_metric("eval/*", step_metric="train/step")
            self.running[member] = run
            if run.offline:
                self.offline_files[member] = run.settings.sync_file

    def _id(self, member):
        return self.run_id or f"{self.token}-{member:04d}" if member != "sweep" else f"{self.token}-sweep"

    def _older(self, member):
        """The folders that processes which were stopped have left of a run."""
        name = re.compile(rf"(offline-)?run-\d{{8}}_\d{{6}}-{re.escape(self._id(member))}(-offline)?(-\d+)?")
        return [path for path in self.folder.glob("*run-*") if name.fullmatch(path.name)]

    def _init(self, member, config, name, tags, job_type, older):
        online = self.mode == "online"
        # W&B may have rows of a run that began online, and `wandb sync` would double them: this is a run of its own
        apart = not online and any(path.name.startswith("run-") or "-offline" in path.name for path in older)
        return self.wandb.init(
            mode=self.mode,
            project=self.project,
            group=self.group,
            job_type=job_type,
            tags=[tag[:64] for tag in tags],  # the server's limit
            id=self._id(member) + ("-offline" if apart else self.suffix),
            resume="allow" if online else None,
            name=name[:128],  # the server's limit
            config=config,
            reinit="create_new",
            settings=self.settings,
        )

    def _go_offline(self, error):
        with self.lock:
            if self.mode == "offline":
                return
            self.mode = "offline"
            self.report(offline=_one_line(error))
            # wandb-core keeps the id of a run that failed to start. Only a new wandb-core frees it, which the runs of
            # the present one would not survive.
            if self.running or self.finishing:
                self.suffix = "-offline"
            else:
                self.wandb.teardown()

    def _read(self, files):
        """Pictures of members, {name: uint8 [member, height, width] or with channels}, of files that then go."""
        images = {}
        for name, path in files.items():
            with contextlib.suppress(OSError, ValueError):  # cut off by a full disk
                images[name] = np.load(path)
            with contextlib.suppress(OSError):
                os.unlink(path)
        return images

    def _drawn(self, images, index):
        return {name: self.wandb.Image(pictures[index]) for name, pictures in images.items()}

    def _finish_later(self, member, summary, last, exit_code):
        if run := self.running.pop(member, None):
            self.finishing[member] = run
            self.finishers.submit(self._finish, member, run, summary, last, exit_code)

    def _finish(self, member, run, summary, row, exit_code):
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
    def _surviving(self, member):
        try:
            yield
        except Exception as error:
            if member not in self.lost:
                self.lost.add(member)
                self.report(lost=[member, _one_line(error)])
                with contextlib.suppress(OSError):
                    traceback.print_exc()


def _log(run, row, step):
    """Log a row, unless the server has it: a row after the last checkpoint is computed again, to the same bits."""
    if step >= run.starting_step:  # 0 for a new run
        run.log(row, step=step, commit=True)


def _let_it_count(older):
    """Wait, if an older process has sent rows a moment ago."""
    times = [path.stat().st_mtime for folder in older for path in folder.rglob("*") if path.is_file()]
    time.sleep(min(max(max(times, default=0) + COUNT_SECONDS - time.time(), 0), COUNT_SECONDS))


def _one_line(error: Exception) -> str:
    text = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {text}"[:300]


def _is_whole(path: str) -> bool:
    """Whether an offline run's file ends with the exit record.

    wandb-core notes a failed write (a full disk) in its own log and tells nobody: `finish` succeeds. The file is a
    LevelDB log: blocks of 32 KiB, chunks of (checksum, size, kind) and payload that never cross a block. A file in any
    other format is not judged.
    """
    from wandb.proto.wandb_internal_pb2 import Record

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
    whole, last = 1, 4  # kinds of chunk; a record cut by the block's border is the exit record as far as can be seen
    return at == len(data) and (kind == last or kind == whole and Record.FromString(payload).HasField("exit"))


class _PopenHere(subprocess.Popen):
    """Keeps wandb-core in this process's session, so that the parent can end both with one signal.

    It shares our lock: after a kill -9 it may live, and upload, a little longer than we.
    """

    locks: list[int] = []

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **(kwargs | {"start_new_session": False, "pass_fds": self.locks}))


def _wait_for_an_older_process(folder, names):
    """Take the locks of W&B runs: after a kill -9 of the sweep, its W&B process still uploads what it has.

    Other parts of the sweep have other locks, and are not waited for.
    """
    deadline = time.monotonic() + 2 * FINISH_SECONDS  # more than it may take
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


def main():
    """Serve the calls on stdin."""
    # The end comes as the end of stdin. A signal to the whole job must not take the last rows with it.
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    os.nice(10)  # training comes first
    logging.raiseExceptions = False  # on a full disk each line of wandb's log would print a traceback
    subprocess.Popen = _PopenHere
    # wandb-core inherits descriptors 0 and 1. It must not hold the pipes: their ends tell the parent that we are gone.
    calls, reports = os.fdopen(os.dup(0), "rb"), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)

    def report(**event):
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

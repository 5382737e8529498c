"""Our end of the pipe to the process that drives W&B.

wandb lives in a child process (`process.py`), and this side only puts messages in a queue. So no call waits for
wandb, and the sweep goes on whatever happens to the network, the server, W&B's disk or wandb itself. The sweep's own
tables are the record; W&B is a view of them.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import queue
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sae.core.files import expanded
from sae.wandb import settings
from sae.wandb.settings import Mode

READ_SECONDS = 30.0  # to read what an ended child left in the pipe, on a machine that may be busy

Pictures = Callable[[], np.ndarray]
"""Makes uint8 [member, height, width] or [member, height, width, 3]; called in the thread that feeds the child."""

# These describe one run, often that of a surrounding `wandb agent`, but every member is a run of its own.
_NOT_INHERITED = (
    "WANDB_FORK_FROM WANDB_JOB_TYPE WANDB_MODE WANDB_NAME WANDB_PROJECT WANDB_REINIT WANDB_RESUME WANDB_RESUME_FROM "
    "WANDB_RUN_GROUP WANDB_RUN_ID WANDB_SERVICE WANDB_SWEEP_ID WANDB_SWEEP_PARAM_PATH"
).split()


@dataclasses.dataclass(frozen=True)
class Trial:
    """The one run for which a `wandb agent` started this process. The child is told of it; it inherits nothing."""

    sweep_id: str
    run_id: str
    name: str
    """The run's name, as W&B shows it."""


class Client:
    """The runs of a sweep. Only `close` ever waits, and no method raises for anything that W&B does.

    `token` makes the run ids unique: `<token>-<member>`. `say` gets one line at most, from the thread that calls the
    sink. With a `trial`, the only member is that run of that W&B sweep, in the agent's project. `cohorts` are the
    cohorts that this process works on. Without `fall_back`, a run that cannot be online is not recorded offline.
    """

    def __init__(
        self,
        out: pathlib.Path,
        *,
        mode: Mode,
        project: str,
        group: str,
        token: str,
        say: Callable[[str], None],
        trial: Trial | None = None,
        entity: str | None = None,
        cohorts: Sequence[int] = (),
        fall_back: bool = True,
    ) -> None:
        self.group, self.token, self._say, self._trial = group, token, say, trial
        env = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
        root = expanded(env.get("WANDB_DIR") or out).absolute()
        self.folder = root / (".wandb" if (root / ".wandb").exists() else "wandb")  # wandb's own rule
        self.log = self.folder / "wandb-process.log"
        env["WANDB_DIR"] = str(root)
        env |= {"WANDB_ENTITY": entity} if entity else {}
        env.setdefault("WANDB_DATA_DIR", str(self.folder / "data"))
        env.setdefault("WANDB_CACHE_DIR", str(self.folder / "cache"))
        if not settings.has_home():
            env["HOME"] = str(self.folder)  # wandb wants one
        env.setdefault("WANDB_PROGRAM", pathlib.Path(sys.argv[0]).name)
        env.setdefault("WANDB_ERROR_REPORTING", "false")  # wandb's telemetry takes 10 s where the server is dead
        for name, value in settings.read().items():
            if name in ("base_url", "entity"):  # the child looks for the project's settings file elsewhere
                env.setdefault(f"WANDB_{name.upper()}", value)

        if trial:
            project = settings.agents_project(project)
        self.project, self.entity = project, env.get("WANDB_ENTITY")
        self._sync = f"sae sync {shlex.quote(str(out))}"
        self._queue: queue.SimpleQueue[list | None] = queue.SimpleQueue()
        self._started: set[int | str] = set()
        self._lost: dict[int | str, str] = {}  # member, or "sweep" -> reason, from the child
        self._n_pictures = 0
        self._news: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._gone = threading.Event()  # the child ended too early
        self._done = self._closed = self._told = False
        self._child: subprocess.Popen[bytes] | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.log, "ab") as log:
                self._child = subprocess.Popen(
                    [sys.executable, str(pathlib.Path(__file__).with_name("process.py"))],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=env,
                    start_new_session=True,  # Ctrl-C is for us; the child ends with its stdin
                )
        except OSError as error:
            self._give_up(str(error))
            return
        locks = [f"{token}-cohort-{cohort}" for cohort in cohorts] or [token]
        more = {"locks": locks, "fall_back": fall_back} | (
            {"sweep_id": trial.sweep_id, "run_id": trial.run_id} if trial else {}
        )
        self._send("open", folder=str(self.folder), mode=mode, project=project, group=group, token=token, **more)
        self._reader = threading.Thread(target=self._read, name="wandb-reader", daemon=True)
        self._reader.start()
        threading.Thread(target=self._write, name="wandb-writer", daemon=True).start()

    def run_id(self, member: int | str) -> str:
        """The W&B run id of a member, or of "sweep".

        The child adds "-offline" where the server vanished between two cohorts, or where a run that began online goes
        on offline.
        """
        if member == "sweep":
            return f"{self.token}-sweep"
        return self._trial.run_id if self._trial else f"{self.token}-{member:04d}"

    @property
    def lost(self) -> dict[int | str, str]:
        """{member or "sweep": why its run is missing or incomplete in W&B}, as far as wandb knows."""
        return dict(self._lost)

    def start_cohort(
        self,
        members: Sequence[int],
        configs: Sequence[dict[str, Any]],
        names: Sequence[str],
        tags: Sequence[Sequence[str]] = (),
    ) -> None:
        """Start one run per member. A config is flat, with dotted names ("penalty.l1")."""
        self._started |= set(map(int, members))
        every = [list(own) for own in tags] or [[]] * len(members)
        self._send("start_cohort", members=_plain(members), configs=list(configs), names=list(names), tags=every)

    def record(
        self,
        members: Sequence[int],
        step: int,
        examples: int,
        values: Mapping[str, Any],
        images: Mapping[str, Pictures] | None = None,
    ) -> None:
        """Log one chunk of a cohort; `values` maps a W&B key ("train/l0") to an array [member]."""
        columns = {name: _plain(column) for name, column in values.items()}
        numbers = {"step": int(step), "examples": int(examples), "values": columns}
        self._send("record", members=_plain(members), **numbers, images=dict(images or {}))

    def finish_cohort(
        self,
        members: Sequence[int],
        status: Sequence[str],
        values: Mapping[str, Any],
        histograms: Mapping[str, tuple[Any, Any]],
        images: Mapping[str, Pictures] | None = None,
    ) -> None:
        """Write the held-out evaluation and finish the runs.

        `values` maps a key ("eval/l0") to an array [member] of summary values. `histograms` maps a key to edges
        [bin + 1] and counts [member, bin]. A diverged member's run is finished too; its summary's `status` says so.
        """
        self._send(
            "finish_cohort",
            members=_plain(members),
            status=list(status),
            values={name: _plain(column) for name, column in values.items()},
            histograms={name: (_plain(edges), _plain(counts)) for name, (edges, counts) in histograms.items()},
            images=dict(images or {}),
        )

    def sweep(
        self,
        config: Mapping[str, Any],
        tags: Sequence[str],
        summary: Mapping[str, Any],
        tables: Mapping[str, pd.DataFrame],
        images: Mapping[str, pathlib.Path],
        artifact: Mapping[str, pathlib.Path] | None = None,
    ) -> None:
        """Write the run of the sweep itself, with tables, PNG files and the files of an artifact."""
        plain = {name: json.loads(str(table.to_json(orient="split", index=False))) for name, table in tables.items()}
        path = lambda files: {name: str(file.absolute()) for name, file in files.items()}
        self._started |= {"sweep"}
        self._send(
            "sweep",
            config=dict(config),
            tags=list(tags),
            summary=dict(summary),
            tables=plain,
            images=path(images),
            artifact={"name": f"{self.group}-{self.token}", "files": path(artifact)} if artifact else None,
        )

    def close(self, timeout: float | None = None) -> None:
        """Let the child finish, for at most `timeout` seconds, then end it, and say in one line what W&B lacks.

        The default is some seconds more than a run may take to start, as a run that cannot start is recorded offline.
        """
        if self._closed:
            return
        self._closed = True
        timeout = _close_seconds() if timeout is None else timeout
        if self._child:
            self._queue.put(None)
            try:
                self._child.wait(timeout)
                self._reader.join(READ_SECONDS)  # the child may yet report lost runs
            except subprocess.TimeoutExpired:
                if not self._gone.is_set():
                    self._gone.set()
                    self._news.put(
                        f"W&B is still not done after {timeout:g} s and is stopped; {_TABLES}; "
                        f"to upload what it lacks: {self._sync}"
                    )
            finally:  # also after a Ctrl-C during the wait
                self._end(self._child)
        if self._lost and not self._gone.is_set():
            member, reason = min(self._lost.items(), key=lambda item: str(item[0]))
            line = f"W&B lost {len(self._lost)} of {len(self._started)} runs ({self.run_id(member)}: {reason}; "
            self._news.put(f"{line}more in {self.log}); {_TABLES}; to upload from them: {self._sync}")
        self._tell()

    def _send(self, method: str, **arguments) -> None:
        if not self._gone.is_set():
            self._queue.put([method, arguments])
        self._tell()

    def _write(self) -> None:
        """Feed the child, which may be slow or stuck. This thread waits for it, and nobody waits for this thread."""
        assert self._child and self._child.stdin
        pipe, method = self._child.stdin, ""
        try:
            while message := self._queue.get():
                method, arguments = message
                if method in ("record", "finish_cohort"):
                    arguments["images"] = self._store(arguments["images"])
                pipe.write(json.dumps(message, default=_encode).encode() + b"\n")
                pipe.flush()
        except OSError:
            pass  # the child is gone, and the reader says so
        except (TypeError, ValueError) as error:
            self._give_up(f"cannot write {method} as JSON: {error}")
        with contextlib.suppress(OSError):
            pipe.close()

    def _store(self, images: Mapping[str, Pictures]) -> dict[str, str]:
        """Make the pictures of each key and write them into a file, which the child removes -> {key: file}."""
        files = {}
        with contextlib.suppress(Exception):  # a full disk or odd shapes cost the picture, and nothing else
            for key, make in images.items():
                self._n_pictures += 1
                path = self.folder / f"pictures-{self._n_pictures}-{os.getpid()}.npy"
                np.save(path, make())
                files[key] = str(path)
        return files

    def _read(self) -> None:
        assert self._child and self._child.stdout
        with contextlib.suppress(ValueError):  # half a line from a child that was killed
            for event in map(json.loads, self._child.stdout):
                if "lost" in event:
                    self._lost.update([event["lost"]])
                elif "offline" in event:
                    self._news.put(
                        f"W&B does not answer or refuses ({event['offline']}); from here on its runs are recorded "
                        f"offline, to upload them: {self._sync}"
                    )
                elif "error" in event:
                    self._give_up(f"{event['error']}, see {self.log}")
                else:
                    self._done = True
        self._child.stdout.close()
        if not self._done:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(1)
            self._end(self._child)
            self._give_up(f"its process ended with exit code {self._child.returncode}, see {self.log}")

    def _give_up(self, reason: str) -> None:
        if not self._gone.is_set():
            self._gone.set()
            self._news.put(
                f"W&B is lost: {reason}. The sweep goes on without it; {_TABLES}; to upload from them: {self._sync}"
            )

    def _tell(self) -> None:
        """Say the first news. Whatever goes wrong later has the same remedy, and is in the log."""
        with contextlib.suppress(queue.Empty):
            while True:
                line = self._news.get_nowait()
                if not self._told:
                    self._told = True
                    self._say(line)

    def _end(self, child: subprocess.Popen[bytes]) -> None:
        """Leave nothing running: neither the child nor wandb-core, which is in the child's session."""
        if not self._done:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
        child.wait()


_TABLES = "the sweep's own tables are complete"


def _close_seconds() -> float:
    with contextlib.suppress(ValueError):
        return float(os.environ.get("WANDB_INIT_TIMEOUT", 8)) + 7
    return 15.0


def _plain(values: Any) -> list:
    return np.asarray(values).tolist()


def _encode(value: Any) -> float | str:
    return float(value) if hasattr(value, "__float__") else str(value)  # a bfloat16, or a path in a config

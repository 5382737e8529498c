"""Our end of the pipe to the process that drives W&B.

wandb lives in a child process (`process.py`), and this side only puts messages in a queue. So no call waits for
wandb, and whatever happens to the network, the server, W&B's disk or wandb itself, the sweep goes on. The sweep's own
tables are the record; W&B is a view of them.
"""

import configparser
import contextlib
import dataclasses
import json
import netrc
import os
import pathlib
import queue
import shlex
import signal
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from sae.core.text import nearest
from sae.core.types import UserError

READ_SECONDS = 30.0  # for the last words of a child that has ended: they are in the pipe, but this machine may be busy

Pictures = Callable[[], np.ndarray]
"""Makes uint8 [member, height, width] or [member, height, width, 3], in the thread that feeds the child."""

# These describe one run, often that of a surrounding `wandb agent`, and every member here is a run of its own.
_NOT_INHERITED = (
    "WANDB_FORK_FROM WANDB_JOB_TYPE WANDB_MODE WANDB_NAME WANDB_PROJECT WANDB_REINIT WANDB_RESUME WANDB_RESUME_FROM "
    "WANDB_RUN_GROUP WANDB_RUN_ID WANDB_SERVICE WANDB_SWEEP_ID WANDB_SWEEP_PARAM_PATH"
).split()


def resolve_mode(choice: str) -> Literal["online", "offline"] | None:
    """Turn `--wandb auto|online|offline|off` into a W&B mode, without a prompt and without importing wandb.

    `auto` does what WANDB_MODE or W&B's settings file says, else it is online where an API key is configured, and
    offline where none is.

    Raises:
        UserError: `online` without a key.
    """
    choices = {"auto": None, "online": "online", "offline": "offline", "off": None}
    if choice not in choices:
        raise UserError(f"--wandb got {choice!r}; {nearest(choice, choices)}")
    settings, source = _settings(), "--wandb online"
    mode = choices[choice]
    if choice == "auto":
        mode = os.environ.get("WANDB_MODE") or settings.get("mode")
        mode = {"dryrun": "offline", "run": "online", "shared": "online"}.get(mode, mode)
        source = "WANDB_MODE=online"
        if mode not in ("online", "offline", "disabled"):
            mode = "online" if has_key() else "offline"
    if mode == "online" and not has_key():
        raise UserError(
            f"{source} needs an API key for {host()}, and none is configured; "
            "set WANDB_API_KEY, run `wandb login`, or use --wandb offline"
        )
    return mode if mode in ("online", "offline") else None


def _settings() -> dict[str, str]:
    """What `wandb login --host`, `wandb offline` and `wandb init` wrote in the user's and the project's settings."""
    config = pathlib.Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    parser = configparser.ConfigParser(interpolation=None)
    with contextlib.suppress(configparser.Error, OSError, UnicodeDecodeError):
        parser.read([config / "settings", pathlib.Path("wandb") / "settings"])
    return dict(parser["default"]) if "default" in parser else {}


def host() -> str:
    """The W&B server, as configured."""
    url = os.environ.get("WANDB_BASE_URL") or _settings().get("base_url") or "https://api.wandb.ai"
    return urllib.parse.urlsplit(url).netloc


def has_key() -> bool:
    """Whether an API key is configured for the host."""
    settings = _settings()
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or settings.get("api_key"):
        return True
    if "NETRC" in os.environ:
        files = [pathlib.Path(os.environ["NETRC"]).expanduser()]
    else:
        files = [file for name in ("~/.netrc", "~/_netrc") if (file := pathlib.Path(name).expanduser()).exists()]
    with contextlib.suppress(OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return any((netrc.netrc(file).authenticators(host()) or ("", "", ""))[2] for file in files[:1])
    return False


@dataclasses.dataclass(frozen=True)
class Trial:
    """The one run for which a `wandb agent` started this process. The child is told of it, it inherits nothing."""

    sweep_id: str
    run_id: str
    name: str
    """As W&B shows it."""


class Client:
    """The runs of a sweep. No method but `close` ever waits, and none raises for anything that W&B does.

    `token` makes the run ids unique: `<token>-<member>`. `say` gets one line at a time, from the thread that calls the
    sink. With a `trial`, the only member is that run of that sweep, in the agent's project. `cohorts` are
    those that this process works on. Without `fall_back`, runs that cannot be online are not recorded offline instead.
    """

    def __init__(
        self,
        out: pathlib.Path,
        *,
        mode: Literal["online", "offline"],
        project: str,
        group: str,
        token: str,
        say: Callable[[str], None],
        trial: Trial | None = None,
        entity: str | None = None,
        cohorts: Sequence[int] = (),
        fall_back: bool = True,
    ):
        self.group, self.token, self._say, self._trial = group, token, say, trial
        env = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
        root = pathlib.Path(env.get("WANDB_DIR") or out).expanduser().absolute()
        self.folder = root / (".wandb" if (root / ".wandb").exists() else "wandb")  # as wandb names it
        self.log = self.folder / "wandb-process.log"
        env["WANDB_DIR"] = str(root)
        env |= {"WANDB_ENTITY": entity} if entity else {}
        env.setdefault("WANDB_DATA_DIR", str(self.folder / "data"))
        env.setdefault("WANDB_CACHE_DIR", str(self.folder / "cache"))
        env.setdefault("WANDB_PROGRAM", pathlib.Path(sys.argv[0]).name)
        env.setdefault("WANDB_ERROR_REPORTING", "false")  # telemetry about wandb itself; a dead server adds 10 s to it
        for name, value in _settings().items():
            if name in ("base_url", "entity"):  # the child looks for the project's settings file elsewhere
                env.setdefault(f"WANDB_{name.upper()}", value)

        if trial:
            project = os.environ.get("WANDB_PROJECT") or _settings().get("project") or project
        self.project, self.entity = project, env.get("WANDB_ENTITY")
        self._sync = f"sae sync {shlex.quote(str(out))}"
        self._queue: queue.SimpleQueue[list | None] = queue.SimpleQueue()
        self._started: set[int | str] = set()
        self._lost: dict[int | str, str] = {}  # member, or "sweep" -> reason, as the child reports it
        self._n_pictures = 0
        self._news: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._gone = threading.Event()  # the child is, too early, no more
        self._done = self._closed = False
        self._child: subprocess.Popen | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.log, "ab") as log:
                self._child = subprocess.Popen(
                    [sys.executable, str(pathlib.Path(__file__).with_name("process.py"))],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=env,
                    start_new_session=True,  # Ctrl-C in the terminal is for us; the child ends when its stdin does
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
        """The W&B run id of a member.

        Only where the server vanished between two cohorts, or a run that began online goes on offline, "-offline" is
        added to it.
        """
        if member == "sweep":
            return f"{self.token}-sweep"
        return self._trial.run_id if self._trial else f"{self.token}-{member:04d}"

    @property
    def lost(self) -> dict[int | str, str]:
        """{member, or "sweep": why its run is not, or not wholly, in W&B}, as far as wandb knows."""
        return dict(self._lost)

    def start_cohort(
        self,
        members: Sequence[int],
        configs: Sequence[dict[str, Any]],
        names: Sequence[str],
        tags: Sequence[Sequence[str]] = (),
    ) -> None:
        """Start one run per member. A config is flat, its names dotted ("penalty.l1")."""
        self._started |= set(map(int, members))
        tags = [list(of) for of in tags] or [[]] * len(members)
        self._send("start_cohort", members=_plain(members), configs=list(configs), names=list(names), tags=tags)

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

        `values` maps a key ("eval/l0") to an array [member] of summary values, `histograms` a key to edges [bin + 1]
        and counts [member, bin]. A run whose member diverged is finished too; its summary's `status` says so.
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
        """Write the run of the sweep itself, with tables, PNG files, and files to upload as an artifact."""
        plain = {name: json.loads(table.to_json(orient="split", index=False)) for name, table in tables.items()}
        path = lambda of: {name: str(file.absolute()) for name, file in of.items()}
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
        """Let the child finish, for at most `timeout` seconds, end it, and say in one line what W&B lacks.

        By default it gets some seconds more than a run may take to start: one that cannot start is recorded offline.
        """
        if self._closed:
            return
        self._closed = True
        timeout = _close_seconds() if timeout is None else timeout
        if self._child:
            self._queue.put(None)
            try:
                self._child.wait(timeout)
                self._reader.join(READ_SECONDS)  # it may yet tell of runs that are lost
            except subprocess.TimeoutExpired:
                if not self._gone.is_set():
                    self._gone.set()
                    self._news.put(
                        f"W&B is still not done after {timeout:g} s and is stopped; {_TABLES}; "
                        f"to upload what it lacks: {self._sync}"
                    )
            finally:  # also for a Ctrl-C while we wait
                self._end()
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
        """Feed the child, which may be slow or stuck: this thread waits for it, and nobody waits for this thread."""
        pipe = self._child.stdin
        try:
            while message := self._queue.get():
                if message[0] in ("record", "finish_cohort"):
                    message[1]["images"] = self._store(message[1]["images"])
                pipe.write(json.dumps(message, default=_encode).encode() + b"\n")
                pipe.flush()
        except OSError:
            pass  # the child is gone, the reader says so
        except (TypeError, ValueError) as error:
            self._give_up(f"cannot write {message[0]} as JSON: {error}")
        with contextlib.suppress(OSError):
            pipe.close()

    def _store(self, images: Mapping[str, Pictures]) -> dict[str, str]:
        """Make pictures and write each key's into a file, which the child removes."""
        files = {}
        with contextlib.suppress(Exception):  # a full disk, odd shapes: no picture is worth the rest
            for key, make in images.items():
                self._n_pictures += 1
                path = self.folder / f"pictures-{self._n_pictures}-{os.getpid()}.npy"
                np.save(path, make())
                files[key] = str(path)
        return files

    def _read(self) -> None:
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
            self._end()
            self._give_up(f"its process ended with exit code {self._child.returncode}, see {self.log}")

    def _give_up(self, reason: str) -> None:
        if not self._gone.is_set():
            self._gone.set()
            self._news.put(
                f"W&B is lost: {reason}. The sweep goes on without it; {_TABLES}; to upload from them: {self._sync}"
            )

    def _tell(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._say(self._news.get_nowait())

    def _end(self) -> None:
        """Leave nothing running: neither the child nor wandb-core, which is in the child's session."""
        if not self._done:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()


_TABLES = "the sweep's own tables are complete"


def _close_seconds() -> float:
    with contextlib.suppress(ValueError):
        return float(os.environ.get("WANDB_INIT_TIMEOUT", 8)) + 7
    return 15.0


def _plain(values: Any) -> list:
    return np.asarray(values).tolist()


def _encode(value: Any) -> float | str:
    return float(value) if hasattr(value, "__float__") else str(value)  # bfloat16; a path in a config

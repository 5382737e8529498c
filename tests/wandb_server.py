"""A small W&B server on the loopback interface: it accepts runs, keeps what it was sent, and can fall silent.

    with WandbServer() as server:
        ...  # processes with the environment `server.env` log here
        server.runs["abcd-0000"].history

It answers only what wandb 0.31 asks while a run is logged, what its public API asks when runs are read back, what
wandb-workspaces asks when it saves, and what `wandb sweep` and `wandb agent` ask: it hands out the combinations of a
grid, one at a time, and then tells the agent to go. A blanket `{"data": {}}` would crash wandb-core.
"""

import contextlib
import dataclasses
import http.server
import itertools
import json
import os
import re
import threading
import time
import urllib.parse
from collections.abc import Generator
from pathlib import Path

import pytest
import yaml

API_KEY = "0123456789" * 4  # wandb refuses a key of fewer than 40 characters before it asks any server

FILE_STREAM = re.compile(r"/files/(?P<entity>[^/]+)/(?P<project>[^/]+)/(?P<run>[^/]+)/file_stream")


@dataclasses.dataclass
class ReceivedRun:
    """What one run has sent. `bucket` holds the GraphQL variables of every UpsertBucket, merged."""

    bucket: dict = dataclasses.field(default_factory=dict)
    lines: dict[str, dict[int, str]] = dataclasses.field(default_factory=dict)  # file name -> offset -> line
    times: dict[tuple[str, int], float] = dataclasses.field(default_factory=dict)  # (file, offset) -> when it came
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)  # uploaded ones: images, tables
    exit_code: int | None = None

    def receive(self, file: str, offset: int, content: list[str]) -> None:
        """Keep lines by their offset: what was there is replaced."""
        for position, line in enumerate(content, offset):
            self.lines.setdefault(file, {})[position] = line
            self.times[file, position] = time.monotonic()

    def rows(self, file: str, lag: float = 0.0) -> list[str]:
        """The lines of one file in order, without those that came less than `lag` seconds ago."""
        until = time.monotonic() - lag
        return [line for at, line in sorted(self.lines.get(file, {}).items()) if self.times[file, at] <= until]

    @property
    def config(self) -> dict:
        """The run's configuration, without W&B's own entry."""
        config = json.loads(self.bucket["config"])
        return {name: entry["value"] for name, entry in config.items() if name != "_wandb"}

    @property
    def history(self) -> list[dict]:
        """The logged rows in order."""
        return [json.loads(line) for line in self.rows("wandb-history.jsonl")]

    @property
    def summary(self) -> dict:
        """The last summary."""
        return json.loads(max(self.lines["wandb-summary.json"].items())[1])


@dataclasses.dataclass
class RegisteredSweep:
    """A sweep that `wandb sweep` has made: its YAML, where it is, and the runs that no agent has asked for yet."""

    config: dict
    project: str
    waiting: list[dict] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        axes = self.config["parameters"] if self.config["method"] == "grid" else {}
        of_each = [axis.get("values", [axis.get("value")]) for axis in axes.values()]
        for values in itertools.product(*of_each) if axes else ():
            # a whole number is an integer on its way through W&B's server
            plain = [int(v) if isinstance(v, float) and v.is_integer() else v for v in values]
            args = {name: {"value": value} for name, value in zip(axes, plain, strict=True)}
            command = {"type": "run", "run_id": f"trial{len(self.waiting)}", "program": self.config["program"]}
            self.waiting.append(command | {"args": args})


class WandbServer:
    """Answers until it falls silent: from then on it accepts connections and never answers them.

    With `trouble` it answers nothing either: a number is the HTTP status of every answer, "closed" ends every
    connection without one. `die` stops to listen.

    Asked what it has of a run, it knows nothing of the last `lag` seconds, as W&B does not. It answers a question
    (GraphQL, not rows) after `delay` seconds.
    """

    def __init__(self, silent: bool = False, lag: float = 0.0):
        self.lag, self.delay = lag, 0.0
        self.trouble: int | str | None = None
        self.runs: dict[str, ReceivedRun] = {}
        self.sweeps: dict[str, RegisteredSweep] = {}
        self.artifacts: list[dict] = []  # the input of every CreateArtifact
        self.artifact_files: dict[str, bytes] = {}
        self.views: list[dict] = []  # workspaces and reports: the variables that each was saved with
        self.unknown: list[str] = []
        self._answers = threading.Event()
        self._closing = threading.Event()
        if not silent:
            self._answers.set()
        self._http = _Http(("127.0.0.1", 0), type("Handler", (_Handler,), {"server_state": self}))
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def env(self) -> dict[str, str]:
        """The environment variables that point wandb here, and give it time: on a busy machine a start takes seconds,
        and the 8 after which runs are recorded offline.
        """
        url = f"http://127.0.0.1:{self._http.server_port}"
        return {"WANDB_BASE_URL": url, "WANDB_API_KEY": API_KEY, "WANDB_INIT_TIMEOUT": "60"}

    def fall_silent(self) -> None:
        """Accept requests and answer none from now on."""
        self._answers.clear()

    def die(self) -> None:
        """Refuse connections from now on, and end those that are there."""
        self.trouble = "closed"
        self._http.shutdown()
        self._http.server_close()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._closing.set()
        self._answers.set()
        self._http.shutdown()
        self._http.server_close()


def _own_config(config: str) -> dict:
    """W&B's own entry of a run's configuration."""
    return json.loads(config).get("_wandb", {}).get("value", {})


class _Http(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Say nothing when a client goes without a goodbye."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: WandbServer

    def _troubled(self) -> bool:
        """Whether the server is in trouble, which is then the answer."""
        trouble = self.server_state.trouble
        if isinstance(trouble, int):
            self.send_error(trouble)
        self.close_connection = self.close_connection or trouble is not None
        return trouble is not None

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server_state._answers.wait()
        if self._troubled():
            return
        if self.server_state._closing.is_set():
            self.close_connection = True
        elif self.path == "/graphql":
            time.sleep(self.server_state.delay)
            self._reply(self._graphql(json.loads(body)))
        elif match := FILE_STREAM.fullmatch(self.path):
            self._file_stream(match["run"], json.loads(body))
            self._reply({"exitcode": None, "limits": {}})
        elif self.path.startswith("/sdk/otel/"):
            self._reply({})
        else:
            self.server_state.unknown.append(f"POST {self.path}")
            self._reply({})

    def do_PUT(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server_state._answers.wait()
        if self._troubled():
            return
        owner, name = urllib.parse.unquote(self.path).removeprefix("/upload/").split("/", 1)
        run = self.server_state.runs.get(owner)
        (self.server_state.artifact_files if run is None else run.files)[name] = body
        self._reply({})

    def do_GET(self):
        self.server_state.unknown.append(f"GET {self.path}")
        self.send_error(404)

    def _graphql(self, request: dict) -> dict:
        query, variables = request["query"], request.get("variables") or {}
        asked = re.search(r"(?:query|mutation)\s+(\w+)", query)
        operation = asked[1] if asked else query
        if operation in ("Viewer", "GetViewer"):
            teams = {"edges": [{"node": {"name": "team"}}]}
            viewer = {"id": "user", "entity": "tester", "username": "tester", "flags": "{}", "teams": teams}
            viewer |= {"name": "tester", "email": None, "admin": False, "deletedAt": None, "apiKeys": None}
            return {"data": {"viewer": viewer}}
        if operation == "ServerFeaturesQuery":
            return {"data": {"serverInfo": {"features": []}}}
        if operation == "OrganizationCoreWeaveOrganizationID":
            return {"data": {"entity": {"organization": {"coreWeaveOrganizationId": None}}}}
        if operation == "UpsertBucket":
            run = self.server_state.runs.setdefault(variables["name"], ReceivedRun())
            new = not run.bucket
            run.bucket |= {name: value for name, value in variables.items() if value is not None}
            bucket = {
                "id": f"storage-{variables['name']}",
                "name": variables["name"],
                "displayName": run.bucket.get("displayName"),
                "description": None,
                "config": run.bucket.get("config", "{}"),
                "sweepName": run.bucket.get("sweep"),
                "project": self._project(run.bucket.get("project", "uncategorized")),
                "historyLineCount": len(run.rows("wandb-history.jsonl", self.server_state.lag)),
            }
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": new}}}
        if operation == "RunResumeStatus":
            run = self.server_state.runs.get(variables["name"])
            bucket = run and self._resume_status(variables["name"], run)
            return {"data": {"model": self._project(variables["project"]) | {"bucket": bucket}}}
        if operation == "CreateRunFiles":
            host = f"http://127.0.0.1:{self.server.server_port}"
            urls = {name: f"{host}/upload/{variables['run']}/{urllib.parse.quote(name)}" for name in variables["files"]}
            files = [{"name": name, "uploadUrl": url} for name, url in urls.items()]
            created = {"runID": "run", "uploadHeaders": [], "files": files}
            return {"data": {"createRunFiles": created}}
        if operation in ("UpsertSweep", "SweepWithRuns", "CreateAgent", "Heartbeat"):
            return {"data": self._sweep(operation, variables)}
        if (answer := self._read_back(operation, variables)) is not None:
            return {"data": answer}
        if (answer := self._artifact(operation, variables)) is not None:
            return {"data": answer}
        if operation in ("upsertView", "UpsertView2", "ProjectInternalId", "GetProjects"):
            return {"data": self._view(operation, variables)}
        self.server_state.unknown.append(operation)
        return {"data": {}, "errors": [{"message": f"this test server does not know {operation}"}]}

    def _project(self, name: str) -> dict:
        return {"id": "project", "name": name, "entity": {"id": "entity", "name": "tester"}}

    def _resume_status(self, name: str, run: ReceivedRun) -> dict:
        """What W&B tells a process that asks whether it goes on with a run: what the run has, and the ends of it."""
        config = run.bucket.get("config", "{}")
        history, events, summary, log = (
            run.rows(file, self.server_state.lag)
            for file in ("wandb-history.jsonl", "wandb-events.jsonl", "wandb-summary.json", "output.log")
        )
        return {
            "id": f"storage-{name}",
            "name": name,
            "displayName": run.bucket.get("displayName"),
            "summaryMetrics": (summary or ["{}"])[-1],
            "logLineCount": len(log),
            "historyLineCount": len(history),
            "eventsLineCount": len(events),
            "historyTail": json.dumps(history[-1:]),
            "eventsTail": json.dumps(events[-1:]),
            "config": config,
            "tags": [],
            "notes": None,
            # only a run that a process has started has it, not one that a sweep has planned
            "wandbConfig": json.dumps({key: value for key, value in _own_config(config).items() if key == "t"}),
        }

    def _read_back(self, operation: str, variables: dict) -> dict | None:
        """What wandb's public API asks of runs."""
        if operation in ("Run", "RunHistoryKeys"):
            run = self.server_state.runs.get(variables["name"])
            return {"project": {"run": run and self._described(variables["name"], run)}}
        if operation == "RunParquetHistory":  # all is live, nothing is exported yet
            live = [{"_step": row["_step"]} for row in self.server_state.runs[variables["runName"]].history]
            return {"project": {"run": {"parquetHistory": {"parquetUrls": [], "liveData": live}}}}
        if operation == "HistoryPage":
            steps = range(variables["minStep"], variables["maxStep"])
            rows = self.server_state.runs[variables["run"]].rows("wandb-history.jsonl")
            return {"project": {"run": {"history": [row for row in rows if json.loads(row)["_step"] in steps]}}}
        if operation == "Runs":
            if variables["entity"] != "tester":
                return {"project": None}
            filters = json.loads(variables["filters"])
            found = {
                name: run
                for name, run in self.server_state.runs.items()
                if run.bucket.get("project", "uncategorized") == variables["project"]
                and run.bucket.get("groupName") == filters.get("group", run.bucket.get("groupName"))
                and re.search(filters.get("name", {}).get("$regex", ""), name)
            }
            names = sorted(found)
            after = int(variables.get("cursor") or 0)
            page = names[after : after + variables["perPage"]]
            end = after + len(page)
            edges = [{"node": self._described(name, found[name]), "cursor": str(end)} for name in page]
            info = {"endCursor": str(end), "hasNextPage": end < len(names)}
            runs = {"edges": edges, "pageInfo": info}
            return {"project": {"internalId": "1", "runCount": len(names), "readOnly": False, "runs": runs}}
        return None

    def _described(self, name: str, run: ReceivedRun) -> dict:
        """A run, as the public API reads it."""
        history, summary = (
            run.rows(file, self.server_state.lag) for file in ("wandb-history.jsonl", "wandb-summary.json")
        )
        steps = [json.loads(row)["_step"] for row in history]
        return {
            "id": f"storage-{name}",
            "projectId": "1",
            "name": name,
            "displayName": run.bucket.get("displayName"),
            "sweepName": run.bucket.get("sweep"),
            "state": "running" if run.exit_code is None else "failed" if run.exit_code else "finished",
            "config": run.bucket.get("config", "{}"),
            "group": run.bucket.get("groupName"),
            "jobType": run.bucket.get("jobType"),
            "tags": run.bucket.get("tags") or [],
            "commit": None,
            "readOnly": False,
            "createdAt": "2026-01-01T00:00:00",
            "heartbeatAt": "2026-01-01T00:00:00",
            "description": None,
            "notes": None,
            "systemMetrics": "{}",
            "summaryMetrics": (summary or ["{}"])[-1],
            "historyLineCount": len(history),
            "user": {"name": "tester", "username": "tester"},
            "historyKeys": {"lastStep": max(steps)} if steps else None,
        }

    def _artifact(self, operation: str, variables: dict) -> dict | None:
        """What wandb-core asks when it uploads an artifact; a table is one too."""
        if operation == "ArtifactType":
            return {"project": {"artifact": None}}
        if operation == "CreateArtifact":
            self.server_state.artifacts.append(variables["input"])
            sequence = {"latestArtifact": None}
            name = f"artifact{len(self.server_state.artifacts)}"
            return {"createArtifact": {"artifact": {"id": name, "state": "PENDING", "artifactSequence": sequence}}}
        host = f"http://127.0.0.1:{self.server.server_port}"
        if operation in ("CreateArtifactManifest", "UpdateArtifactManifest"):
            run, name = variables.get("runName", "artifacts"), urllib.parse.quote(variables["name"])
            file = {"id": "file", "uploadUrl": f"{host}/upload/{run}/{name}", "uploadHeaders": []}
            what = operation[0].lower() + operation[1:]
            return {what: {"artifactManifest": {"id": "manifest", "file": file}}}
        if operation == "CreateArtifactFiles":
            nodes = [
                {
                    "id": "file",
                    "name": spec["name"],
                    "displayName": spec["name"],
                    "uploadUrl": f"{host}/upload/{spec['artifactID']}/{urllib.parse.quote(spec['name'])}",
                    "uploadHeaders": [],
                    "uploadMultipartUrls": None,
                    "storagePath": f"wandb_artifacts/{spec['name']}",
                    "artifact": {"id": spec["artifactID"]},
                }
                for spec in variables["input"]["artifactFiles"]
            ]
            return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
        if operation == "CommitArtifact":
            return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": ""}}}
        return None

    def _view(self, operation: str, variables: dict) -> dict:
        """Save a workspace or a report."""
        if operation == "GetProjects":
            names = sorted({run.bucket.get("project", "uncategorized") for run in self.server_state.runs.values()})
            node = {"__typename": "Project", "entityName": "tester", "createdAt": "2026-01-01T00:00:00"}
            edges = [{"node": node | {"id": name, "name": name, "isBenchmark": False, "user": None}} for name in names]
            info = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
            return {"models": {"pageInfo": info, "edges": edges}}
        if operation == "ProjectInternalId":
            return {"project": {"id": "project", "internalId": "1"}}
        self.server_state.views.append(variables)
        view = {name: variables.get(name) for name in ("type", "name", "displayName", "description", "spec")}
        view |= {"id": f"view{len(self.server_state.views)}", "updatedAt": "2026-01-01T00:00:00"}
        view |= {"createdAt": "2026-01-01T00:00:00", "user": None}
        return {"upsertView": {"view": view | {"project": self._project("lab")}, "inserted": True}}

    def _sweep(self, operation: str, variables: dict) -> dict:
        sweeps = self.server_state.sweeps
        if operation == "UpsertSweep":
            name, project = f"sweep{len(sweeps)}", variables["projectName"]
            sweeps[name] = RegisteredSweep(yaml.safe_load(variables["config"]), project)
            found = {"name": name, "project": self._project(project)}
            return {"upsertSweep": {"sweep": found, "configValidationWarnings": []}}
        if operation == "SweepWithRuns":
            config = yaml.safe_dump(sweeps[variables["sweep"]].config)
            found = {"id": variables["sweep"], "name": variables["sweep"], "config": config, "runs": {"edges": []}}
            return {"project": {"sweep": found}}
        if operation == "CreateAgent":
            return {"createAgent": {"agent": {"id": variables["sweep"]}}}
        waiting, commands = sweeps[variables["id"]].waiting, []
        if not json.loads(variables["runState"]):  # the agent is idle
            commands = [waiting.pop(0) if waiting else {"type": "exit"}]
        return {"agentHeartbeat": {"agent": {"id": variables["id"]}, "commands": json.dumps(commands)}}

    def _file_stream(self, name: str, body: dict) -> None:
        run = self.server_state.runs.setdefault(name, ReceivedRun())
        for file, chunk in (body.get("files") or {}).items():
            run.receive(file, chunk["offset"], chunk["content"])
        if body.get("complete"):
            run.exit_code = body.get("exitcode")

    def _reply(self, answer: dict) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing: the tests read `WandbServer.runs`."""


@contextlib.contextmanager
def in_process(server: WandbServer, home: Path) -> Generator[WandbServer]:
    """A server that wandb talks to in this process, whatever the user has configured."""
    import wandb

    with server, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
            patch.delenv(name)
        patch.setenv("HOME", str(home))
        for name, value in server.env.items():
            patch.setenv(name, value)
        yield server
        wandb.teardown()

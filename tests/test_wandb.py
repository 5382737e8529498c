"""W&B as a sink, against wandb itself: what arrives, and what happens when W&B is slow, silent, full or dead."""

import contextlib
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from wandb_server import API_KEY, WandbServer

from sae.core.types import UserError
from sae.wandb import client as wandb_client
from sae.wandb.client import Client
from sae.wandb.process import _shortened
from sae.wandb.settings import check_place, resolve_mode

REPOSITORY = pathlib.Path(__file__).parents[1]
MEMBERS = [0, 1, 12]
CONFIGS = [
    {"penalty.l1": 0.1 * m, "seed": m, "activation": "relu", "tied": True, "sizes": [1, 2], "cap": None}
    for m in MEMBERS
]
NAMES = [f"l1={0.1 * m:g}" for m in MEMBERS]
EDGES = np.linspace(-6, 0, 9)
HISTOGRAM = "eval/firing_rate_histogram"


@pytest.fixture(autouse=True)
def no_wandb_settings(monkeypatch, tmp_path):
    """No key, no settings and no home of the person who runs the tests."""
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def lines():
    """What the sink said."""
    return []


@pytest.fixture
def sink(tmp_path, lines):
    """Start a sink in a mode, and leave no process behind."""
    sinks = []

    def start(mode):
        sinks.append(Client(tmp_path / "out", mode=mode, project="lab", group="widths", token="tok", say=lines.append))
        return sinks[-1]

    yield start
    for sink in sinks:
        sink.close(timeout=0)


def chunk(step):
    """Values of one chunk; member 12 has diverged from step 20 on."""
    rng = np.random.default_rng(step)
    bad = math.nan if step >= 20 else 1.0
    return {
        "train/mse": rng.normal(size=3).astype(np.float32) * np.float32([1, 1, bad]),
        "train/fvu": [1 / 3, 1e-300, -math.inf if step >= 20 else 0.1],
        "train/dead": np.arange(3) * step,
    }


def counts():
    return np.arange(24).reshape(3, 8)


def log_all(sink, steps=(10, 20, 30)):
    """A whole sweep of one cohort."""
    sink.start_cohort(MEMBERS, CONFIGS, NAMES)
    for step in steps:
        sink.record(MEMBERS, step, step * 1024, chunk(step))
    values = {"eval/l0": np.array([1.5, 2.5, math.nan]), "eval/dead": [1, 2, 3]}
    sink.finish_cohort(MEMBERS, ["finished", "finished", "diverged"], values, {HISTOGRAM: (EDGES, counts())})


def assert_rows(rows, index, steps=(10, 20, 30)):
    """`rows` is the history of one member, with every value to the last bit."""
    assert [row["train/step"] for row in rows] == list(steps)
    for row, step in zip(rows, steps, strict=True):
        expected = {name: column[index] for name, column in chunk(step).items()}
        assert {name: float(row[name]) for name in expected} == pytest.approx(expected, rel=0, abs=0, nan_ok=True)
        assert row["train/examples"] == step * 1024


def inspect(folder):
    """The records of one run by wandb's own reader: a list of (type, content)."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [(record["type"], record.get(record["type"])) for record in map(json.loads, done.stdout.splitlines())]


def offline_run(folder, member, suffix=""):
    """What one offline run's file holds: run, history rows, summary, exit."""
    (path,) = folder.glob(f"offline-run-*-tok-{member:04d}{suffix}")
    records = inspect(path)
    summary = {}
    for kind, content in records:
        if kind == "summary":
            summary |= content.get("update", {})
    rows = [content["item"] for kind, content in records if kind == "history"]
    return next(c for k, c in records if k == "run"), rows, summary, next((c for k, c in records if k == "exit"), None)


def in_session(session):
    """The living processes of a session: the child is its leader, wandb-core a member."""
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            name, fields = stat.read_text().rsplit(")", 1)
        except OSError:
            continue
        state, _, _, its_session = fields.split()[:4]
        if int(its_session) == session and state not in "ZX":
            found.append(name)
    return found


def wait_until(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def test_offline_files_hold_every_value(sink, lines):
    wandb = sink("offline")
    log_all(wandb)
    wandb.close(timeout=180)
    assert lines == []
    assert in_session(wandb._child.pid) == []
    for index, member in enumerate(MEMBERS):
        run, (*rows, last), summary, end = offline_run(wandb.folder, member)
        assert run["run_id"] == wandb.run_id(member) == f"tok-{member:04d}"
        assert (run["project"], run["run_group"], run["job_type"]) == ("lab", "widths", "train")
        assert run["display_name"] == NAMES[index]
        config = run["config"]["update"]
        assert {name: config[name] for name in config if name != "_wandb"} == CONFIGS[index]
        assert_rows(rows, index)
        assert last[f"{HISTOGRAM}._type"] == "histogram"
        assert last[f"{HISTOGRAM}.bins"] == EDGES.tolist()
        assert last[f"{HISTOGRAM}.values"] == counts()[index].tolist()
        assert last["train/step"] == 30
        assert summary["eval/l0"] == [1.5, 2.5, None][index]  # wandb has no NaN in an explicit summary
        assert summary["eval/dead"] == index + 1
        assert summary["status"] == ["finished", "finished", "diverged"][index]
        assert end["exit_code"] == 0
    assert os.listdir(os.environ["HOME"]) == []  # nothing of W&B's outside the sweep's folder


def test_online_runs_arrive(sink, lines, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "of-the-agent")
    monkeypatch.setenv("WANDB_RUN_ID", "of-the-agent")
    with WandbServer() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        wandb = sink("online")
        wandb.start_cohort([5], [{"seed": 5}], ["never finished"])
        wait_until(lambda: "tok-0005" in server.runs)
        for signum in (signal.SIGINT, signal.SIGTERM):  # a whole job's signal does not take the last rows along
            os.kill(wandb._child.pid, signum)
        log_all(wandb)
        wandb.close(timeout=180)
        assert lines == []
        assert server.unknown == []
        assert sorted(server.runs) == ["tok-0000", "tok-0001", "tok-0005", "tok-0012"]
        assert server.runs["tok-0005"].exit_code == 1  # an interrupted sweep
        for index, member in enumerate(MEMBERS):
            run = server.runs[wandb.run_id(member)]
            assert (run.bucket["project"], run.bucket["groupName"], run.bucket["jobType"]) == ("lab", "widths", "train")
            assert run.bucket["displayName"] == NAMES[index]
            assert "sweep" not in run.bucket
            assert run.config == CONFIGS[index]
            *rows, last = run.history
            assert_rows(rows, index)
            bars = {"_type": "histogram", "bins": EDGES.tolist(), "values": counts()[index].tolist()}
            assert last[HISTOGRAM] == bars
            assert run.summary.get("eval/l0") == [1.5, 2.5, None][index]
            assert run.summary["status"] == ["finished", "finished", "diverged"][index]
            assert run.exit_code == 0


# runs that go on after they were stopped


@pytest.fixture
def online(monkeypatch):
    """A server that knows of what it got after two seconds, to which all sinks of the test send."""
    with WandbServer(lag=2.0) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "1")  # seconds, whole ones; not 15
        yield server


def record(sink, steps):
    """What a sweep does up to some step."""
    sink.start_cohort(MEMBERS, CONFIGS, NAMES)
    for step in steps:
        sink.record(MEMBERS, step, step * 1024, chunk(step))


def has_rows(server, n):
    """Whether each member's run has `n` of them on the server."""
    return len(server.runs) == 3 and all(len(run.rows("wandb-history.jsonl")) == n for run in server.runs.values())


def wait_for_rows(server, n, client, seconds=90):
    """Until the server has `n` rows of each run; where they do not come, tell what there is to know of why."""
    deadline = time.monotonic() + seconds
    while not has_rows(server, n):
        if time.monotonic() > deadline:
            has = {name: len(run.rows("wandb-history.jsonl")) for name, run in server.runs.items()}
            logs = {
                str(path.relative_to(client.folder)): path.read_text()[-2_000:]
                for path in client.folder.glob("**/*debug*.log")
            }
            state = f"ended {client._child.poll()}, processes {in_session(client._child.pid)}"
            pytest.fail(f"rows {has}, {n} of each of 3 wanted; {state}; unknown {server.unknown}; {logs}")
        time.sleep(0.05)


def assert_whole(server, steps, suffix=""):
    """Every member's run has the rows of every step once, in order, the summary of a finished run and its end."""
    assert server.unknown == []
    for index, member in enumerate(MEMBERS):
        run = server.runs[f"tok-{member:04d}{suffix}"]
        assert sorted(run.lines["wandb-history.jsonl"]) == list(range(len(steps) + 1))
        *rows, last = run.history
        assert_rows(rows, index, steps)
        assert [row["_step"] for row in [*rows, last]] == [*steps, steps[-1] + 1]
        assert HISTOGRAM in last and last["train/step"] == steps[-1]
        assert run.config == CONFIGS[index]
        assert (run.summary["train/step"], run.summary["train/dead"]) == (steps[-1], index * steps[-1])
        assert run.summary["status"] == ["finished", "finished", "diverged"][index]
        assert run.exit_code == 0


@pytest.mark.parametrize("received", [0, 2, 5], ids=lambda n: f"{n}-rows")
def test_rows_that_the_server_has_are_not_sent_again(online, sink, lines, received):
    """After a kill -9, all rows are recorded again, whichever the server has: none, some, or all but the last row."""
    steps = (10, 20, 30, 40, 50)
    wandb = sink("online")
    record(wandb, steps[:received])
    wait_for_rows(online, received, wandb)
    os.killpg(wandb._child.pid, signal.SIGKILL)
    wandb = sink("online")
    log_all(wandb, steps)
    wandb.close(timeout=180)
    assert lines == []
    assert_whole(online, steps)
    assert len(list(wandb.folder.glob("run-*"))) == 3, "what was stopped is in the new folders, or on the server"


def test_a_run_goes_on_twice(online, sink, lines):
    """Stopped, and stopped again before it was where it had been."""
    for stop in (20, 10, 30):
        wandb = sink("online")
        record(wandb, range(10, stop + 10, 10))
        wandb.close(timeout=180)
    wandb = sink("online")
    log_all(wandb, (10, 20, 30, 40))
    wandb.close(timeout=180)
    assert lines == []
    assert_whole(online, (10, 20, 30, 40))


def test_the_process_of_a_killed_sweep_is_waited_for(online, sink, lines):
    """It lives on, for the rows that it has in its pipe, and the server gets them after the sweep goes on."""
    before = sink("online")
    record(before, [10])
    wait_for_rows(online, 1, before)
    os.kill(before._child.pid, signal.SIGSTOP)
    before.record(MEMBERS, 20, 20 * 1024, chunk(20))
    before._queue.put(None)
    wandb = sink("online")
    log_all(wandb)
    time.sleep(2)
    assert has_rows(online, 1)
    os.kill(before._child.pid, signal.SIGCONT)
    wandb.close(timeout=180)
    assert lines == []
    assert_whole(online, (10, 20, 30))


def test_parts_of_a_sweep_do_not_wait_for_each_other(tmp_path, lines):
    where = {"mode": "offline", "project": "lab", "group": "widths", "token": "tok", "say": lines.append}
    first, second = (Client(tmp_path / "out", **where, cohorts=[cohort]) for cohort in (0, 1))
    try:
        first.start_cohort([0], CONFIGS[:1], NAMES[:1])
        wait_until(lambda: list(first.folder.glob("offline-run-*-tok-0000")))
        second.start_cohort([1], CONFIGS[1:2], NAMES[1:2])
        second.close(timeout=180)
        assert first._child.poll() is None and lines == []
        assert offline_run(second.folder, 1)[3]["exit_code"] == 1
    finally:
        first.close(timeout=0)


def test_a_run_that_began_online_goes_on_offline_as_another(online, sink, lines):
    """The rows of an offline run are appended by `wandb sync` to what the server has."""
    for mode in ("online", "offline"):
        wandb = sink(mode)
        record(wandb, (10, 20))
        wandb.close(timeout=180)
    wandb = sink("offline")
    log_all(wandb)
    wandb.close(timeout=180)
    assert lines == []
    assert not list(wandb.folder.glob("run-*"))
    folders = list(wandb.folder.glob("offline-run-*"))
    command = [sys.executable, "-m", "wandb", "sync", *folders]
    done = subprocess.run(command, capture_output=True, text=True)
    assert len(folders) == 3 and done.returncode == 0, done.stdout + done.stderr
    assert_whole(online, (10, 20, 30), suffix="-offline")
    wandb = sink("online")
    log_all(wandb)
    wandb.close(timeout=180)
    assert lines == []  # or the rows that the server lacks are offline
    assert_whole(online, (10, 20, 30))
    assert not list(wandb.folder.glob("offline-run-*"))


def test_a_run_whose_server_is_too_slow_when_it_goes_on_is_told_of(online, sink, lines, monkeypatch):
    """The server keeps what it had, an offline run has every row, and the next start brings them."""
    wandb = sink("online")
    record(wandb, (10, 20))
    wandb.close(timeout=180)
    assert lines == []
    online.delay = 4.0
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    wandb = sink("online")
    log_all(wandb)
    wandb.close(timeout=180)
    (line,) = lines
    assert line.startswith("W&B does not answer or refuses (CommError: ") and "to upload them: sae sync " in line
    for index, member in enumerate(MEMBERS):
        assert sorted(online.runs[f"tok-{member:04d}"].lines["wandb-history.jsonl"]) == [0, 1]
        _, (*rows, _), _, end = offline_run(wandb.folder, member, "-offline")
        assert_rows(rows, index)
        assert end["exit_code"] == 0
    lines.clear()
    online.delay = 0.0
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "60")
    wandb = sink("online")
    log_all(wandb)
    wandb.close(timeout=180)
    assert lines == []
    assert_whole(online, (10, 20, 30))


# a server that is slow, silent or not there; a disk that is full; processes that die


def test_a_silent_server_is_not_waited_for(sink, lines, monkeypatch, tmp_path):
    with WandbServer(silent=True) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("WANDB_INIT_TIMEOUT", "60")
        wandb = sink("online")
        log_all(wandb, steps=range(200))
        assert wandb._child.poll() is None  # every call came back while the child waits for the server
        assert server.runs == {}
        wandb.close(timeout=3)
    (line,) = lines
    assert "W&B is still not done after 3 s" in line
    assert "tables are complete" in line
    assert f"to upload what it lacks: sae sync {tmp_path / 'out'}" in line
    assert "\n" not in line
    assert in_session(wandb._child.pid) == []


TROUBLES = {
    "silent": WandbServer.fall_silent,
    "gone": WandbServer.die,
    "closing": lambda server: setattr(server, "trouble", "closed"),
    "busy": lambda server: setattr(server, "trouble", 429),
}


LONG = [pytest.param(trouble, marks=pytest.mark.long) for trouble in ("gone", "closing")]


@pytest.mark.parametrize("trouble", ["silent", "busy", *LONG])
def test_a_server_that_is_in_trouble_midway_is_told_of_once(trouble, sink, lines, monkeypatch, tmp_path):
    """The runs are stopped, and the line names what brings the rest (tests/test_wandb_commands.py runs it)."""
    with WandbServer() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("WANDB_INIT_TIMEOUT", "10")  # the first three runs start in it
        wandb = sink("online")
        wandb.start_cohort(MEMBERS, CONFIGS, NAMES)
        wait_until(lambda: len(server.runs) == 3)
        TROUBLES[trouble](server)
        for step in (10, 20, 30):
            wandb.record(MEMBERS, step, step * 1024, chunk(step))
        wandb.start_cohort([13], CONFIGS[:1], ["later"])
        wandb.record([13], 10, 10240, {name: column[:1] for name, column in chunk(10).items()})
        wait_until(lambda: wandb._news.qsize())  # the late run is given up, then
        wandb.close(timeout=2)
    (line,) = lines
    assert "does not answer" in line and line.endswith(f"sae sync {tmp_path / 'out'}")
    assert in_session(wandb._child.pid) == []


def test_a_refused_port_turns_the_runs_offline(sink, lines, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    wandb = sink("online")
    log_all(wandb)
    assert wandb._child.poll() is None
    wandb.close(timeout=180)
    (line,) = lines
    assert line.startswith("W&B does not answer or refuses (CommError: ")
    _, (*rows, _), _, end = offline_run(wandb.folder, 12)
    assert_rows(rows, 2)
    assert end["exit_code"] == 0


def test_a_stuck_child_stops_nobody(sink, lines):
    """The pipe to the child is full, and still no call waits."""
    wandb = sink("offline")
    os.kill(wandb._child.pid, signal.SIGSTOP)
    log_all(wandb, steps=range(2000))
    assert wandb._queue.qsize() > 0
    wandb.close(timeout=0.5)
    (line,) = lines
    assert "still not done" in line
    assert in_session(wandb._child.pid) == []


def test_a_child_that_dies_is_reported_once(sink, lines):
    wandb = sink("offline")
    wandb.start_cohort(MEMBERS, CONFIGS, NAMES)
    wait_until(lambda: len(list(wandb.folder.glob("offline-run-*"))) == 3)
    os.kill(wandb._child.pid, signal.SIGKILL)
    wait_until(lambda: in_session(wandb._child.pid) == [])
    wait_until(wandb._gone.is_set)
    for step in range(100):
        wandb.record(MEMBERS, step, step, chunk(step))
    assert wandb._queue.qsize() == 0
    wandb.close()
    (line,) = lines
    assert "W&B is lost: its process ended with exit code -9" in line


def test_a_wandb_core_that_dies_is_reported(sink, lines):
    wandb = sink("offline")
    wandb.start_cohort(MEMBERS, CONFIGS, NAMES)
    wait_until(lambda: len(list(wandb.folder.glob("offline-run-*"))) == 3)
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        if "(wandb-core)" in stat.read_text() and os.getsid(int(stat.parent.name)) == wandb._child.pid:
            os.kill(int(stat.parent.name), signal.SIGKILL)
    log_all(wandb)
    wandb.close(timeout=180)
    (line,) = lines
    assert line.startswith("W&B lost 3 of 3 runs (tok-0000: ")
    assert in_session(wandb._child.pid) == []


def test_a_broken_installation_is_reported(sink, lines, monkeypatch, tmp_path):
    (tmp_path / "wandb.py").write_text("raise ImportError('no wandb here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    wandb = sink("offline")
    log_all(wandb)
    wandb.close(timeout=180)
    (line,) = lines
    assert line.startswith("W&B is lost: ImportError: no wandb here, see ")


def test_what_fails_for_one_run_stops_no_other(sink, lines):
    wandb = sink("offline")
    wandb.start_cohort([0, 1], [{}, {}], ["good", "bad"])
    wandb.record([0, 1], 10, 10, {"train/mse": [1.0]})  # no value for member 1
    wandb.record([0, 1], 20, 20, {"train/mse": [2.0, 3.0]})
    wandb.finish_cohort([0, 1], ["finished"] * 2, {}, {})
    wandb.close(timeout=180)
    (line,) = lines
    assert line.startswith("W&B lost 1 of 2 runs (tok-0001: IndexError: list index out of range; more in ")
    assert "Traceback" in wandb.log.read_text()
    for member, mse in [(0, [1.0, 2.0]), (1, [3.0])]:
        _, rows, _, end = offline_run(wandb.folder, member)
        assert [row["train/mse"] for row in rows] == mse
        assert end["exit_code"] == 0


def test_what_the_child_says_last_is_told_however_late_it_is_read(sink, lines, monkeypatch):
    read = Client._read

    def late(client):
        """Our side gets no time until the child has been gone for a while."""
        wait_until(lambda: client._child.poll() is not None)
        time.sleep(2)
        read(client)

    monkeypatch.setattr(Client, "_read", late)
    wandb = sink("offline")
    wandb.start_cohort([0], [{}], ["bad"])
    wandb.record([0], 10, 10, {"train/mse": []})
    wandb.close(timeout=180)
    (line,) = lines
    assert line.startswith("W&B lost 1 of 1 runs (tok-0000: IndexError: list index out of range; more in ")


@pytest.mark.parametrize(("given", "seconds"), [(None, 15), ("60", 67), ("soon", 15)])
def test_the_end_waits_longer_than_a_start_may_take(given, seconds, monkeypatch):
    if given:
        monkeypatch.setenv("WANDB_INIT_TIMEOUT", given)
    assert wandb_client._close_seconds() == seconds


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_noticed(sink, lines, monkeypatch, tmp_path):
    (tmp_path / "small").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path / "small"], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        monkeypatch.setenv("WANDB_DIR", str(tmp_path / "small"))
        wandb = sink("offline")
        log_all(wandb, steps=range(300))
        wandb.close(timeout=180)
        (line,) = lines
        assert "W&B lost 3 of 3 runs (tok-0000: OSError: " in line
        assert "is the disk full?" in line
        assert in_session(wandb._child.pid) == []
    finally:
        subprocess.run(["umount", "-l", tmp_path / "small"], check=True)


def test_a_folder_that_cannot_be_made_is_noticed(sink, lines, monkeypatch):
    monkeypatch.setenv("WANDB_DIR", "/dev/null/w")
    wandb = sink("offline")
    log_all(wandb)
    wandb.close()
    (line,) = lines
    assert "W&B is lost: [Errno 20] Not a directory: '/dev/null/w/wandb'" in line


KILLED_PARENT = """
import pathlib, sys, time
from test_wandb import CONFIGS, MEMBERS, NAMES, Client, chunk
sink = Client(pathlib.Path(sys.argv[1]), mode="offline", project="lab", group="widths", token="tok", say=print)
sink.start_cohort(MEMBERS, CONFIGS, NAMES)
for step in (10, 20, 30):
    sink.record(MEMBERS, step, step * 1024, chunk(step))
while sink._queue.qsize():
    time.sleep(0.01)
assert "wandb" not in sys.modules
print(sink._child.pid, flush=True)
time.sleep(60)
"""


def test_a_killed_sweep_leaves_its_rows_and_no_process(tmp_path):
    env = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"}
    command = [sys.executable, "-c", KILLED_PARENT, tmp_path / "out"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        assert in_session(child)
        parent.kill()
    wait_until(lambda: in_session(child) == [])
    _, rows, _, end = offline_run(tmp_path / "out" / "wandb", 12)
    assert_rows(rows, 2)
    assert end["exit_code"] == 1


KEY = {"WANDB_API_KEY": API_KEY}
LOCAL = {"WANDB_BASE_URL": "http://127.0.0.1:8080"}
NETRC = "machine api.wandb.ai login user password " + API_KEY


@pytest.mark.parametrize(
    ("choice", "env", "netrc", "settings", "mode"),
    [
        ("off", KEY, "", "", None),
        ("offline", KEY, "", "", "offline"),
        ("online", KEY, "", "", "online"),
        ("auto", {}, "", "", "offline"),
        ("auto", KEY, "", "", "online"),
        ("auto", {}, NETRC, "", "online"),
        ("auto", LOCAL, NETRC, "", "offline"),  # a key for another host
        ("auto", LOCAL, NETRC.replace("api.wandb.ai", "127.0.0.1:8080"), "", "online"),
        ("auto", {}, "not a netrc file", "", "offline"),
        ("auto", {}, NETRC, "base_url = http://127.0.0.1:8080", "offline"),
        ("auto", KEY, "", "mode = offline", "offline"),
        ("auto", KEY | {"WANDB_MODE": "offline"}, "", "", "offline"),
        ("auto", KEY | {"WANDB_MODE": "dryrun"}, "", "", "offline"),
        ("auto", KEY | {"WANDB_MODE": "disabled"}, "", "", None),
        ("auto", KEY | {"WANDB_MODE": "online"}, "", "mode = offline", "online"),
        ("online", KEY | {"WANDB_MODE": "disabled"}, "", "", "online"),
        ("online", {}, "", "", UserError),
        ("auto", {"WANDB_MODE": "online"}, "", "", UserError),
        ("onlin", KEY, "", "", UserError),
    ],
)
def test_resolve_mode(choice, env, netrc, settings, mode, monkeypatch, tmp_path):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "home" / ".netrc").write_text(netrc)
    (tmp_path / "home" / ".config" / "wandb").mkdir(parents=True)
    (tmp_path / "home" / ".config" / "wandb" / "settings").write_text(f"[default]\n{settings}\n")
    if mode is UserError:
        with pytest.raises(UserError) as error:
            resolve_mode(choice, "lab")
        assert "\n" not in str(error.value)
        assert any(fix in str(error.value) for fix in ("wandb login", "close names: online"))
    else:
        assert resolve_mode(choice, "lab") == mode


def test_netrc_variable(monkeypatch, tmp_path):
    (tmp_path / "elsewhere").write_text(NETRC)
    monkeypatch.setenv("NETRC", str(tmp_path / "elsewhere"))
    assert resolve_mode("auto", "lab") == "online"


REFUSED = [
    (
        "t5/large",
        r"W&B project: got 't5/large', allowed: 1 to 128 characters, and none of / \\ # \? % :; for .* t5-large$",
    ),
    ("100%", "for example 100$"),
    ("a\nb", "for example a-b$"),
    ("p" * 129, f"for example {'p' * 128}$"),
    ("", r"none of / \\ # \? % :$"),
]


@pytest.mark.parametrize(("name", "said"), REFUSED)
def test_a_name_that_wandb_refuses_is_found_before_training(name, said):
    import wandb

    for choice in ("auto", "offline"):
        with pytest.raises(UserError, match=said):
            resolve_mode(choice, name)
    with pytest.raises(UserError, match=said.replace("project", "entity")):
        check_place("lab", name) if name else check_place("")
    assert resolve_mode("off", name) is None
    if name:
        with pytest.raises(wandb.errors.UsageError) if name != "a\nb" else contextlib.nullcontext():
            wandb.Settings(project=name)  # wandb has the same rules, but for line breaks


@pytest.mark.parametrize("name", ["p" * 128, "my lab", "t5-large", "größe_2.0"])
def test_a_name_that_wandb_takes_is_taken(name):
    assert resolve_mode("offline", name) == "offline"


def test_configured_names_are_checked_where_they_are_read(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_PROJECT", "the/agents")
    assert resolve_mode("offline", "lab") == "offline"  # a run that no agent started has its own
    with pytest.raises(UserError, match="W&B project: got 'the/agents'"):
        resolve_mode("offline", "lab", agent=True)
    (tmp_path / "home" / ".config" / "wandb").mkdir(parents=True)
    (tmp_path / "home" / ".config" / "wandb" / "settings").write_text("[default]\nentity = my/team\n")
    with pytest.raises(UserError, match="W&B entity: got 'my/team'.* for example my-team$"):
        resolve_mode("offline", "lab")
    monkeypatch.setenv("WANDB_ENTITY", "team:b")
    with pytest.raises(UserError, match="W&B entity: got 'team:b'"):
        resolve_mode("offline", "lab")


def test_names_that_are_too_long_keep_both_ends():
    long = "penalty.l1=0.1 " + "optimizer.lr=0.001 " * 10
    for limit in (64, 128):
        short = [_shortened(long + end, limit) for end in ("seed=0", "seed=1")]
        assert [len(name) for name in short] == [limit, limit]
        assert all(name.startswith("penalty.l1=0.1 ") for name in short)
        assert [name[-7:] for name in short] == [" seed=0", " seed=1"]
    assert _shortened("a" * 128, 128) == "a" * 128

"""A sweep that is stopped and goes on: W&B's server has every row of every member once."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from wandb_server import WandbServer

import sae

ROOT = pathlib.Path(__file__).parents[1]

DEFINITION = """
from sae import Adam, Digits, ElasticNet, Experiment, Sweep, grid

base = Experiment(
    name="long", data=Digits(), d_sae=64, penalty=ElasticNet(l1=0.3), batch_size=128, n_steps=10_000, dead_after=3_000,
    optimizer=Adam(lr=3e-3),
)
sweep = Sweep(name="long", members=grid(base, {"seed": (0, 1)}))
"""
COMMAND = [sys.executable, "-m", "sae.cli", "run", "long.py", "--out", "run", "--wandb", "online", "--no-report"]
COMMAND += ["--checkpoint-minutes", "0.01"]


@pytest.fixture
def server():
    with WandbServer(lag=2.0) as server:
        yield server


@pytest.fixture
def start(server, tmp_path):
    """Start the command, as a job of its own, and leave no process behind."""
    (tmp_path / "long.py").write_text(DEFINITION)
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_") and name != "NETRC"}
    env |= server.env | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    jobs = []

    def start(transmit="1") -> subprocess.Popen:  # seconds, whole ones, between two uploads
        job = subprocess.Popen(
            COMMAND, cwd=tmp_path, env=env | {"WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": transmit},
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        jobs.append(job)
        return job

    yield start
    for job in jobs:
        kill(job)


def wandb_process(job) -> int | None:
    """The child that drives W&B, which is the leader of its session."""
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            _, parent, _, session = stat.read_text().rsplit(")", 1)[1].split()[:4]
        except OSError:
            continue
        if int(parent) == job.pid and session == stat.parent.name:
            return int(session)


def kill(job) -> None:
    """Kill -9, and W&B's processes too, as a power cut does."""
    if job.poll() is None:
        child = wandb_process(job)
        for group in filter(None, (job.pid, child)):
            os.killpg(group, signal.SIGKILL)
        job.communicate()


def wait_until(condition, seconds=180):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def rows(run) -> list[dict]:
    return [row for row in map(json.loads, run.rows("wandb-history.jsonl")) if "train/mse" in row]


def last_step(server) -> int:
    """The last step of which the server has a row."""
    return max((row["train/step"] for run in server.runs.values() for row in rows(run)), default=0)


def last_checkpoint(folder) -> int:
    steps = [int(path.name) for path in (folder / "run" / "cohorts").glob("*/checkpoints/*") if path.name.isdigit()]
    return max(steps, default=0)


def pause(job, server, folder) -> None:
    """Let the sweep, and not its W&B process, stand still somewhere in its training, after a checkpoint."""
    wait_until(lambda: job.poll() is not None or last_checkpoint(folder))
    os.kill(job.pid, signal.SIGSTOP)
    wait_until(lambda: len(server.runs) == 2)
    time.sleep(3)  # for an upload, where there is one a second


def goes_on(job) -> None:
    _, err = job.communicate(timeout=300)
    assert job.returncode == 0 and "goes on from step" in err and "W&B" not in err, err


def assert_whole(server, folder) -> None:
    """Every member's history on the server is that of the tables, every row once and in order."""
    results = sae.load(folder / "run")
    assert server.unknown == [] and len(server.runs) == 3  # and that of the sweep
    for member in range(2):
        (run,) = (run for name, run in server.runs.items() if name.endswith(f"-{member:04d}"))
        received, history = rows(run), results.history[results.history.member == member]
        assert [row["_step"] for row in received] == list(history.step) and received[-1]["_step"] == 10_000
        for name in ("step", "examples", "train/mse", "train/fvu", "train/l0", "train/dead"):
            key = name if "/" in name else f"train/{name}"
            assert [row[key] for row in received] == history[name].tolist(), name
        summary = results.members.set_index("member").loc[member]
        assert (run.summary["status"], run.summary["eval/fvu"]) == ("finished", summary["eval/fvu"])
        assert run.summary["train/step"] == 10_000 and run.exit_code == 0


def test_a_signal_in_the_middle(server, start, tmp_path):
    job = start()
    pause(job, server, tmp_path)
    job.send_signal(signal.SIGTERM)
    os.kill(job.pid, signal.SIGCONT)
    _, err = job.communicate(timeout=180)
    assert job.returncode == 128 + signal.SIGTERM, err
    assert 0 < last_step(server) < 10_000
    goes_on(start())
    assert_whole(server, tmp_path)


@pytest.mark.long
def test_kill_9_of_the_sweep_alone(server, start, tmp_path):
    """Its W&B process still sends what it was told, while the sweep goes on from its last checkpoint."""
    job = start()
    pause(job, server, tmp_path)
    os.kill(job.pid, signal.SIGCONT)
    time.sleep(0.3)
    job.kill()
    job.communicate()
    goes_on(start())
    assert 0 < last_step(server)
    assert_whole(server, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize(
    "more",
    [pytest.param(True, id="server-has-more"), pytest.param(False, id="checkpoint-has-more")],
)
def test_kill_9_of_everything(server, start, tmp_path, more):
    job = start(transmit="1" if more else "60")
    pause(job, server, tmp_path)
    while more and last_step(server) <= last_checkpoint(tmp_path):
        os.kill(job.pid, signal.SIGCONT)
        time.sleep(0.1)
        pause(job, server, tmp_path)
    kill(job)
    assert (last_step(server) > last_checkpoint(tmp_path) > 0) is more
    assert last_step(server) < 10_000
    goes_on(start())
    assert_whole(server, tmp_path)

"""A run that is stopped anywhere goes on to the very results of a run that was not."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import sae
from sae import Adam, Digits, ElasticNet, Experiment, Resample, Sweep, UserError, grid
from sae.checkpoint import Checkpoints

ROOT = Path(__file__).parents[1]

DEFINITION = """
from sae import Adam, Digits, ElasticNet, Experiment, Resample, Sweep, grid

base = Experiment(
    name="long", data=Digits(), d_sae=64, penalty=ElasticNet(l1=0.3), batch_size=128, n_steps=5_000, dead_after=3_000,
    optimizer=Adam(lr=3e-3), revival=Resample(every=700, times=3, n_candidates=512),
)
sweep = Sweep(name="long", members=grid(base, {"d_sae": (64, 96), "penalty.l1": (0.1, 0.5), "seed": (0, 1)}))
"""
COMMAND = [sys.executable, "-m", "sae.cli", "run", "long.py", "--out", "run", "--checkpoint-minutes", "0.005"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    (folder / "long.py").write_text(DEFINITION)
    return folder


def start(folder, *flags) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    # its own session, as a job of its own: signals reach it alone
    return subprocess.Popen(
        [*COMMAND, *flags], cwd=folder, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def wait_for(process: subprocess.Popen, *words: str) -> None:
    """Until the process says one of the words."""
    said = []
    for line in process.stderr:
        said.append(line)
        if any(word in line for word in words):
            return
    raise AssertionError(f"never said {words}: {''.join(said)}")


@pytest.fixture(scope="module")
def whole(folder):
    """The run that nobody stopped, and how many seconds it trained."""
    process = start(folder, "--wandb", "off")
    wait_for(process, "compiled")
    began = time.monotonic()
    _, err = process.communicate()
    assert process.returncode == 0, err
    seconds = time.monotonic() - began
    (folder / "run").rename(folder / "whole")
    return sae.load(folder / "whole"), seconds


def same(a: sae.Results, b: sae.Results) -> None:
    pd.testing.assert_frame_equal(a.members, b.members, check_exact=True)
    pd.testing.assert_frame_equal(a.history, b.history, check_exact=True)
    assert not a.history.duplicated(["member", "step"]).any()
    for member in a.members.member:
        one, other = a.sae(member), b.sae(member)
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            np.testing.assert_array_equal(getattr(one, name)[...], getattr(other, name)[...])


def killed_at_random(folder, whole, kills: int, seed: int) -> int:
    """Kill -9 at random moments until the run gets through; how many of the kills met a checkpoint on the disk."""
    results, seconds = whole
    rng, resumed = random.Random(seed), 0
    shutil.rmtree(folder / "run", ignore_errors=True)
    for _ in range(kills):
        process = start(folder, "--wandb", "off")
        wait_for(process, "compiled", "finished already; nothing")
        time.sleep(rng.uniform(0, 0.5) * seconds)
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        resumed += any((folder / "run" / "checkpoints").rglob("_CHECKPOINT_METADATA"))
    process = start(folder, "--wandb", "off")
    _, err = process.communicate()
    assert process.returncode == 0, err
    same(sae.load(folder / "run"), results)
    return resumed


def test_kill_9_at_some_moments_changes_no_bit(folder, whole):
    assert killed_at_random(folder, whole, kills=3, seed=0) >= 1


@pytest.mark.long
def test_kill_9_at_many_moments_changes_no_bit(folder, whole):
    """Runs that are killed until they get through, 20 kills at least, most of which leave a checkpoint."""
    assert sum(killed_at_random(folder, whole, kills=6, seed=seed) for seed in range(1, 7)) >= 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_and_the_same_command_goes_on(folder, whole, number):
    results, _ = whole
    shutil.rmtree(folder / "run", ignore_errors=True)
    process = start(folder, "--wandb", "offline", "--checkpoint-minutes", "60")
    wait_for(process, "step")
    began = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 30, "the bound is generous: only a hang would pass it"
    assert process.returncode == 128 + number and "Traceback" not in err, err
    assert "goes on from there" in err.splitlines()[-1]
    assert any((folder / "run" / "checkpoints").iterdir())
    process = start(folder, "--wandb", "offline")
    _, err = process.communicate()
    assert process.returncode == 0 and "goes on from step" in err, err
    same(sae.load(folder / "run"), results)
    assert not list((folder / "run" / "checkpoints").iterdir()), "what is finished needs none"
    runs = [path.name.split("-")[-1] for path in (folder / "run" / "wandb").glob("offline-run-*")]
    assert sorted(runs) == [f"{i:04d}" for i in range(8)], "one W&B run per member, none twice"


def test_two_processes_on_one_folder(folder, whole):
    shutil.rmtree(folder / "run", ignore_errors=True)
    first = start(folder, "--wandb", "off")
    wait_for(first, "compiled")
    second = start(folder, "--wandb", "off")
    _, err = second.communicate()
    assert second.returncode == 1 and f"in use by process {first.pid} on" in err, err
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert f"process {first.pid}" in (folder / "run" / ".lock").read_text(), "a stale lock file is there"
    third = start(folder, "--wandb", "off")
    assert third.wait() == 0, third.stderr.read()
    same(sae.load(folder / "run"), whole[0])


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path):
    from sae import cohort
    from sae.data.feed import Feed

    experiment = Experiment(name="x", data=Digits(), d_sae=16, n_steps=10, batch_size=64)
    plan = cohort.plan(grid(experiment, {"seed": (0, 1)}))[0]
    sample = Feed(experiment.data.load(), 0, 64, 10).candidates(0, 64)[0]
    state = cohort.init(plan.stacked(cohort.Placement(1)), sample, placement=cohort.Placement(1))
    said: list[str] = []
    checkpoints = Checkpoints(tmp_path, 0, said.append)
    for step in (3, 6, 9):
        checkpoints.save(step, state)
    checkpoints.close()
    assert sorted(p.name for p in checkpoints.folder.iterdir() if p.name.isdigit()) == ["6", "9"], "the last two"
    largest = max((p for p in (checkpoints.folder / "9").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 255
    largest.write_bytes(data)
    step, restored = Checkpoints(tmp_path, 0, said.append).restore(state)
    assert step == 6 and "9 is damaged and is passed over" in said[0]
    np.testing.assert_array_equal(restored.train.sae.W_enc[...], state.train.sae.W_enc[...])


def test_a_finished_cohort_is_not_trained_again(tmp_path, quiet):
    base = Experiment(name="x", data=Digits(), d_sae=16, n_steps=20, batch_size=64, optimizer=Adam(), dead_after=500)
    base = sae.replace(base, {"penalty": ElasticNet(l1=0.1), "revival": Resample(every=10, n_candidates=64)})
    sweep = Sweep(name="two", members=grid(base, {"d_sae": (16, 24)}))
    results = sae.run(sweep, out=tmp_path / "run", wandb="off", console=quiet)
    members, history = results.members, results.history
    members[members.member == 0].to_parquet(tmp_path / "run" / "members.parquet")
    weights = tmp_path / "run" / "weights" / "cohort-000.safetensors"
    before = weights.stat().st_mtime_ns
    again = sae.run(sweep, out=tmp_path / "run", wandb="off", console=quiet)
    assert "cohort 1/2: finished already" in quiet.file.getvalue() and weights.stat().st_mtime_ns == before
    pd.testing.assert_frame_equal(again.members, members)
    pd.testing.assert_frame_equal(again.history, history)
    with pytest.raises(UserError, match="different definition"):
        sae.run(base, out=tmp_path / "run", wandb="off", console=quiet)

"""A run that is stopped anywhere goes on to the very results of a run that was not."""

import glob
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
from sae.engine.checkpoints import Checkpoints
from sae.engine.placement import Placement

ROOT = Path(__file__).parents[1]

DEFINITION = """
from sae import Adam, Digits, ElasticNet, Experiment, Resample, Sweep, grid

base = Experiment(
    name="long", data=Digits(), d_sae=64, penalty=ElasticNet(l1=0.3), batch_size=128, n_steps=2_400, dead_after=3_000,
    optimizer=Adam(lr=3e-3), revival=Resample(every=420, times=3, n_candidates=512),
)
sweep = Sweep(name="long", members=grid(base, {"d_sae": (64, 96), "penalty.l1": (0.1, 0.5), "seed": (0, 1)}))
"""
COMMAND = [sys.executable, "-m", "sae.cli", "run", "long.py", "--out", "run", "--checkpoint-minutes", "0.005"]
COMMAND += ["--no-report", "--keep-every", "700"]


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
    kept = lambda run: {
        path.relative_to(run.folder): path.read_bytes() for path in run.folder.glob("cohorts/*/steps/*")
    }
    assert kept(a) == kept(b), "weights kept on the way"


def killed_at_random(folder, whole, kills: int, seed: int) -> None:
    """Kill -9 at random moments until so many kills have left a checkpoint; every run then gets through.

    The first kill of a run comes at any moment, so before there is a checkpoint, too. The others wait for one, and then
    for the next save to begin, or for a moment at random: on a slow disk a moment at random alone mostly meets none.
    """
    results, seconds = whole
    rng, met, deadline = random.Random(seed), 0, time.monotonic() + 300 * kills
    # glob passes over a folder that goes while it looks
    there = lambda name: glob.glob(f"{folder}/run/cohorts/*/checkpoints/{name}")
    saved = lambda: any(there("[0-9]*/_CHECKPOINT_METADATA"))
    saving = lambda: any(there("*.orbax-checkpoint-tmp*"))
    while met < kills:
        shutil.rmtree(folder / "run", ignore_errors=True)
        for i in range(6):
            process = start(folder, "--wandb", "off")
            wait_for(process, "compiled", "finished already; nothing")
            for awaited in (saved,) * (i > 0) + (saving,) * (i % 2):
                while process.poll() is None and not awaited():
                    assert time.monotonic() < deadline, f"{met} kills met a checkpoint, no more is to be had"
                    time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.5 if i == 0 else 0.005 if i % 2 else 0.2) * seconds)
            if process.poll() is not None:
                break  # it got through before; another run follows
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            met += saved()
            if met == kills:
                break
        process = start(folder, "--wandb", "off")
        _, err = process.communicate()
        assert process.returncode == 0, err
        same(sae.load(folder / "run"), results)


@pytest.mark.long
def test_kill_9_at_some_moments_changes_no_bit(folder, whole):
    killed_at_random(folder, whole, kills=2, seed=0)


@pytest.mark.long
def test_kill_9_at_many_moments_changes_no_bit(folder, whole):
    killed_at_random(folder, whole, kills=20, seed=1)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_a_signal_saves_and_exits_and_the_same_command_goes_on(folder, whole, number):
    results, _ = whole
    shutil.rmtree(folder / "run", ignore_errors=True)
    process = start(folder, "--wandb", "offline", "--checkpoint-minutes", "60")
    wait_for(process, "step")
    began = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=180)
    assert time.monotonic() - began < 120, "the bound is generous: only a hang would pass it"
    assert process.returncode == 128 + number and "Traceback" not in err, err
    assert "goes on from there" in err.splitlines()[-1]
    assert any((folder / "run").glob("cohorts/*/checkpoints/*"))
    assert sae.load(folder / "run").status == "interrupted"
    process = start(folder, "--wandb", "offline")
    _, err = process.communicate()
    assert process.returncode == 0 and "goes on from step" in err, err
    same(sae.load(folder / "run"), results)
    assert not list((folder / "run").glob("cohorts/*/checkpoints")), "what is finished needs none"
    runs = [path.name.split("-")[-1] for path in (folder / "run" / "wandb").glob("offline-run-*")]
    assert sorted(runs) == [*(f"{i:04d}" for i in range(8)), "sweep"], "one W&B run per member, none twice"


def test_two_processes_on_one_folder(folder, whole):
    shutil.rmtree(folder / "run", ignore_errors=True)
    first = start(folder, "--wandb", "off")
    wait_for(first, "compiled")
    second = start(folder, "--wandb", "off")
    _, err = second.communicate()
    assert second.returncode == 1 and f"in use by process {first.pid} on" in err, err
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert f"process {first.pid}" in (folder / "run/cohorts/000/.lock").read_text(), "a stale lock file is there"
    third = start(folder, "--wandb", "off")
    assert third.wait() == 0, third.stderr.read()
    same(sae.load(folder / "run"), whole[0])


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path):
    from sae.data.feed import Feed
    from sae.engine import cohort, programs

    experiment = Experiment(name="x", data=Digits(), d_sae=16, n_steps=10, batch_size=64)
    plan = cohort.plan(grid(experiment, {"seed": (0, 1)}))[0]
    sample = Feed(experiment.data.load(), 0, 64, 10).candidates(0, 64)[0]
    state = programs.init(plan.stacked(Placement(1)), sample, placement=Placement(1))
    said: list[str] = []
    checkpoints = Checkpoints(tmp_path / "checkpoints", said.append)
    history = []
    for step in (3, 6, 9):
        history.append((step, {"train/l0": np.float32([step, np.nan]), "train/dead": np.int32([0, step])}))
        checkpoints.save(step, state, history)
    checkpoints.close()
    assert sorted(p.name for p in checkpoints.folder.iterdir() if p.name.isdigit()) == ["6", "9"], "the last two"
    largest = max((p for p in (checkpoints.folder / "9").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 255
    largest.write_bytes(data)
    step, restored, rows = Checkpoints(checkpoints.folder, said.append).restore(state)
    assert step == 6 and "9 is damaged and is passed over" in said[0]
    np.testing.assert_array_equal(restored.train.sae.W_enc[...], state.train.sae.W_enc[...])
    assert [at for at, _ in rows] == [3, 6], "with the history up to there"
    np.testing.assert_array_equal(rows[1][1]["train/l0"], np.float32([6, np.nan]))
    assert rows[1][1]["train/dead"].dtype == np.int32


def test_a_checkpoint_of_other_bits_is_one_line_and_is_kept(tmp_path):
    said: list[str] = []
    states = [{"w": np.ones(3, dtype), "n": np.int32(1)} for dtype in (np.float32, np.float64)]
    for state, like, bits in ((*states, 32), (*states[::-1], 64)):
        checkpoints = Checkpoints(tmp_path / f"{bits}", said.append)
        checkpoints.save(3, state, [])
        checkpoints.close()
        fix = f"has numbers of {bits} bits, and this process has others; set JAX_ENABLE_X64={int(bits == 64)}"
        with pytest.raises(UserError, match=fix):
            Checkpoints(tmp_path / f"{bits}", said.append).restore(like)
        assert (tmp_path / f"{bits}" / "3").exists() and said == []


def two_cohorts() -> Sweep:
    base = Experiment(name="x", data=Digits(), d_sae=16, n_steps=20, batch_size=64, optimizer=Adam(), dead_after=500)
    base = sae.replace(base, {"penalty": ElasticNet(l1=0.1), "revival": Resample(every=10, n_candidates=64)})
    return Sweep(name="two", members=grid(base, {"d_sae": (16, 24)}))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    sweep = two_cohorts()
    return sweep, sae.run(sweep, out=tmp_path_factory.mktemp("two") / "run", wandb="off")


def test_a_finished_cohort_is_not_trained_again(tmp_path, quiet):
    sweep = two_cohorts()
    base = sweep.members[0]
    results = sae.run(sweep, out=tmp_path / "run", wandb="off", console=quiet)
    members, history = results.members, results.history
    first, second = (tmp_path / f"run/cohorts/00{i}" for i in (0, 1))
    shutil.rmtree(second)
    before = (first / "weights.safetensors").stat().st_mtime_ns
    assert not results.finished and list(results.members.member) == [0]
    again = sae.run(sweep, out=tmp_path / "run", wandb="off", console=quiet)
    assert "cohort 0 of 2: finished already" in quiet.file.getvalue()
    assert (first / "weights.safetensors").stat().st_mtime_ns == before
    pd.testing.assert_frame_equal(again.members, members)
    pd.testing.assert_frame_equal(again.history, history)
    with pytest.raises(UserError, match="different definition"):
        sae.run(base, out=tmp_path / "run", wandb="off", console=quiet)


@pytest.mark.parametrize("name", ["weights.safetensors", "members.parquet", "history.parquet"])
def test_a_damaged_file_of_a_finished_cohort_is_named_and_made_anew(two, quiet, name):
    sweep, results = two
    path = results.folder / "cohorts/001" / name
    before = path.read_bytes()
    for harm in (before[: len(before) // 2], before[:40] + bytes([before[40] ^ 1]) + before[41:], None):
        path.unlink() if harm is None else path.write_bytes(harm)
        read = {
            "weights": lambda: results.sae(1),
            "members": lambda: results.members,
            "history": lambda: results.history,
        }
        with pytest.raises(UserError, match=f"001/{name} is (damaged|missing)"):
            read[name.split(".")[0]]()
        sae.run(sweep, out=results.folder, wandb="off", console=quiet)
        assert f"001/{name} is" in quiet.file.getvalue() and "cohort 0 of 2: finished already" in quiet.file.getvalue()
        assert path.read_bytes() == before, "training is deterministic"
    results.sae(1), results.members, results.history


def test_parts_in_one_folder_are_the_whole_sweep(two, tmp_path, quiet):
    sweep, results = two
    out = tmp_path / "parts"
    part = sae.run(sweep, out=out, wandb="off", console=quiet, only=[1])
    assert not part.finished and list(part.members.member) == [1] and "left are the cohorts 0" in quiet.file.getvalue()
    assert sae.run(sweep, out=out, wandb="off", console=quiet, shard="1/1").finished
    same(sae.load(out), results)
    pd.testing.assert_frame_equal(pd.read_parquet(out / "members.parquet"), sae.load(out).members)
    pd.testing.assert_frame_equal(pd.read_parquet(out / "history.parquet"), sae.load(out).history)
    for wrong, message in [({"only": [2]}, "only: got 2, allowed"), ({"shard": "3/2"}, "shard: got '3/2', allowed")]:
        with pytest.raises(UserError, match=message):
            sae.run(sweep, out=out, wandb="off", console=quiet, **wrong)


def test_shards_of_one_large_cohort_divide_its_members(tmp_path, quiet):
    base = Experiment(name="x", data=Digits(), d_sae=16, n_steps=20, batch_size=64)
    sweep = Sweep(name="one", members=grid(base, {"seed": range(5)}))
    whole = sae.run(sweep, out=tmp_path / "whole", wandb="off", console=quiet, lanes=1)
    for i in (2, 1, 3):
        part = sae.run(sweep, out=tmp_path / "run", wandb="off", console=quiet, shard=f"{i}/3", lanes=1)
    assert part.finished and sorted(map(len, part.definition["cohorts"])) == [1, 2, 2]
    for member in range(5):
        np.testing.assert_array_equal(part.sae(member).W_dec[...], whole.sae(member).W_dec[...])

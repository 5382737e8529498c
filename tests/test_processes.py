"""Two processes as one run: the numbers of one process, one folder, and an end of one that the other understands."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import sae
from sae import Sweep
from sae.cli import main as cli
from sae.study import definition_files as loading

ROOT = Path(__file__).parents[1]

DEFINITION = """
from sae import Adam, Digits, ElasticNet, Experiment, Sweep, grid

base = Experiment(
    name="two", data=Digits(), d_sae=24, penalty=ElasticNet(l1=0.3), batch_size=32, n_steps=3_000, n_eval=100,
    optimizer=Adam(lr=3e-3),
)
sweep = Sweep(name="two", members=grid(base, {"penalty.l1": (0.1, 0.5, 1.0)}))
"""
FIRST = 400  # steps in which rounding does not grow into a difference


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    (folder / "two.py").write_text(DEFINITION)
    return folder


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]


def start(folder, *flags, first=(), devices=1, slurm=False) -> list[subprocess.Popen]:
    """Both processes of a run; `first` are flags of process 0 alone."""
    port, both = free_port(), []
    for i in range(2):
        env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        env["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # compiling is nearly all that this costs
        env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
        command = [sys.executable, "-m", "sae.cli", "run", "two.py", "--wandb", "off"]
        if slurm:
            command += ["--coordinator", "auto"]
            env |= {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
            env |= {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i), "JAX_COORDINATOR_PORT": str(port)}
        else:
            command += ["--coordinator", f"localhost:{port}", "--processes", "2", "--process", str(i)]
        both.append(
            subprocess.Popen(
                [*command, *flags, *(first if i == 0 else ())], cwd=folder, env=env, text=True,
                stderr=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
            )
        )  # fmt: skip
    return both


def wait_for(process: subprocess.Popen, word: str) -> str:
    """Until the process says a word -> what it said."""
    said = []
    for line in process.stderr:
        said.append(line)
        if word in line:
            return "".join(said)
    raise AssertionError(f"never said {word}: {''.join(said)}")


def ends(both, seconds: float = 300) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of both, where they end within so many seconds."""
    try:
        said = [process.communicate(timeout=seconds) for process in both]
    finally:
        for process in both:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(both, said, strict=True)]


def finishes(both) -> None:
    for code, _, err in ends(both):
        assert code == 0, err


@pytest.fixture(scope="module")
def whole(folder):
    """The run that nobody stopped, whose processes Slurm told of each other."""
    (code, out, _), (code_1, out_1, err_1) = ends(start(folder, "--out", "whole", slurm=True))
    assert (code, code_1) == (0, 0), err_1
    assert "eval/fvu" in out and "[Gloo]" not in out, "process 0 tells"
    assert out_1 == err_1 == "", "the others are silent"
    return sae.load(folder / "whole")


def same(results, expected):
    pd.testing.assert_frame_equal(results.members, expected.members)
    pd.testing.assert_frame_equal(results.history, expected.history)
    for member in results.members.member:
        np.testing.assert_array_equal(results.sae(member).W_dec[...], expected.sae(member).W_dec[...])


def close(results, expected):
    """The same rows, and the same numbers until rounding grows."""
    assert list(results.members.columns) == list(expected.members.columns)
    assert results.history[["member", "step"]].equals(expected.history[["member", "step"]])
    early = expected.history.step <= FIRST
    assert early.any()
    for name in ("train/mse", "train/l1", "train/cosine"):
        np.testing.assert_allclose(results.history[name][early], expected.history[name][early], rtol=1e-3, err_msg=name)
    np.testing.assert_allclose(results.members["eval/fvu"], expected.members["eval/fvu"], rtol=0.1)


def test_two_processes_are_one_run(folder, whole, quiet):
    assert whole.finished and whole.definition["device"]["count"] == 2
    close(whole, sae.run(loading.load_file(folder / "two.py"), out=folder / "alone", wandb="off", console=quiet))


@pytest.mark.long
@pytest.mark.parametrize("mesh", [None, "member=2,latent=2", "latent=4"])
def test_two_processes_of_two_devices(folder, quiet, mesh):
    finishes(start(folder, "--out", f"run {mesh}", "--n-steps", "200", *(("--mesh", mesh) if mesh else ()), devices=2))
    sweep = loading.load_file(folder / "two.py")
    sweep = Sweep(name="two", members=[sae.replace(member, {"n_steps": 200}) for member in sweep.members])
    close(sae.load(folder / f"run {mesh}"), sae.run(sweep, out=folder / f"alone {mesh}", wandb="off", console=quiet))


@pytest.mark.long
def test_however_one_is_stopped_the_other_ends_too_and_the_same_commands_go_on(folder, whole):
    shutil.rmtree(folder / "run", ignore_errors=True)
    flags = ("--out", "run", "--checkpoint-minutes", "0.005", "--no-report")
    both = start(folder, *flags)
    wait_for(both[0], "step")
    both[1].send_signal(signal.SIGTERM)
    for code, _, err in ends(both):
        assert code == 143 and "goes on from there" in err, err
    results = sae.load(folder / "run")
    step = results.cohorts[0].state["step"]
    assert results.status == "interrupted" and (folder / f"run/cohorts/000/checkpoints/{step}").exists()

    for victim in (0, 1):
        both = start(folder, *flags)
        said = wait_for(both[0], "step")
        assert "goes on from step" in said, said
        both[victim].kill()
        code, _, err = ends(both, 180)[1 - victim]
        assert code != 0
        assert err.splitlines()[-1].startswith(f"sae: process {victim} of 2 is gone; what was saved is kept"), err
        assert "Traceback" not in err and "*** Check failure" not in err, err

    both = start(folder, *flags)
    assert "goes on from step" in wait_for(both[0], "step")
    finishes(both)
    same(sae.load(folder / "run"), whole)


@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_hangs_is_gone_too(folder, victim):
    shutil.rmtree(folder / "run", ignore_errors=True)
    both = start(folder, "--out", "run", "--n-steps", "1000000")
    wait_for(both[0], "compiled")
    both[victim].send_signal(signal.SIGSTOP)
    out, err = both[1 - victim].communicate(timeout=180)
    both[victim].kill()
    assert both[1 - victim].returncode != 0
    assert err.splitlines()[-1].startswith(f"sae: process {victim} of 2 is gone") and "Traceback" not in err, err


def test_what_is_wrong_in_one_process_ends_both_with_the_reason(folder, whole):
    both = ends(start(folder, "--out", "other", first=("--seed", "1")))
    assert [code for code, _, _ in both] == [1, 1]
    assert "seed of member 0 differs: process 1 has 0, process 0 has 1" in both[1][2], both[1]
    assert both[0][2].startswith("sae: process 1 of 2 stopped: seed of member 0"), both[0]
    for _, _, err in both:
        assert len(err.splitlines()) == 1, err
    assert not (folder / "other").exists()


@pytest.mark.long
def test_what_only_process_0_can_know_ends_both(folder, whole):
    both = ends(start(folder, "--out", "whole", "--seed", "1"))
    for code, _, err in both:
        assert code == 1 and err.startswith("sae: whole holds a different definition: seed of member 0"), err
        assert len(err.splitlines()) == 1, err


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--coordinator here --processes 2 --process 0", "coordinator: got 'here', allowed: HOST:PORT"),
        ("--coordinator here:1 --process 0", "coordinator: got here:1 alone, allowed: with --processes and --process"),
        ("--coordinator here:1 --processes 2 --process 2", "process: got 2, allowed: 0 to 1"),
        ("--coordinator auto --processes 2", "coordinator: got auto with processes or process"),
        ("--processes 2", "processes, process: got them without --coordinator"),
        ("--coordinator auto --launcher local", "launcher: got local with --coordinator, allowed: none"),
    ],
)
def test_flags_that_do_not_fit_together(folder, capsys, flags, message):
    assert cli.main(["run", str(folder / "two.py"), *flags.split()]) == 1
    assert capsys.readouterr().err.startswith(f"sae: {message}")

"""Parts in processes and in Slurm jobs: how many at once, what failures say, and that whatever is stopped can save."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sae.core.types import Interrupted, UserError
from sae.runner.launchers import LaunchOptions, Part, local, slurm

ROOT = Path(__file__).parents[1]


def python(name: str, code: str, *arguments) -> Part:
    """A part that runs a piece of code, quickly: no site packages."""
    return Part(name, [sys.executable, "-S", "-c", code, *map(str, arguments)])


# Saves at SIGTERM, which takes a while, and goes on from there; a second SIGTERM would end it before it has saved.
RESUMABLE = """
import os, signal, sys, time
saved = sys.argv[1]
if os.path.exists(saved):
    print("went on", flush=True)
    sys.exit(0)
def stop(*_):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(0.4)
    open(saved, "w").close()
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
open(saved + ".began", "w").write(str(os.getpid()))
print("began", flush=True)
time.sleep(60)
"""


def until(condition, seconds: float = 60):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "never came"
        time.sleep(0.02)
    return value


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie, which is what an orphan may be where nobody reaps."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def began(folder: Path, n: int) -> list[int]:
    """The process ids of the first n parts, once they have begun."""
    paths = [folder / f"saved-{i}.began" for i in range(n)]  # a file is there before its text is
    return [int(until(lambda path=path: path.exists() and path.read_text())) for path in paths]


@pytest.fixture
def said():
    return []


@pytest.mark.parametrize(("workers", "most"), [(1, 1), (3, 3), (99, 7)])
def test_as_many_at_once_as_there_are_workers_and_never_more(tmp_path, said, workers, most):
    # the first that sees that `most` have begun finds all of them there, however long each took to begin
    code = """
import os, sys, time
folder, i, most = sys.argv[1], sys.argv[2], int(sys.argv[3])
there = lambda what: len([name for name in os.listdir(folder) if name.startswith(what)])
open(f"{folder}/on-{i}", "w").close()
open(f"{folder}/began-{i}", "w").close()
deadline = time.monotonic() + 60
while there("began-") < most and time.monotonic() < deadline:
    time.sleep(0.01)
first = there("on-")
time.sleep(0.1)
print(max(first, there("on-")))
os.remove(f"{folder}/on-{i}")
"""
    parts = [python(f"cohort {i}/7", code, tmp_path, i, most) for i in range(1, 8)]
    assert local.run(parts, tmp_path / "run", LaunchOptions(workers=workers), said.append) == []
    logs = [(tmp_path / "run" / "logs" / f"cohort-{i}-of-7.log").read_text().splitlines() for i in range(1, 8)]
    seen = [int(lines[-1]) for lines in logs]
    assert max(seen) == most, seen
    assert all(len(lines) == 2 and lines[0].startswith("=== ") and "print(max" in lines[0] for lines in logs), (
        "the command"
    )
    assert [line for line in said if "cohort 5/7" in line][0].startswith("cohort 5/7: started, process ")
    assert re.fullmatch(r"cohort 5/7: finished after \d+ s", [line for line in said if "cohort 5/7" in line][1])


def test_a_part_that_fails_stops_no_other_and_its_last_lines_are_told(tmp_path, said):
    noisy = "import sys\nfor i in range(40): print('line', i)\nprint('no room left', file=sys.stderr); sys.exit(3)"
    killed = "import os, signal; print('up to here'); os.kill(os.getpid(), signal.SIGKILL)"
    parts = [python("a", noisy), python("b", killed), python("c", "print('well')"), Part("d", ["/no/such/command"])]
    for attempt in range(2):
        failures = local.run(parts, tmp_path, LaunchOptions(workers=2), said.append)
        assert sorted((f.name, f.reason) for f in failures) == [
            ("a", "exit code 3"), ("b", "killed by SIGKILL"), ("d", "exit code 1"),
        ]  # fmt: skip
        a, b, d = sorted(failures, key=lambda failure: failure.name)
        assert a.tail == (*(f"line {i}" for i in range(31, 40)), "no room left")
        assert b.tail == ("up to here",), "unbuffered, and of this attempt only"
        assert "No such file" in d.tail[-1]
        assert str(a).startswith(f"a: exit code 3; {tmp_path}/logs/a.log ends with\n  | line 31\n")
        assert (tmp_path / "logs" / "c.log").read_text().count("\nwell\n") == attempt + 1
    told = "\n".join(said)
    assert re.search(r"^a: failed after \d+ s, exit code 3; ", told, re.M)
    assert re.search(r"^c: finished after \d+ s$", told, re.M)


def test_parts_see_this_environment_and_share_what_gpus_there_are(tmp_path, said, monkeypatch):
    names = ("KEPT", "CUDA_VISIBLE_DEVICES", "XLA_CLIENT_MEM_FRACTION")
    for name in (*names, "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KEPT", "kept")
    code = f"import os; print(*[os.environ.get(name) for name in {names}])"
    assert local.run([python("a", code), python("b", code)], tmp_path, LaunchOptions(workers=2), said.append) == []
    assert (tmp_path / "logs" / "a.log").read_text().endswith("\nkept None 0.375\n")

    def seen(workers):
        environments = [local._environment(slot, workers) for slot in range(workers)]
        return [" ".join(str(environment.get(name)) for name in names) for environment in environments]

    assert seen(1) == ["kept None None"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,5")
    assert seen(1) == ["kept 0,1,5 None"]
    assert seen(2) == ["kept 0,5 None", "kept 1 None"]
    assert seen(4) == ["kept 0 0.375", "kept 1 0.375", "kept 5 0.375", "kept 0 0.375"]
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.2")
    assert seen(4)[0] == "kept 0 None", "the user's own share stays"


def test_bad_options_are_one_line(tmp_path, said):
    with pytest.raises(UserError, match="workers: got 0, allowed: at least 1"):
        local.run([python("a", "")], tmp_path, LaunchOptions(workers=0), said.append)
    with pytest.raises(UserError, match="slurm_minutes: got 1, allowed: at least 5"):
        slurm.run([], tmp_path, LaunchOptions(slurm_minutes=1), said.append)
    assert local.run([], tmp_path, LaunchOptions(workers=2), said.append) == [] and said == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_has_all_processes_save_and_waits_for_them(tmp_path, said, number):
    parts = [python(f"part {i}", RESUMABLE, tmp_path / f"saved-{i}") for i in range(3)]
    thread = threading.Thread(target=lambda: (began(tmp_path, 2), os.kill(os.getpid(), number)))
    thread.start()
    with pytest.raises(Interrupted) as stop:
        local.run(parts, tmp_path, LaunchOptions(workers=2), said.append)
    thread.join()
    assert stop.value.exit_code == 128 + number and said[2].startswith("stopping 2 parts")
    assert not any(map(alive, began(tmp_path, 2)))
    assert all((tmp_path / f"saved-{i}").exists() for i in range(2)), "one SIGTERM, and time to save"
    assert not (tmp_path / "saved-2.began").exists(), "nothing is started any more"
    assert local.run(parts[:2], tmp_path, LaunchOptions(workers=2), said.append) == []
    assert (tmp_path / "logs" / "part-0.log").read_text().endswith("\nwent on\n")


LAUNCHER = """
import sys, types
from pathlib import Path
sys.modules["sae"] = package = types.ModuleType("sae")  # without JAX, which takes seconds
package.__path__ = [sys.argv[1]]
sys.modules["sae.core.types"] = types.SimpleNamespace(Interrupted=KeyboardInterrupt, UserError=Exception, count=str)
from sae.runner.launchers import LaunchOptions, Part, local
folder = Path(sys.argv[2])
command = [sys.executable, "-S", "-c", sys.argv[3]]
local.run([Part(f"part {i}", [*command, str(folder / f"saved-{i}")]) for i in range(2)], folder, LaunchOptions(), print)
"""


def test_a_launcher_that_is_killed_leaves_no_process_and_they_save(tmp_path):
    command = [sys.executable, "-c", LAUNCHER, str(ROOT / "sae"), str(tmp_path), RESUMABLE]
    launcher = subprocess.Popen(command, start_new_session=True)
    pids = began(tmp_path, 2)
    launcher.kill()
    launcher.wait()
    until(lambda: not any(map(alive, pids)))
    assert all((tmp_path / f"saved-{i}").exists() for i in range(2))


@pytest.mark.parametrize("impatient", [False, True])
def test_a_process_that_does_not_stop_is_killed_with_all_it_started(tmp_path, said, monkeypatch, impatient):
    monkeypatch.setattr(local, "GRACE", 60 if impatient else 0.5)
    code = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"])
open(sys.argv[1], "w").write(f"{os.getpid()} {child.pid}.")
time.sleep(60)
"""
    pids = tmp_path / "pids"
    written = lambda: pids.exists() and pids.read_text().endswith(".")

    def interrupt():
        until(lambda: written() and any("bad: failed" in line for line in said))
        os.kill(os.getpid(), signal.SIGINT)
        until(lambda: any("stopping" in line for line in said))
        time.sleep(0.3)
        if impatient:
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    bad = python("bad", "import sys; sys.exit('broken')")
    with pytest.raises(Interrupted) as stop:
        local.run([bad, python("deaf", code, pids)], tmp_path, LaunchOptions(workers=2), said.append)
    thread.join()
    assert stop.value.exit_code == 130 and str(stop.value) == "stopped by SIGINT"
    until(lambda: not any(alive(int(pid)) for pid in pids.read_text().rstrip(".").split()))
    assert "deaf: killed; it goes on from its last checkpoint" in said
    assert said[-1].startswith("bad: exit code 1") and "broken" in said[-1], "failures before the signal are told"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_in_the_launcher_leaves_no_process(tmp_path):
    def say(line):
        if "started" in line:
            until(lambda: (tmp_path / "saved.began").exists())
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        local.run(
            [python("a", RESUMABLE, tmp_path / "saved")], tmp_path, LaunchOptions(workers=1), lambda line: say(line)
        )
    assert (tmp_path / "saved").exists()


class Cluster:
    """A Slurm for one test: its commands on PATH, and what its controller knows."""

    def __init__(self, root: Path, monkeypatch):
        self.root, self.binaries = root / "slurm", root / "bin"
        binaries = self.binaries
        self.root.mkdir()
        binaries.mkdir()
        for name in ("sbatch", "srun", "squeue", "sacct", "scancel", "scontrol"):
            fake = Path(__file__).with_name("fake_slurm.py")
            (binaries / name).write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {fake} {name} "$@"\n')
            (binaries / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{binaries}:{os.environ['PATH']}")
        monkeypatch.setenv("FAKE_SLURM", str(self.root))
        # LINGER is time for the commands of `during`, each of which starts a Python
        for name, value in {"POLL": 0.1, "ASK": 0.5, "SETTLE": 0.8, "LINGER": 2.0}.items():
            monkeypatch.setattr(slurm, name, value)

    def jobs(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir() if path.is_dir())

    def read(self, job: str, name: str = "state") -> str:
        path = self.root / job / name
        return path.read_text() if path.exists() else ""

    def during(self, began: Path, *commands: str) -> threading.Thread:
        """Give commands as soon as a part has begun."""

        def give():
            until(began.exists)
            for command in commands:
                subprocess.run(command.split(), check=True)

        thread = threading.Thread(target=give)
        thread.start()
        return thread


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    cluster = Cluster(tmp_path, monkeypatch)
    yield cluster
    for job in cluster.jobs():
        if cluster.read(job) in ("PENDING", "RUNNING", "REQUEUED"):
            subprocess.run([cluster.binaries / "scancel", job], check=True)
            until(lambda job=job: not cluster.read(job, "task") or not alive(int(cluster.read(job, "task"))))


def test_each_part_is_a_job_with_the_options_given_and_failures_are_told(tmp_path, said, cluster):
    bad = "import sys\nfor i in range(20): print('line', i)\nsys.exit(3)"
    light = "import os, sys; print(os.environ['SLURM_JOB_ID'], os.getcwd())"
    parts = [python("cohort 1/2", light), python("cohort 2/2", bad)]
    options = LaunchOptions(
        slurm_partition="short", slurm_minutes=90, slurm_gpus=2, slurm_cpus=4, slurm_mem_gb=12.5,
        slurm_extra=("account=physics", "exclusive", "nice=10"),
    )  # fmt: skip
    (failure,) = slurm.run(parts, tmp_path / "run", options, said.append)
    assert (failure.name, failure.reason) == ("cohort 2/2", "exit code 3, job 101")
    assert failure.tail == tuple(f"line {i}" for i in range(10, 20))
    assert failure.log == tmp_path / "run" / "logs" / "cohort-2-of-2.log"
    log = (tmp_path / "run" / "logs" / "cohort-1-of-2.log").read_text().splitlines()
    assert log[-1] == f"100 {os.getcwd()}"
    script = cluster.read("100", "script")
    for line in ("partition=short", "time=90", "gpus-per-node=2", "cpus-per-task=4", "mem=12800MB", "account=physics",
                 "exclusive", "nice=10", "requeue", "job-name=run-cohort-1-of-2", "signal=USR2@90"):  # fmt: skip
        assert f"#SBATCH --{line}\n" in script, line
    assert "cohort 1/2: job 100 submitted" in said
    assert any(re.fullmatch(r"cohort 1/2: job 100 finished \d+ s after it was submitted", line) for line in said)
    until(lambda: (cluster.read("100"), cluster.read("101")) == ("COMPLETED", "FAILED"))


def test_a_job_imports_none_of_the_package_beside_the_part(tmp_path, said, cluster, monkeypatch):
    monkeypatch.setenv("PYTHONVERBOSE", "1")  # says on stderr what is imported
    assert slurm.run([python("a", "print('well')")], tmp_path / "run", LaunchOptions(), said.append) == []
    errors = next((tmp_path / "run" / "logs" / "submitit").glob("*.err")).read_text()
    assert "import 'submitit" in errors and "import 'sae" not in errors and "import 'jax" not in errors


SIGNALS = {
    "preempted": ["scancel 100 --signal TERM", "scancel 100 --signal TERM", "scancel 100 --signal USR2"],
    "queued again by Slurm, with SIGTERM alone": ["scontrol requeue 100"],
}


@pytest.mark.parametrize("signals", SIGNALS.values(), ids=SIGNALS.keys())
def test_a_job_that_is_stopped_saves_once_is_queued_again_and_goes_on(tmp_path, said, cluster, signals):
    saved = tmp_path / "saved"
    thread = cluster.during(tmp_path / "saved.began", *signals)
    assert slurm.run([python("a", RESUMABLE, saved)], tmp_path / "run", LaunchOptions(), said.append) == []
    thread.join()
    lines = (tmp_path / "run" / "logs" / "a.log").read_text().splitlines()
    assert [line for line in lines if line in ("began", "saved", "went on")] == ["began", "saved", "went on"]
    assert cluster.jobs() == ["100"] and cluster.read("100", "requeues") == "x"
    pid = int((tmp_path / "saved.began").read_text())
    assert not alive(pid) and "a: job 100 running" in said


def test_what_does_not_save_in_time_is_killed_and_queued_again(tmp_path, said, cluster, monkeypatch):
    monkeypatch.setattr(slurm, "GRACE", 0.5)
    deaf = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.path.exists(sys.argv[1]):
    sys.exit(0)
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(60)
"""
    thread = cluster.during(tmp_path / "began", "scancel 100 --signal USR2")
    assert slurm.run([python("a", deaf, tmp_path / "began")], tmp_path / "run", LaunchOptions(), said.append) == []
    thread.join()
    assert not alive(int((tmp_path / "began").read_text())) and cluster.read("100", "requeues") == "x"


def test_a_cancelled_job_saves_and_is_a_failure(tmp_path, said, cluster, monkeypatch):
    thread = cluster.during(tmp_path / "saved.began", "scancel 100")
    (failure,) = slurm.run([python("a", RESUMABLE, tmp_path / "saved")], tmp_path / "run", LaunchOptions(), said.append)
    thread.join()
    assert failure.reason == "Slurm says CANCELLED, job 100"
    assert failure.log.name == "100_0_log.err" and cluster.jobs() == ["100"]
    until((tmp_path / "saved").exists)  # Slurm says that it is cancelled while it saves
    assert cluster.read("100", "requeues") == ""

    (cluster.root / "no-accounting").touch()
    assert slurm._states(["100"]) == {"100": "GONE"}, "where only the controller can be asked"
    monkeypatch.setenv("PATH", "")
    assert slurm._states(["100"]) == {}, "where nothing is known, nothing has ended"


@pytest.mark.parametrize(("times", "why"), [(-1, "timed-out too many times"), (9, "scontrol")])
def test_a_job_that_cannot_be_queued_again_is_a_failure_with_the_reason(
    tmp_path, said, cluster, monkeypatch, times, why
):
    monkeypatch.setattr(slurm, "TIMEOUTS", times)
    (cluster.root / "no-requeue").touch()
    thread = cluster.during(tmp_path / "saved.began", "scancel 100 --signal USR2")
    (failure,) = slurm.run([python("a", RESUMABLE, tmp_path / "saved")], tmp_path / "run", LaunchOptions(), said.append)
    thread.join()
    assert why in failure.reason and (tmp_path / "saved").exists()


def test_ctrl_c_leaves_the_jobs_and_the_same_call_waits_for_them(tmp_path, said, cluster):
    parts = [python("a", RESUMABLE, tmp_path / "saved"), python("b", "print('well')")]

    def interrupt():
        until(lambda: any("b: job 101 finished" in line for line in said) and (tmp_path / "saved.began").exists())
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Interrupted) as stop:
        slurm.run(parts, tmp_path / "run", LaunchOptions(), said.append)
    thread.join()
    assert stop.value.exit_code == 130
    assert said[-1] == "1 job will go on: 100; the same command waits again, `scancel 100` ends"
    assert cluster.read("100") == "RUNNING" and not (tmp_path / "saved").exists()

    thread = cluster.during(tmp_path / "saved.began", "scancel 100 --signal USR2")
    assert slurm.run(parts[:1], tmp_path / "run", LaunchOptions(), said.append) == []
    thread.join()
    assert "a: job 100 is there already" in said and cluster.jobs() == ["100", "101"]
    assert slurm.run(parts[1:], tmp_path / "run", LaunchOptions(), said.append) == []
    assert cluster.jobs() == ["100", "101", "102"], "a job that ended is not waited for"


def test_slurm_that_is_missing_or_refuses_is_one_line(tmp_path, said, cluster, monkeypatch):
    part = python("a", "print('well')")
    for extra in ("Account=x", "=x", "a b"):
        with pytest.raises(UserError, match="slurm_extra: got .*allowed: sbatch's options as key=value"):
            slurm.run([part], tmp_path, LaunchOptions(slurm_extra=(extra,)), said.append)
    with pytest.raises(UserError, match="Slurm refused the job: .*Invalid partition") as error:
        slurm.run([part], tmp_path, LaunchOptions(slurm_partition="nowhere"), said.append)
    assert "\n" not in str(error.value) and cluster.jobs() == []

    def say(line):
        said.append(line)
        if "submitted" in line:
            (cluster.root / "full").touch()

    (failure,) = slurm.run([part, python("b", "")], tmp_path, LaunchOptions(), say)
    assert failure.name == "b" and failure.reason.startswith("not submitted: sbatch: error")
    assert any("a: job 100 finished" in line for line in said)

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no `srun` here"):
        slurm.run([part], tmp_path, LaunchOptions(), said.append)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[slurm\]'$"):
        slurm.run([part], tmp_path, LaunchOptions(), said.append)

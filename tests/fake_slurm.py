"""Slurm's commands for a test: real processes and real signals on this machine, and as many nodes as there are jobs.

FAKE_SLURM is a folder that holds what a controller knows: <job>/state, script, task (the process id of its only step).
Run as `fake_slurm.py COMMAND ARGUMENTS`, COMMAND being sbatch, srun, squeue, sacct, scancel or scontrol.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(os.environ["FAKE_SLURM"])
LIVING = ("PENDING", "RUNNING", "COMPLETING", "REQUEUED")


def get(job: str, name: str = "state") -> str:
    path = ROOT / job / name
    return path.read_text() if path.exists() else ""


def put(job: str, value: str, name: str = "state") -> None:
    new = ROOT / job / f"{name}.{os.getpid()}"
    new.write_text(value)
    new.rename(ROOT / job / name)


def option(arguments: list[str], *names: str) -> str:
    for i, argument in enumerate(arguments):
        for name in names:
            if argument.startswith(f"{name}="):
                return argument.split("=", 1)[1]
            if argument == name:
                return arguments[i + 1]
    return ""


def signal_task(job: str, *numbers: int) -> None:
    for number in numbers if get(job, "task") else ():
        try:
            os.kill(int(get(job, "task")), number)
        except ProcessLookupError:
            pass


def sbatch(script: str) -> None:
    text = Path(script).read_text()
    if "--partition=nowhere" in text or (ROOT / "full").exists():
        sys.exit("sbatch: error: Batch job submission failed: Invalid partition or too many jobs")
    job = str(100 + sum(path.is_dir() for path in ROOT.iterdir()))
    (ROOT / job).mkdir()
    put(job, text, "script")
    put(job, "PENDING")
    none = subprocess.DEVNULL
    command = [sys.executable, "-I", "-S", __file__, "node", job]
    subprocess.Popen(command, stdin=none, stdout=none, stderr=none, start_new_session=True)
    print(f"Submitted batch job {job}")


def node(job: str) -> None:
    """Run a job as often as it is queued."""
    output = next(
        line.split("=", 1)[1] for line in get(job, "script").splitlines() if line.startswith("#SBATCH --output")
    )
    ids = {"JOB_ID": job, "JOB_NUM_NODES": "1", "NTASKS": "1", "NODEID": "0", "PROCID": "0", "LOCALID": "0"}
    env = os.environ | {f"SLURM_{name}": value for name, value in ids.items()} | {"SLURM_JOB_NODELIST": "node1"}
    while True:
        time.sleep(0.3)
        if get(job) != "PENDING":
            return
        put(job, "RUNNING")
        with open(output.replace("%j", job), "a") as file:
            code = subprocess.call(["bash", ROOT / job / "script"], env=env, stdout=file, stderr=file)
        put(job, get(job, "codes") + f"{code} ", "codes")
        if get(job) == "REQUEUED":
            put(job, "PENDING")
        elif get(job) == "RUNNING":
            put(job, "FAILED" if code else "COMPLETED")


def srun(*arguments: str) -> None:
    job = os.environ["SLURM_JOB_ID"]
    put(job, str(os.getpid()), "task")
    for stream, name in ((1, "--output"), (2, "--error")):
        path = option(list(arguments), name).replace("%j", job).replace("%t", "0")
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    command = arguments[arguments.index(sys.executable) :]
    os.execvp(command[0], command)


def squeue(*arguments: str) -> None:
    known = [job for job in option(list(arguments), "--jobs").split(",") if get(job) in LIVING]
    for job in known:
        print(job, get(job))
    if not known:
        sys.exit("slurm_load_jobs error: Invalid job id specified")


def sacct(*arguments: str) -> None:
    if (ROOT / "no-accounting").exists():
        sys.exit("Slurm accounting storage is disabled")
    for job in option(list(arguments), "--jobs").split(","):
        if get(job):
            print(f"{job}|{get(job)}")


def scancel(job: str, *arguments: str) -> None:
    if name := option(list(arguments), "--signal"):
        signal_task(job, signal.Signals[f"SIG{name.removeprefix('SIG')}"])
        return
    put(job, "CANCELLED by 1000")
    signal_task(job, signal.SIGCONT, signal.SIGTERM)


def scontrol(verb: str, job: str) -> None:
    if verb != "requeue" or (ROOT / "no-requeue").exists():
        sys.exit("scontrol: error: Requested operation is presently disabled")
    put(job, get(job, "requeues") + "x", "requeues")
    put(job, "REQUEUED")
    signal_task(job, signal.SIGCONT, signal.SIGTERM)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])

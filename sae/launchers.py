"""Parts of a sweep in processes of their own: several at once on this machine, or each as a Slurm job.

A part is a command that saves and exits at SIGTERM, and that goes on from there when it is given again. So nothing here
knows what a part does: a launcher starts the commands, passes signals on, waits, and tells which of them failed.
"""

import collections
import contextlib
import dataclasses
import io
import json
import os
import pickle
import platform
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from sae.types import Interrupted, UserError, count

Say = Callable[[str], Any]  # shows one line to the user

GRACE = 60.0  # seconds to save in, after SIGTERM; Slurm warns 90 seconds before a time limit
TAIL = 10  # lines of a failed part's log that are shown
LOCAL_POLL = 0.1  # seconds between two looks at the processes of this machine
SLURM_POLL = 1.0  # seconds between two looks for results of jobs
SLURM_ASK = 30.0  # seconds between two questions to Slurm, which all users of a cluster share
SETTLE = 60.0  # seconds for an ended job's result to be seen: a network file system may show it that late
LINGER = 5.0  # seconds that a job stopped by SIGTERM waits for submitit's signal, which often comes with it
TIMEOUTS = 50  # time limits that a job may run into and still go on by itself

_HEADER = "=== "  # begins the line in a log that says what was started

# A part is the child of this small program, which passes SIGTERM on once, however often it comes (a part that saves may
# take a second one as "now"), stops the part where its launcher has gone (kill -9), and ends as the part does. Linux's
# PR_SET_PDEATHSIG would be shorter, but its signal may come twice from a launcher that has threads.
_KEEPER = """import os, signal, subprocess, sys
part, asked, told = None, False, False
def stop(*_):
    global asked, told
    asked = True
    if part is not None and not told:
        told = True
        part.terminate()
signal.signal(signal.SIGTERM, stop)
part = subprocess.Popen(sys.argv[2:])
while True:
    if asked or os.getppid() != int(sys.argv[1]):
        stop()
    try:
        code = part.wait(0.5)
        break
    except subprocess.TimeoutExpired:
        pass
if code < 0:
    if -code not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)"""


@dataclasses.dataclass(frozen=True)
class Options:
    """Where the programs of a sweep run; none of it changes a result."""

    launcher: Literal["none", "local", "slurm"] = "none"
    """Where programs run: none, one after another in this process; local, each in a process; slurm, each in a job."""
    workers: int = 2
    """Processes at once, for --launcher local."""
    slurm_partition: str | None = None
    """Slurm: the partition; the cluster's default if not given."""
    slurm_minutes: int = 240
    """Slurm: time limit of a job; one that reaches it is saved, queued again and goes on."""
    slurm_gpus: int = 0
    """Slurm: GPUs of a job."""
    slurm_cpus: int | None = None
    """Slurm: CPU cores of a job; the cluster's default if not given."""
    slurm_mem_gb: float | None = None
    """Slurm: memory of a job; the cluster's default if not given."""
    slurm_extra: tuple[str, ...] = ()
    """Slurm: more of sbatch's options, as account=physics qos=low exclusive."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One process's work. `name` ("cohort 3/8") is unique among the parts of a run; `command` is an argument list."""

    name: str
    command: list[str]

    @property
    def slug(self) -> str:
        """The name as files and jobs may have it: "cohort-3-of-8"."""
        return re.sub(r"[^A-Za-z0-9]+", "-", self.name.replace("/", " of ")).strip("-")


@dataclasses.dataclass(frozen=True)
class Failure:
    """A part that did not get through: its name, the reason ("exit code 1"), its log and how that ends."""

    name: str
    reason: str
    log: Path
    tail: tuple[str, ...]

    def __str__(self) -> str:
        lines = self.tail or ("(nothing)",)
        return f"{self.name}: {self.reason}; {self.log} ends with\n" + "\n".join(f"  | {line}" for line in lines)


def launch(parts: Sequence[Part], folder: Path, options: Options, say: Say) -> list[Failure]:
    """Run parts with the launcher that the options name, local or slurm -> those that failed. Raises as these do."""
    if options.launcher == "slurm":
        return slurm(parts, folder, options, say)
    return local(parts, folder, options.workers, say)


def local(parts: Sequence[Part], folder: Path, workers: int, say: Say) -> list[Failure]:
    """Run parts in processes of this machine, `workers` at once -> those that failed, after all have ended.

    A part's output goes to `<folder>/logs/<part>.log`, after that of earlier attempts. SIGINT, SIGTERM or SIGHUP here
    is SIGTERM there, once; what is not gone after 60 seconds, or at a second signal, is killed. Each part sees this
    process's environment. Where several are to share GPUs, each gets its share of those that CUDA_VISIBLE_DEVICES
    lists, and of their memory.
    Raises UserError for bad input, OSError where logs cannot be written, Interrupted at a signal, after the last
    process is gone.
    """
    if workers < 1:
        raise UserError(f"workers: got {workers}, allowed: at least 1")
    logs = _make_logs(folder)
    workers = max(1, min(workers, len(parts)))
    waiting, failures = collections.deque(parts), []
    running: dict[int, tuple[Part, subprocess.Popen, float]] = {}  # by slot, as each slot has GPUs of its own
    with _signals() as caught:
        try:
            while (waiting or running) and not caught:
                for slot in range(workers):
                    if waiting and slot not in running and not caught:
                        part = waiting.popleft()
                        process = _start(part.command, logs / f"{part.slug}.log", _environment(slot, workers))
                        running[slot] = part, process, time.monotonic()
                        say(f"{part.name}: started, process {process.pid}")
                time.sleep(LOCAL_POLL)
                for slot, (part, process, began) in list(running.items()):
                    if process.poll() is None:
                        continue
                    del running[slot]
                    after = f"after {time.monotonic() - began:,.0f} s"
                    if process.returncode == 0:
                        say(f"{part.name}: finished {after}")
                    else:
                        failures.append(_failure(part, _ending(process.returncode), logs / f"{part.slug}.log"))
                        others = f"; {count(len(waiting) + len(running), 'other part')} to go"
                        say(f"{part.name}: failed {after}, {failures[-1].reason}{others}")
        finally:
            _stop({part.name: process for part, process, _ in running.values()}, caught, say)
    if caught:
        for failure in failures:
            say(str(failure))
        raise Interrupted(caught[0])
    return failures


def slurm(parts: Sequence[Part], folder: Path, options: Options, say: Say) -> list[Failure]:
    """Run each part as a Slurm job, through submitit -> those that failed, after all have ended.

    A part's output goes to `<folder>/logs/<part>.log`, what Slurm and submitit say to `<folder>/logs/submitit`; all
    nodes must see the folder. A job that is preempted or reaches its time limit has its part save, and is queued again.
    At SIGINT, SIGTERM or SIGHUP only the waiting ends: jobs go on, and the next call waits for those that are still
    there instead of submitting their parts a second time.
    Raises UserError for bad input, without submitit, without Slurm and where Slurm refuses the first job, OSError
    where logs cannot be written, Interrupted at a signal.
    """
    if options.slurm_minutes < 5:
        raise UserError(f"slurm_minutes: got {options.slurm_minutes}, allowed: at least 5, as Slurm warns 1.5 before")
    try:
        import submitit
    except ImportError:
        raise UserError("--launcher slurm needs submitit: pip install 'sparsity-lab[slurm]'") from None
    extra = _extra(options.slurm_extra)
    logs = _make_logs(folder).resolve()
    try:
        executor = submitit.AutoExecutor(logs / "submitit", cluster="slurm", slurm_max_num_timeout=TIMEOUTS)
    except RuntimeError:
        raise UserError(
            "--launcher slurm: no `srun` here; run it where jobs are submitted, or use --launcher local"
        ) from None
    executor.update_parameters(
        timeout_min=options.slurm_minutes,
        gpus_per_node=options.slurm_gpus or None,
        cpus_per_task=options.slurm_cpus,
        mem_gb=options.slurm_mem_gb,
        slurm_partition=options.slurm_partition,
        slurm_additional_parameters=extra,
    )
    with _signals() as caught:
        jobs, failures = _submit(parts, folder, logs, executor, say, caught)
        _wait(jobs, failures, logs, say, caught)
        if caught:
            for failure in failures:
                say(str(failure))
            if jobs:
                ids = " ".join(job.id for job in jobs)
                say(f"{count(len(jobs), 'job')} will go on: {ids}; the same command waits again, `scancel {ids}` ends")
            raise Interrupted(caught[0])
    return failures


@dataclasses.dataclass
class _Job:
    """A part that is submitted."""

    part: Part
    id: str
    submitted: float  # seconds since the epoch
    result: Path  # what submitit writes at the end
    errors: Path
    state: str = "PENDING"
    ended: float | None = None  # monotonic seconds, since when Slurm says so


def _submit(
    parts: Sequence[Part], folder: Path, logs: Path, executor: Any, say: Say, caught: list[int]
) -> tuple[list[_Job], list[Failure]]:
    """Submit the parts that no earlier job is still at work on -> (jobs, those that Slurm refused)."""
    import cloudpickle
    from submitit.core.utils import FailedJobError, FailedSubmissionError, JobPaths

    here = sys.modules[__name__]
    older, jobs, failures = _read_jobs(logs), [], []
    states = _states([job["id"] for job in older.values()])
    # By value, or every job would import the whole package, JAX with it, beside the process that does the work.
    cloudpickle.register_pickle_by_value(here)
    try:
        for part in parts:
            if caught:
                break
            job = older.get(part.name)
            if job is not None and states.get(job["id"], "GONE") not in _ENDED:
                say(f"{part.name}: job {job['id']} is there already")
            else:
                executor.update_parameters(name=f"{folder.name}-{part.slug}")
                log = logs / f"{part.slug}.log"
                try:
                    with contextlib.redirect_stderr(io.StringIO()):  # what sbatch says is in the error, too
                        id = executor.submit(_Run(part.command, str(log), os.getcwd())).job_id
                except (FailedJobError, FailedSubmissionError) as error:
                    reason = " ".join(str(error).split())
                    if caught:
                        break  # sbatch got the Ctrl-C too
                    if not jobs:
                        raise UserError(f"Slurm refused the job: {reason}") from None
                    failures.append(Failure(part.name, f"not submitted: {reason}", log, ()))  # a limit on jobs, say
                    say(f"{part.name}: {failures[-1].reason}")
                    continue
                job = {"id": id, "submitted": time.time()}
                say(f"{part.name}: job {id} submitted")
            paths = JobPaths(logs / "submitit", job_id=job["id"])
            jobs.append(_Job(part, job["id"], job["submitted"], paths.result_pickle, paths.stderr))
            _write_jobs(logs, jobs)
    finally:
        cloudpickle.unregister_pickle_by_value(here)
    return jobs, failures


def _wait(jobs: list[_Job], failures: list[Failure], logs: Path, say: Say, caught: list[int]) -> None:
    """Until a signal or the end of all jobs: take those that ended out of the list, and add failures to theirs."""
    asked = -float("inf")
    while jobs and not caught:
        if time.monotonic() - asked >= SLURM_ASK:
            asked = time.monotonic()
            states = _states([job.id for job in jobs])
            for job in jobs:
                state = states.get(job.id, job.state)
                if state != job.state and state not in _ENDED:
                    say(f"{job.part.name}: job {job.id} {state.lower()}")
                job.state = state
                job.ended = (job.ended or asked) if state in _ENDED else None
        for job in list(jobs):
            log = logs / f"{job.part.slug}.log"
            if job.result.exists():
                outcome, value = pickle.loads(job.result.read_bytes())
                reason = None if outcome == "success" else _last_line(value)
                if reason and not reason.startswith(("exit code", "killed by")):
                    log = job.errors  # not the part, but the job around it
            elif job.ended is not None and time.monotonic() - job.ended >= SETTLE:
                reason, log = f"Slurm says {job.state}", job.errors
            else:
                continue
            jobs.remove(job)
            _write_jobs(logs, jobs)
            after = f"{time.time() - job.submitted:,.0f} s after it was submitted"
            if reason is None:
                say(f"{job.part.name}: job {job.id} finished {after}")
            else:
                failures.append(_failure(job.part, f"{reason}, job {job.id}", log))
                say(f"{job.part.name}: failed {after}, {failures[-1].reason}; {count(len(jobs), 'other job')} to go")
        if jobs and not caught:
            time.sleep(SLURM_POLL)


class _Run:
    """What a Slurm job does: it runs a part as a process, and lets that save before the job ends or is queued again."""

    def __init__(self, command: list[str], log: str, cwd: str):
        self.command, self.log, self.cwd = command, log, cwd
        self.process: subprocess.Popen | None = None
        self.stopped = False

    def __call__(self) -> None:
        # submitit ignores SIGTERM. It may be all the warning there is: not every cluster sends the other one.
        signal.signal(signal.SIGTERM, lambda *_: self.stop())
        # Blocked here, these reach submitit a little later; blocked there, they cannot kill a part that does not know
        # them, where Slurm signals all processes of a job.
        others = {signal.SIGUSR1, signal.SIGUSR2}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, others)
        try:
            env = os.environ | {"PYTHONUNBUFFERED": "1"}
            self.process = _start(self.command, Path(self.log), env, self.cwd)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if self.stopped:
            self.stop()  # the signal came before there was a process
        while not self.ended():
            time.sleep(0.2)
        code = self.process.wait()
        if self.stopped:
            # No result is written on this way, or a job that Slurm queues again would be taken for finished.
            time.sleep(LINGER)
            sys.exit(143)
        if code:
            raise RuntimeError(_ending(code))

    def checkpoint(self) -> Any:
        """What submitit calls when the job is preempted or reaches its time limit -> what to queue again."""
        from submitit.helpers import DelayedSubmission

        self.stop()
        deadline = time.monotonic() + GRACE
        while not self.ended() and time.monotonic() < deadline:
            time.sleep(0.1)
        if not self.ended():
            os.killpg(self.process.pid, signal.SIGKILL)
        return DelayedSubmission(_Run(self.command, self.log, self.cwd))

    def stop(self) -> None:
        """Ask the process to save and exit."""
        self.stopped = True
        if not self.ended():
            os.kill(self.process.pid, signal.SIGTERM)

    def ended(self) -> bool:
        # Popen has a lock that a signal handler would wait for in vain, so this looks without it, and without reaping.
        if self.process is None:
            return True
        try:
            return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True


_ENDED = (
    "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED LAUNCH_FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED REVOKED TIMEOUT GONE"
).split()


def _states(ids: Sequence[str]) -> dict[str, str]:
    """{job id: state} of the jobs that Slurm can tell about; GONE is a job that it does not know (any more).

    The controller knows every living job, and forgets it minutes after its end; accounting, which not every cluster
    has, remembers.
    """
    if not ids:
        return {}
    code, out, err = _ask(["squeue", "--noheader", "--states=all", "--format=%i %T", f"--jobs={','.join(ids)}"])
    if code != 0 and "Invalid job id" not in err:
        return {}  # the controller is busy or away, which says nothing about jobs
    states = dict(line.split()[:2] for line in out.splitlines() if line.strip())
    if missing := [id for id in ids if id not in states]:
        _, out, _ = _ask(["sacct", "-X", "-n", "-P", "-o", "JobID,State", f"--jobs={','.join(missing)}"])
        remembered = dict(line.split("|")[:2] for line in out.splitlines() if "|" in line)
        for id in missing:
            state = remembered.get(id, "").partition(" ")[0]  # "CANCELLED by 1000"
            states[id] = state if state in _ENDED else "GONE"
    return states


def _ask(command: list[str]) -> tuple[int, str, str]:
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, "", str(error)
    return run.returncode, run.stdout, run.stderr


def _read_jobs(logs: Path) -> dict[str, dict]:
    """{part: {"id", "submitted"}} of the jobs that an earlier call left."""
    try:
        return json.loads((logs / "jobs.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _write_jobs(logs: Path, jobs: Sequence[_Job]) -> None:
    text = json.dumps({job.part.name: {"id": job.id, "submitted": job.submitted} for job in jobs}, indent=1)
    (logs / "jobs.json").write_text(text)


def _extra(options: Sequence[str]) -> dict[str, str | bool]:
    """sbatch's options from key=value, or from a key alone. Raises UserError."""
    extra: dict[str, str | bool] = {"requeue": True}  # else a cluster may refuse to queue a preempted job again
    for option in options:
        key, given, value = option.partition("=")
        if not re.fullmatch("[a-z][a-z0-9_-]*", key):
            raise UserError(
                f"slurm_extra: got {option!r}, allowed: sbatch's options as key=value, like account=physics"
            )
        extra[key.replace("-", "_")] = value if given else True
    return extra


def _make_logs(folder: Path) -> Path:
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    return logs


def _environment(slot: int, workers: int) -> dict[str, str]:
    """This process's environment, and what keeps `workers` processes out of each other's way on GPUs.

    The number of CPU threads stays as it is, because it could change the last bits of results.
    """
    env = os.environ | {"PYTHONUNBUFFERED": "1"}  # or a killed process's last words would not be in its log
    devices = [device for device in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
    if len(devices) > 1 and workers > 1:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(devices[slot::workers] or [devices[slot % len(devices)]])
    sharing = -(-workers // max(1, len(devices)))
    fractions = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")  # JAX refuses to see both
    if sharing > 1 and not any(name in env for name in fractions):
        env[fractions[0]] = f"{0.75 / sharing:.3f}"  # alone, JAX takes 0.75 of a GPU's memory at once
    return env


def _start(command: list[str], log: Path, env: dict[str, str], cwd: str | None = None) -> subprocess.Popen:
    """Start a command in a session of its own, its output added to the log."""
    shown = shlex.join(command).replace("\n", "\\n")  # a header is one line
    line = f"{_HEADER}{time.strftime('%Y-%m-%d %H:%M:%S')} {platform.node()}: {shown}\n"
    command = [sys.executable, "-I", "-S", "-c", _KEEPER, str(os.getpid()), *command]
    with open(log, "ab") as file:
        file.write(line.encode())
        file.flush()
        return subprocess.Popen(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )


def _stop(processes: dict[str, subprocess.Popen], caught: list[int], say: Say) -> None:
    """SIGTERM to all, and SIGKILL to those that are there after 60 seconds, or at one more signal to us."""
    for process in processes.values():
        process.terminate()
    if processes:
        say(f"stopping {count(len(processes), 'part')}: each saves and exits; once more to stop at once")
    signals, deadline = len(caught), time.monotonic() + GRACE
    while any(process.poll() is None for process in processes.values()):
        if time.monotonic() > deadline or len(caught) > signals:
            break
        time.sleep(LOCAL_POLL)
    for name, process in processes.items():
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            say(f"{name}: killed; it goes on from its last checkpoint")


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that every SIGINT, SIGTERM and SIGHUP is written in; what is ignored (nohup) stays ignored."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught  # only the main thread may handle signals
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, lambda number, _: caught.append(number))
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _failure(part: Part, reason: str, log: Path) -> Failure:
    return Failure(part.name, reason, log, _tail(log))


def _tail(log: Path) -> tuple[str, ...]:
    """How a log ends: lines of the last attempt only."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 16_384))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ()
    last = max((i for i, line in enumerate(lines) if line.startswith(_HEADER)), default=-1)
    return tuple([line for line in lines[last + 1 :] if line.strip()][-TAIL:])


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def _last_line(trace: str) -> str:
    """What a traceback says at its end, without the exception's name."""
    return re.sub(r"^[\w.]+: ", "", trace.strip().splitlines()[-1])

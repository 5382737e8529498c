"""Parts as Slurm jobs, through submitit."""

import contextlib
import dataclasses
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae.core.files import DamagedError, read_checked, write_checked
from sae.core.text import count
from sae.core.types import Interrupted, UserError
from sae.runner.launchers.parts import GRACE, Failure, LaunchOptions, Part, Say, ending, failed, make_logs, start, tail
from sae.runner.signals import all_caught

POLL = 1.0  # seconds between two looks for results of jobs
ASK = 30.0  # seconds between two questions to Slurm, which all users of a cluster share
SETTLE = 60.0  # seconds for an ended job's result to be seen: a network file system may show it that late
LINGER = 5.0  # seconds that a job stopped by SIGTERM waits for submitit's signal, which often comes with it
TIMEOUTS = 50  # time limits that a job may run into and still go on by itself


def run(parts: Sequence[Part], folder: Path, options: LaunchOptions, say: Say) -> list[Failure]:
    """Run each part as a Slurm job, through submitit -> those that failed, after all have ended.

    A part's output goes to `<folder>/logs/<part>.log`, and what Slurm and submitit say to `<folder>/logs/submitit`; all
    nodes must see the folder. A job that is preempted or reaches its time limit has its part save, and is queued again.
    At SIGINT, SIGTERM or SIGHUP only the waiting ends: jobs go on, and the next call waits for those that are still
    there instead of submitting their parts a second time.
    Raises UserError for bad input, without submitit, without Slurm and where Slurm refuses the first job; OSError
    where logs cannot be written; Interrupted at a signal.
    """
    if options.slurm_minutes < 5:
        raise UserError(f"slurm_minutes: got {options.slurm_minutes}, allowed: at least 5, as Slurm warns 1.5 before")
    try:
        import submitit
    except ImportError:
        raise UserError("--launcher slurm needs submitit: pip install -e '.[slurm]'") from None
    extra = _extra(options.slurm_extra)
    logs = make_logs(folder).resolve()
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
    with all_caught() as caught:
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
    end: Path  # what the job writes when its part has ended
    result: Path  # what submitit writes after that: a pickle, which is code, so it is never read
    errors: Path
    state: str = "PENDING"
    ended: float | None = None  # monotonic seconds at which Slurm first said so


def _submit(
    parts: Sequence[Part], folder: Path, logs: Path, executor: Any, say: Say, caught: list[int]
) -> tuple[list[_Job], list[Failure]]:
    """Submit the parts that no earlier job is still at work on -> (jobs, those that Slurm refused)."""
    import cloudpickle
    from submitit.core.utils import FailedJobError, FailedSubmissionError, JobPaths

    older = _read_jobs(logs)
    jobs: list[_Job] = []
    failures: list[Failure] = []
    states = _states([job["id"] for job in older.values()])
    # By value: else every job would import the whole package and JAX, beside the process that does the work.
    by_value = [sys.modules[__name__], sys.modules[Part.__module__]]
    for module in by_value:
        cloudpickle.register_pickle_by_value(module)
    try:
        for part in parts:
            if caught:
                break
            job: dict[str, Any] | None = older.get(part.name)
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
            jobs.append(
                _Job(part, job["id"], job["submitted"], _end(logs, job["id"]), paths.result_pickle, paths.stderr)
            )
            _write_jobs(logs, jobs)
    finally:
        for module in by_value:
            cloudpickle.unregister_pickle_by_value(module)
    return jobs, failures


def _wait(jobs: list[_Job], failures: list[Failure], logs: Path, say: Say, caught: list[int]) -> None:
    """Wait for a signal or the end of all jobs: jobs that end leave the list, and those that failed join `failures`."""
    asked = -float("inf")
    while jobs and not caught:
        if time.monotonic() - asked >= ASK:
            asked = time.monotonic()
            states = _states([job.id for job in jobs])
            for job in jobs:
                state = states.get(job.id, job.state)
                if state != job.state and state not in _ENDED:
                    say(f"{job.part.name}: job {job.id} {state.lower()}")
                job.state = state
                job.ended = (job.ended or asked) if state in _ENDED or job.result.exists() else None
        for job in list(jobs):
            log, code = logs / f"{job.part.slug}.log", _exit_code(job.end)
            if code is not None:
                reason = ending(code) if code else None
            elif job.ended is not None and time.monotonic() - job.ended >= SETTLE:
                log = job.errors  # what failed is not the part, but the job around it
                reason = _last_words(log) if job.result.exists() else f"Slurm says {job.state}"
            else:
                continue
            jobs.remove(job)
            _write_jobs(logs, jobs)
            after = f"{time.time() - job.submitted:,.0f} s after it was submitted"
            if reason is None:
                say(f"{job.part.name}: job {job.id} finished {after}")
            else:
                failures.append(failed(job.part, f"{reason}, job {job.id}", log))
                say(f"{job.part.name}: failed {after}, {failures[-1].reason}; {count(len(jobs), 'other job')} to go")
        if jobs and not caught:
            time.sleep(POLL)


class _Run:
    """The work of a Slurm job: a part as a process, which can save before the job ends or is queued again."""

    def __init__(self, command: list[str], log: str, cwd: str) -> None:
        self.command, self.log, self.cwd = command, log, cwd
        self.process: subprocess.Popen[bytes] | None = None
        self.stopped = False

    def __call__(self) -> None:
        # submitit ignores SIGTERM, which may be all the warning there is: not every cluster sends the other signal.
        signal.signal(signal.SIGTERM, lambda *_: self.stop())
        # The part inherits that these are blocked, so they cannot kill it where Slurm signals all processes of a job.
        # They reach submitit a little later, when they are unblocked here.
        others = {signal.SIGUSR1, signal.SIGUSR2}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, others)
        try:
            env = os.environ | {"PYTHONUNBUFFERED": "1"}
            self.process = start(self.command, Path(self.log), env, self.cwd)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if self.stopped:
            self.stop()  # the signal came before there was a process
        while not self.ended():
            time.sleep(0.2)
        code = self.process.wait()
        if self.stopped:
            # Exiting here writes no result: with one, a job that Slurm queues again would be taken for finished.
            time.sleep(LINGER)
            sys.exit(143)
        end = _end(Path(self.log).parent, os.environ["SLURM_JOB_ID"])
        end.with_suffix(".tmp").write_text(str(code), encoding="utf-8")
        os.replace(end.with_suffix(".tmp"), end)
        if code:
            raise RuntimeError(ending(code))

    def checkpoint(self) -> Any:
        """Save, when the job is preempted or reaches its time limit -> what submitit queues again."""
        from submitit.helpers import DelayedSubmission

        self.stop()
        deadline = time.monotonic() + GRACE
        while not self.ended() and time.monotonic() < deadline:
            time.sleep(0.1)
        if self.process is not None and not self.ended():
            os.killpg(self.process.pid, signal.SIGKILL)
        return DelayedSubmission(_Run(self.command, self.log, self.cwd))

    def stop(self) -> None:
        """Ask the process to save and exit."""
        self.stopped = True
        if self.process is not None and not self.ended():
            os.kill(self.process.pid, signal.SIGTERM)

    def ended(self) -> bool:
        """Whether there is no process (any more)."""
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
    """{job id: state} of the jobs that Slurm can tell about; a job that it does not know (any more) is GONE.

    The controller knows every living job, and forgets it minutes after its end. Accounting remembers, but not every
    cluster has it.
    """
    if not ids:
        return {}
    code, out, err = _ask(["squeue", "--noheader", "--states=all", "--format=%i %T", f"--jobs={','.join(ids)}"])
    if code != 0 and "Invalid job id" not in err:
        return {}  # the controller is busy or away, which says nothing about jobs
    states = {id: state for id, state, *_ in map(str.split, filter(str.strip, out.splitlines()))}
    if missing := [id for id in ids if id not in states]:
        _, out, _ = _ask(["sacct", "-X", "-n", "-P", "-o", "JobID,State", f"--jobs={','.join(missing)}"])
        remembered = {id: state for id, state, *_ in (line.split("|") for line in out.splitlines() if "|" in line)}
        for id in missing:
            state = remembered.get(id, "").partition(" ")[0]  # "CANCELLED by 1000"
            states[id] = state if state in _ENDED else "GONE"
    return states


def _ask(command: list[str]) -> tuple[int, str, str]:
    try:
        run = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=60, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, "", str(error)
    return run.returncode, run.stdout, run.stderr


def _read_jobs(logs: Path) -> dict[str, dict[str, Any]]:
    """{part: {"id": ..., "submitted": ...}} of the jobs that an earlier call left; {} if that cannot be read."""
    try:
        jobs = read_checked(logs / "jobs.json")
        return {part: {"id": _job_id(job["id"]), "submitted": float(job["submitted"])} for part, job in jobs.items()}
    except (FileNotFoundError, DamagedError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _job_id(id: str) -> str:
    """The id, which names files too. Raises ValueError for what is none of Slurm's."""
    if not re.fullmatch(r"\d+", id):
        raise ValueError(id)
    return id


def _end(logs: Path, id: str) -> Path:
    """The file in which a job says how its part ended."""
    return logs / "submitit" / f"{id}_end.txt"


def _exit_code(end: Path) -> int | None:
    """The part's exit code, or minus the signal that killed it; None where its job has not said so."""
    try:
        code = int(end.read_text(encoding="utf-8"))
        return code if code >= 0 else -signal.Signals(-code)
    except (OSError, ValueError):
        return None


def _write_jobs(logs: Path, jobs: Sequence[_Job]) -> None:
    write_checked(logs / "jobs.json", {job.part.name: {"id": job.id, "submitted": job.submitted} for job in jobs})


def _extra(options: Sequence[str]) -> dict[str, str | bool]:
    """sbatch's options, from `key=value` or a key alone. Raises UserError."""
    extra: dict[str, str | bool] = {"requeue": True}  # without it, a cluster may refuse to queue a preempted job again
    for option in options:
        key, given, value = option.partition("=")
        if not re.fullmatch("[a-z][a-z0-9_-]*", key):
            raise UserError(
                f"slurm_extra: got {option!r}, allowed: sbatch's options as key=value, like account=physics"
            )
        extra[key.replace("-", "_")] = value if given else True
    return extra


def _last_words(log: Path) -> str:
    """The last line of a log, without an exception's name."""
    return re.sub(r"^[\w.]+: ", "", (*tail(log)[-1:], "it ended before its part")[0])

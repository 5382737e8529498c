"""Parts in processes of this machine, several at once."""

import collections
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from sae.core.text import count
from sae.core.types import Interrupted, UserError
from sae.runner.launchers.parts import GRACE, Failure, LaunchOptions, Part, Say, ending, failed, make_logs, start
from sae.runner.signals import all_caught

POLL = 0.1  # seconds between two looks at the processes


def run(parts: Sequence[Part], folder: Path, options: LaunchOptions, say: Say) -> list[Failure]:
    """Run parts in processes of this machine, `workers` at once -> those that failed, after all have ended.

    A part's output goes to `<folder>/logs/<part>.log`, after that of earlier attempts. At SIGINT, SIGTERM or SIGHUP
    each part gets one SIGTERM; a part that is still there after 60 seconds, or at a second signal, is killed. Each part
    sees this process's environment. Where several share GPUs, each gets its share of those that CUDA_VISIBLE_DEVICES
    lists, and of their memory.
    Raises UserError for bad input, OSError where logs cannot be written, and Interrupted at a signal, after the last
    process is gone.
    """
    if options.workers < 1:
        raise UserError(f"workers: got {options.workers}, allowed: at least 1")
    logs = make_logs(folder)
    workers = max(1, min(options.workers, len(parts)))
    waiting, failures = collections.deque(parts), []
    running: dict[int, tuple[Part, subprocess.Popen[bytes], float]] = {}  # by slot, as each slot has GPUs of its own
    with all_caught() as caught:
        try:
            while (waiting or running) and not caught:
                for slot in range(workers):
                    if waiting and slot not in running and not caught:
                        part = waiting.popleft()
                        process = start(part.command, logs / f"{part.slug}.log", _environment(slot, workers))
                        running[slot] = part, process, time.monotonic()
                        say(f"{part.name}: started, process {process.pid}")
                time.sleep(POLL)
                for slot, (part, process, began) in list(running.items()):
                    if process.poll() is None:
                        continue
                    del running[slot]
                    after = f"after {time.monotonic() - began:,.0f} s"
                    if process.returncode == 0:
                        say(f"{part.name}: finished {after}")
                    else:
                        failures.append(failed(part, ending(process.returncode), logs / f"{part.slug}.log"))
                        others = f"; {count(len(waiting) + len(running), 'other part')} to go"
                        say(f"{part.name}: failed {after}, {failures[-1].reason}{others}")
        finally:
            _stop({part.name: process for part, process, _ in running.values()}, caught, say)
    if caught:
        for failure in failures:
            say(str(failure))
        raise Interrupted(caught[0])
    return failures


def _environment(slot: int, workers: int) -> dict[str, str]:
    """This process's environment, with settings that keep `workers` processes out of each other's way on GPUs.

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


def _stop(processes: dict[str, subprocess.Popen[bytes]], caught: list[int], say: Say) -> None:
    """Send SIGTERM to all, and SIGKILL to those that are still there after 60 seconds or at one more signal to us."""
    for process in processes.values():
        process.terminate()
    if processes:
        say(f"stopping {count(len(processes), 'part')}: each saves and exits; once more to stop at once")
    signals, deadline = len(caught), time.monotonic() + GRACE
    while any(process.poll() is None for process in processes.values()):
        if time.monotonic() > deadline or len(caught) > signals:
            break
        time.sleep(POLL)
    for name, process in processes.items():
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            say(f"{name}: killed; it goes on from its last checkpoint")

"""A process joins the others of its run."""

import os
import socket
import subprocess
import sys
from typing import TextIO

import jax
from jax.experimental import multihost_utils

from sae.core.types import UserError
from sae.engine.processes import listener
from sae.engine.processes.peers import watch

MEETING = 300  # seconds for all processes to start
SILENCE = 20  # seconds without a sign of life after which a process is gone

_joined = False


def start(coordinator: str, n: int | None = None, index: int | None = None) -> None:
    """Join the other processes, before anything uses a device.

    `coordinator` is HOST:PORT of process 0, the same for all `n` processes, each with its `index` from 0; or "auto",
    where Slurm, Open MPI or a TPU pod knows all three. Ends the process where the others do not come.
    Raises UserError.
    """
    global _joined
    if coordinator == "auto":
        if n is not None or index is not None:
            raise UserError("coordinator: got auto with processes or process, allowed: auto alone")
    else:
        _check(coordinator, n, index)
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    _listen(coordinator, n, index)
    try:
        jax.distributed.initialize(
            None if coordinator == "auto" else coordinator,
            n,
            index,
            initialization_timeout=MEETING,
            heartbeat_timeout_seconds=SILENCE,
            shutdown_timeout_seconds=MEETING,
        )
    except (ValueError, RuntimeError) as error:
        if "must be called before" in str(error):
            raise UserError(
                "coordinator: the definition file computes with jax while it is read, allowed: definitions only"
            ) from None
        if "defined" in str(error):  # "coordinator_address should be defined", "Number of processes must be defined"
            raise UserError(
                "coordinator: got auto, but no Slurm, Open MPI or TPU pod told of other processes; "
                "allowed: HOST:PORT, with --processes and --process"
            ) from None
        raise
    _joined = True
    with watch():
        multihost_utils.sync_global_devices("start")  # devices meet while nobody is busy: they wait only so long


def joined() -> bool:
    """Whether `start` joined this process to others."""
    return _joined


def _check(coordinator: str, n: int | None, index: int | None) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"coordinator: got {coordinator!r}, allowed: HOST:PORT of process 0, or auto")
    if n is None or index is None:
        raise UserError(f"coordinator: got {coordinator} alone, allowed: with --processes and --process")
    if n < 1:
        raise UserError(f"processes: got {n}, allowed: at least 1")
    if not 0 <= index < n:
        raise UserError(f"process: got {index}, allowed: 0 to {n - 1}, as there are {n} processes")
    if index == 0:
        try:
            socket.create_server(("", int(port))).close()
        except OSError as error:  # else jax would wait for itself until MEETING is over
            raise UserError(f"coordinator: port {port} cannot be used ({error.strerror}); take another one") from None


def _listen(coordinator: str, n: int | None, index: int | None) -> None:
    """Lead file descriptors 1 and 2 to the listener, and Python's own streams to where those led before."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    command = [sys.executable, "-I", "-S", listener.__file__, str(n), str(index), coordinator, str(MEETING)]
    program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert program.stdin is not None
    sys.stdout, sys.stderr = _copy(1, sys.stdout), _copy(2, sys.stderr)
    for descriptor in (1, 2):
        os.dup2(program.stdin.fileno(), descriptor)
    program.stdin.close()


def _copy(descriptor: int, stream: TextIO) -> TextIO:
    """A stream that leads where a file descriptor leads now."""
    return open(os.dup(descriptor), "w", buffering=1, encoding=stream.encoding, errors="backslashreplace")

"""The end of a process, which the others must understand: together, by an error, or because another is gone."""

import contextlib
import json
import os
import sys
import time
import traceback
from typing import NoReturn

import jax

from sae.engine.processes.joining import joined
from sae.engine.processes.listener import LOST
from sae.engine.processes.peers import ENDED, PeerLostError, store, watch

PARTING = 10.0  # seconds that a process which fails waits for the others, as what all see alike makes all fail


def end(code: int, reason: str = "", seconds: float | None = None) -> int:
    """Part from the other processes, at the end of the command line -> the exit code.

    Waits until the others have ended too, without limit or for some `seconds`: where this process fails, they may fail
    alike. Where they have not, this process exits at once, and they are told its reason.
    """
    if not joined():
        return code
    try:
        parted = _parted(code, reason, seconds)
    except PeerLostError as error:
        lost(error)
    if not parted:
        _exit(code)
    with contextlib.suppress(RuntimeError):  # all is done: who goes first does not matter
        jax.distributed.shutdown()
    return code


def lost(error: PeerLostError) -> NoReturn:
    """End this process, where another is gone: a usual exit would wait for that one."""
    os.write(2, f"{LOST}{error}\n".encode())  # the listener says it, unless it said so already
    _exit(1)


def drop(error: BaseException) -> None:
    """End this process at once, after an unexpected error or a second signal."""
    if not joined():
        return
    code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
    if not isinstance(error, SystemExit):
        traceback.print_exception(error)
    with contextlib.suppress(Exception):
        _parted(code or 1, f"{type(error).__name__}: {error}", 0.0)
    _exit(code)


def _exit(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _parted(code: int, reason: str, seconds: float | None) -> bool:
    """Say how this process ends -> whether all the others have said so within the time."""
    deadline = None if seconds is None else time.monotonic() + seconds
    with watch():
        mine = json.dumps({"code": code, "reason": " ".join(reason.split())})
        store().key_value_set(f"{ENDED}{jax.process_index()}", mine)
        while len(store().key_value_dir_get(ENDED)) < jax.process_count():
            if deadline is not None and time.monotonic() > deadline:
                return False
            time.sleep(0.05)
    return True

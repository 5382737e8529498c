"""Several processes as one run, on one machine or on many: process 0 decides and writes, the others follow.

`jax.distributed` joins the devices of all processes and notices a process that is gone. What the processes say to each
other beside arrays is short, and goes through its key-value store, so that nobody waits in a collective for a process
that is busy elsewhere. Process 0 alone reads and writes the run's folder, which the others need not see; each loads
the data itself. With one process everything here is nothing.
"""

import contextlib
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax._src.distributed import global_state  # its key-value store has no public name (Orbax takes it here, too)
from jax.experimental import multihost_utils

from sae.core.types import UserError

MEETING = 300  # seconds for all processes to start
SILENCE = 20  # seconds without a sign of life after which a process is gone
PARTING = 10.0  # seconds that a process which fails waits for the others to fail, as they do of what all see alike
POLL = 1_000  # milliseconds of one wait for a key; between two a signal is heeded
KEPT = 1_000  # messages in the store before the old ones are deleted
PIECE = 2**22  # 32-bit words of an array that are sent at a time

ADVICE = "what was saved is kept; start all processes again, with the same commands, and they go on from there"
GONE = re.compile(r"gloo|nccl|closed by peer|socket closed|UNAVAILABLE|coordination", re.IGNORECASE)

_messages, _meetings = itertools.count(), itertools.count()
_at: str | None = None  # of process 0, once `start` was called


class PeerLostError(UserError):
    """Another process of this run is gone."""


def start(coordinator: str, n: int | None = None, index: int | None = None) -> None:
    """Join the other processes. Before anything uses a device.

    `coordinator` is HOST:PORT of process 0, the same for all n processes, each with its index from 0; or "auto", where
    Slurm, Open MPI or a TPU pod knows all that. Raises UserError; ends the process where the others do not come.
    """
    global _at
    if coordinator == "auto":
        if n is not None or index is not None:
            raise UserError("coordinator: got auto with processes or process, allowed: auto alone")
    else:
        _check(coordinator, n, index)
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    _guard_output(coordinator, n, index)
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
    _at = coordinator
    with watch():
        multihost_utils.sync_global_devices("start")  # devices meet while nobody is busy: they wait only so long


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
        except OSError as error:  # jax would wait for itself until the meeting is over
            why = os.strerror(error.errno)
            raise UserError(f"coordinator: port {port} cannot be used ({why}); take another one") from None


def count() -> int:
    """How many processes this run has."""
    return jax.process_count()


def lead() -> bool:
    """Whether this is process 0, which decides and writes."""
    return jax.process_index() == 0


def of_lead(make: Callable[[], Any]) -> Any:
    """Call a function in process 0 -> what it gives, None elsewhere. Raises what it raises, elsewhere as UserError."""
    made = []
    decided(lambda: made.append(make()))
    return made[0] if made else None


def shared(value: Any) -> Any:
    """Process 0's value, anything that JSON can hold, in all processes."""
    return decided(lambda: value)


def decided(make: Callable[[], Any]) -> Any:
    """What a function gives in process 0, anything that JSON can hold, in all processes. Raises as `of_lead` does."""
    if count() == 1:
        return make()
    number = next(_messages)
    key = f"sae/said/{number // KEPT}/{number}"
    if lead():
        try:
            value = make()
        except Exception as error:
            what = str(error) if isinstance(error, UserError | OSError) else f"{type(error).__name__}: {error}"
            _store().key_value_set(key, json.dumps({"error": " ".join(what.split())}))
            raise
        _store().key_value_set(key, json.dumps({"value": value}))
    else:
        said = json.loads(_get(key))
        if "error" in said:
            raise UserError(said["error"])
        value = said["value"]
    if (number + 1) % KEPT == 0:
        meet()
        if lead():
            _store().key_value_delete(f"sae/said/{number // KEPT}/")
    return value


def same(values: dict[str, Any]) -> None:
    """Check that all processes were given the same. Raises UserError."""
    if count() == 1:
        return
    mine = json.loads(json.dumps(values, default=str))
    theirs = shared(mine)
    for name in theirs:
        if theirs[name] != mine.get(name):
            raise UserError(
                f"{name}: process {jax.process_index()} was given another than process 0: "
                f"{_short(mine.get(name))}, there {_short(theirs[name])}; allowed: the same command in all"
            )
    meet()


def meet() -> None:
    """Wait until all processes have come here."""
    if count() == 1:
        return
    name = f"sae/met/{next(_meetings)}"
    _store().key_value_set(f"{name}/{jax.process_index()}", "")
    if lead():
        for i in range(count()):
            _get(f"{name}/{i}")
        _store().key_value_delete(f"{name}/")
        _store().key_value_set(f"{name}-all", "")
    _get(f"{name}-all")


def spread(arrays: Sequence[np.ndarray] | None, like: Sequence) -> list[np.ndarray]:
    """Process 0's arrays in all processes, bit for bit; `like` has their shapes and dtypes."""
    if count() == 1:
        return list(arrays)
    return [_spread(arrays[i] if lead() else np.zeros(a.shape, a.dtype)) for i, a in enumerate(like)]


def _spread(array: np.ndarray) -> np.ndarray:
    # as whole numbers: a sum over processes, which this is, would lose the sign of a zero
    data = np.ascontiguousarray(array).tobytes()
    words = np.frombuffer(data + bytes(-len(data) % 4), np.uint32)
    pieces = []
    for at in range(0, len(words), PIECE):
        piece = words[at : at + PIECE]
        padded = np.zeros(1 << (len(piece) - 1).bit_length(), np.uint32)  # few lengths, so few programs
        padded[: len(piece)] = piece
        pieces.append(multihost_utils.broadcast_one_to_all(padded)[: len(piece)])
    whole = np.concatenate(pieces).tobytes() if pieces else b""
    return np.frombuffer(whole[: len(data)], array.dtype).reshape(array.shape)


def note(signals: Sequence[int]) -> None:
    """Tell process 0 of the first signal that came here."""
    if signals and not lead():
        _store().key_value_set(f"sae/signals/{jax.process_index()}", str(signals[0]), allow_overwrite=True)


def noted(signals: Sequence[int]) -> int:
    """In process 0, the first signal that came here or, as `note` told, elsewhere; 0 for none."""
    if signals or count() == 1:
        return signals[0] if signals else 0
    elsewhere = _store().key_value_dir_get("sae/signals/")
    if elsewhere:
        _store().key_value_delete("sae/signals/")
    return int(elsewhere[0][1]) if elsewhere else 0


@contextlib.contextmanager
def watch() -> Iterator[None]:
    """What fails inside because another process is gone raises PeerLostError."""
    try:
        yield
    except (ValueError, RuntimeError) as error:  # of jax and of its collectives
        if count() == 1 or not GONE.search(str(error)):
            raise
        raise _lost() from None


def end(code: int, reason: str = "", seconds: float | None = None) -> int:
    """Part from the others, at the end of the command line -> the exit code.

    Waits for them, as long as they need or for some seconds: where this process fails, they may fail alike. Where they
    have not, it is gone at once, and they are told its reason.
    """
    if _at is None:
        return code
    try:
        parted = _parted(code, reason, seconds)
    except PeerLostError as error:
        return lost(error)
    if not parted:
        return _exit(code)
    with contextlib.suppress(RuntimeError):  # all is done: who goes first does not matter
        jax.distributed.shutdown()
    return code


def lost(error: PeerLostError) -> int:
    """End this process, where another is gone: a usual exit would wait for that one."""
    os.write(2, f"{_LOST}{error}\n".encode())  # said once, by the process that may have said it already
    return _exit(1)


def drop(error: BaseException) -> None:
    """End this process at once, by an error that nobody expected or a second signal."""
    if _at is None:
        return
    code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
    if not isinstance(error, SystemExit):
        traceback.print_exception(error)
    with contextlib.suppress(Exception):
        _parted(code or 1, f"{type(error).__name__}: {error}", 0.0)
    _exit(code)


def _exit(code: int) -> int:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _parted(code: int, reason: str, seconds: float | None) -> bool:
    """Whether the others have come to an end within the time, as this process has."""
    deadline = None if seconds is None else time.monotonic() + seconds
    with watch():
        mine = json.dumps({"code": code, "reason": " ".join(reason.split())})
        _store().key_value_set(f"sae/ended/{jax.process_index()}", mine)
        while len(_store().key_value_dir_get("sae/ended/")) < count():
            if deadline is not None and time.monotonic() > deadline:
                return False
            time.sleep(0.05)
    return True


def _failed() -> str | None:
    """Which other process ended by an error, as a sentence."""
    for key, text in _store().key_value_dir_get("sae/ended/"):
        index, ended = int(key.rpartition("/")[2]), json.loads(text)
        if index != jax.process_index() and ended["code"]:
            return f"process {index} of {count()} stopped: {ended['reason'] or 'see what it says'}"
    return None


def _lost() -> PeerLostError:
    which = f"process {1 - jax.process_index()}" if count() == 2 else "another process"
    try:
        if reason := _failed():
            return PeerLostError(reason)
    except (ValueError, RuntimeError):  # the store is in process 0
        which = "process 0"
    return PeerLostError(f"{which} of {count()} is gone; {ADVICE}")


def _get(key: str) -> str:
    """A key's value, when it comes. Raises UserError where another process fails instead."""
    while True:
        try:
            return _store().blocking_key_value_get(key, POLL)
        except RuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        if reason := _failed():
            raise UserError(reason)


def _store():
    if global_state.client is None:
        raise UserError("jax sees several processes that were not joined; call jax.distributed.initialize first")
    return global_state.client


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


_LOST = "sae lost: "  # begins a line to the process below

# What jax's C++ side writes goes to this small process, which outlives the abort that ends a process whose peer is
# gone, and says in one line what twenty lines of addresses say. Python's own streams keep the terminal.
_LISTENER = r"""import re, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
n, me, at, meeting, lost, advice = sys.argv[1:]
of = "" if n == "None" else f" of {n}"
state, told, fatal = "theirs", False, b""
def tell(line):
    global told
    if not told:
        told = True
        sys.stderr.write(f"sae: {line}\n")
        sys.stderr.flush()
def explain(text):
    if b"RegisterTask" in text:
        tell(f"processes{of} did not all come to {at} within {meeting} seconds; start all, and see that they reach it")
    elif b"to coordination service" in text or b"ocket closed" in text:
        tell(f"process 0{of} is gone; {advice}")
    elif ids := re.search(rb"heartbeats\):\n((?:\d+\n|/job[^\n]*\n)+)", text):
        tell("process " + " and ".join(re.findall(r"\d+$", ids[1].decode(), re.M)) + f"{of} is gone; {advice}")
    else:
        tell((f"process {1 - int(me)}" if n == "2" else "another process") + f"{of} is gone; {advice}")
for line in sys.stdin.buffer:
    record = re.match(rb"([IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ ([\w.]+):\d+\]", line)
    if line.startswith(lost.encode()):
        tell(line.decode(errors="replace")[len(lost):].strip())
    elif state == "fatal":
        if line.startswith(b"***"):
            explain(fatal)
            state = "over"
        fatal += line
    elif state == "over" or line.startswith(b"[Gloo] "):
        pass
    elif record and re.match(rb"client\.h|coordination_service|preemption_", record[2]):
        state = "fatal" if record[1] == b"F" else "ours"
        fatal = line
    elif record or state == "theirs":
        state = "theirs"
        sys.stderr.buffer.write(line)
        sys.stderr.flush()
if state == "fatal":
    explain(fatal)"""


def _guard_output(coordinator: str, n: int | None, index: int | None) -> None:
    """Give file descriptors 1 and 2 to a process that reads what is written there, and Python's streams copies."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    arguments = [str(n), str(index), coordinator, str(MEETING), _LOST, ADVICE]
    listener = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _LISTENER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    keep = {"buffering": 1, "errors": "backslashreplace"}
    sys.stdout = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, **keep)
    sys.stderr = os.fdopen(os.dup(2), "w", encoding=sys.stderr.encoding, **keep)
    for number in (1, 2):
        os.dup2(listener.stdin.fileno(), number)
    listener.stdin.close()

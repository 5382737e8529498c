"""What the processes of a run say to each other beside arrays of training.

Messages are short and go through the key-value store of `jax.distributed`, so that no process waits in a collective
for one that is busy elsewhere.
"""

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from sae.core.types import UserError
from sae.engine.processes.peers import failed, store

POLL = 1_000  # milliseconds of one wait for a key; between two waits a signal is heeded
KEPT = 1_000  # messages in the store before the old ones are deleted
PIECE = 2**22  # 32-bit words of an array that are sent at a time

T = TypeVar("T")
_messages, _meetings = itertools.count(), itertools.count()


def count() -> int:
    """The number of processes of this run."""
    return jax.process_count()


def lead() -> bool:
    """Whether this is process 0, which decides and writes."""
    return jax.process_index() == 0


def of_lead(make: Callable[[], T]) -> T | None:
    """Call a function in process 0 alone -> its result there, None in the others.

    Raises what the function raises; in the other processes, as UserError.
    """
    made: list[T] = []
    decided(lambda: made.append(make()))
    return made[0] if made else None


def shared(value: Any) -> Any:
    """Process 0's value, in all processes. It must be a value that JSON can hold."""
    return decided(lambda: value)


def decided(make: Callable[[], Any]) -> Any:
    """Call a function in process 0 alone -> its result, a value that JSON can hold, in all processes.

    Raises what the function raises; in the other processes, as UserError.
    """
    if count() == 1:
        return make()
    number = next(_messages)
    key = f"sae/said/{number // KEPT}/{number}"
    if lead():
        try:
            value = make()
        except Exception as error:
            what = str(error) if isinstance(error, UserError | OSError) else f"{type(error).__name__}: {error}"
            store().key_value_set(key, json.dumps({"error": " ".join(what.split())}))
            raise
        store().key_value_set(key, json.dumps({"value": value}))
    else:
        said = json.loads(_get(key))
        if "error" in said:
            raise UserError(said["error"])
        value = said["value"]
    if (number + 1) % KEPT == 0:
        meet()
        if lead():
            store().key_value_delete(f"sae/said/{number // KEPT}/")
    return value


def same(values: dict[str, Any]) -> None:
    """Check that all processes have the same values, by name. Raises UserError."""
    if count() == 1:
        return
    mine = json.loads(json.dumps(values, default=str))
    theirs = shared(mine)
    for name, value in theirs.items():
        if value != mine.get(name):
            raise UserError(
                f"{name} differs: process {jax.process_index()} has {_short(mine.get(name))}, "
                f"process 0 has {_short(value)}; allowed: the same command in all processes"
            )
    meet()


def meet() -> None:
    """Wait until all processes have called this."""
    if count() == 1:
        return
    name = f"sae/met/{next(_meetings)}"
    store().key_value_set(f"{name}/{jax.process_index()}", "")
    if lead():
        for i in range(count()):
            _get(f"{name}/{i}")
        store().key_value_delete(f"{name}/")
        store().key_value_set(f"{name}-all", "")
    _get(f"{name}-all")


def spread(arrays: Sequence[np.ndarray] | None, like: Sequence[Any]) -> list[np.ndarray]:
    """Process 0's arrays, bit for bit, in all processes.

    `arrays` is None in the other processes; `like` has the shapes and dtypes of the arrays, in all processes.
    """
    if count() == 1:
        return list(arrays or ())
    return [_spread(np.zeros(a.shape, a.dtype) if arrays is None else arrays[i]) for i, a in enumerate(like)]


def _spread(array: np.ndarray) -> np.ndarray:
    # sent as whole numbers: this is a sum over processes, which would lose the sign of a zero
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
    """Tell process 0 the first signal that this process got."""
    if signals and not lead():
        store().key_value_set(f"sae/signals/{jax.process_index()}", str(signals[0]), allow_overwrite=True)


def noted(signals: Sequence[int]) -> int:
    """In process 0: the first signal that it got or, as `note` told it, another process; 0 for none."""
    if signals or count() == 1:
        return signals[0] if signals else 0
    elsewhere = store().key_value_dir_get("sae/signals/")
    if elsewhere:
        store().key_value_delete("sae/signals/")
    return int(elsewhere[0][1]) if elsewhere else 0


def _get(key: str) -> str:
    """A key's value, as soon as it is there. Raises UserError where another process fails instead."""
    while True:
        try:
            return store().blocking_key_value_get(key, POLL)
        except RuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        if reason := failed():
            raise UserError(reason)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."

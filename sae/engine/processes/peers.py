"""How a process notices that another one failed or is gone."""

import contextlib
import json
import re
from collections.abc import Generator
from typing import Any

import jax
from jax._src.distributed import global_state  # its key-value store has no public name (Orbax takes it here, too)

from sae.core.types import UserError
from sae.engine.processes.listener import ADVICE

GONE = re.compile(r"gloo|nccl|closed by peer|socket closed|UNAVAILABLE|coordination", re.IGNORECASE)
ENDED = "sae/ended/"  # the folder of the store in which every process writes how it ended


class PeerLostError(UserError):
    """Another process of this run is gone."""


def store() -> Any:
    """The key-value store of `jax.distributed`, which is in process 0. Raises UserError where nobody joined it."""
    if global_state.client is None:
        raise UserError("jax sees several processes that were not joined; call jax.distributed.initialize first")
    return global_state.client


@contextlib.contextmanager
def watch() -> Generator[None]:
    """Raise PeerLostError for what fails inside because another process is gone."""
    try:
        yield
    except (ValueError, RuntimeError) as error:  # jax and its collectives raise these
        if jax.process_count() == 1 or not GONE.search(str(error)):
            raise
        raise _lost() from None


def failed() -> str | None:
    """A sentence that names another process which ended by an error; None where none did."""
    for key, text in store().key_value_dir_get(ENDED):
        index, ended = int(key.rpartition("/")[2]), json.loads(text)
        if index != jax.process_index() and ended["code"]:
            return f"process {index} of {jax.process_count()} stopped: {ended['reason'] or 'see what it says'}"
    return None


def _lost() -> PeerLostError:
    n = jax.process_count()
    which = f"process {1 - jax.process_index()}" if n == 2 else "another process"
    try:
        if reason := failed():
            return PeerLostError(reason)
    except (ValueError, RuntimeError):  # the store is in process 0
        which = "process 0"
    return PeerLostError(f"{which} of {n} is gone; {ADVICE}")

"""Checkpoints of a cohort in training: a run that was stopped anywhere resumes from there, bit for bit.

A checkpoint is the whole `CohortState` (parameters, the optimizer's moments, silent counts, the state of a control or
an average, the metric sums of an unfinished chunk), its step, and the history up to there. The order of examples and
every random key follow from the step. Leaves are stored by name. Orbax writes in the background and keeps the last
two; a checkpoint that does not read back as it was written is skipped.

With several processes, process 0 alone reads and writes. The others make the same calls and get what it read.
"""

import contextlib
import errno
import json
import logging
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sae.core.types import UserError
from sae.engine import processes
from sae.engine.programs import CohortState

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a full disk, a quota, `ulimit -f`

Chunk = tuple[int, dict[str, np.ndarray]]  # step, {"train/l0": [member], ...}


class Checkpoints:
    """The checkpoints in one folder, which belong to one cohort."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder = folder.absolute()
        self._say = say
        self._manager: Any = None

    def _open(self) -> tuple[Any, Any]:
        """Orbax and its manager, imported late: the import takes a second, which a short run need not wait for."""
        import orbax.checkpoint as ocp

        if self._manager is None:
            logging.getLogger("absl").setLevel(logging.CRITICAL)  # it logs tracebacks of what it also raises
            if not isinstance(sys.unraisablehook, _WithoutLateErrors):
                sys.unraisablehook = _WithoutLateErrors(sys.unraisablehook)
            options: dict[str, Any] = {"max_to_keep": 2, "enable_async_checkpointing": True}
            if processes.count() > 1:  # Orbax would wait for the others
                self.folder.mkdir(parents=True, exist_ok=True)
                only = ocp.options.MultiprocessingOptions(
                    primary_host=0, active_processes={0}, barrier_sync_key_prefix="process-0"
                )
                options |= {"multiprocessing_options": only, "create": False}
            self._manager = ocp.CheckpointManager(self.folder, options=ocp.CheckpointManagerOptions(**options))
        return ocp, self._manager

    def save(self, step: int, state: CohortState, history: Sequence[Chunk]) -> None:
        """Write a state that is on the host; training goes on meanwhile.

        Raises OSError where this checkpoint, or the one before, cannot be written; older ones stay.
        """
        if processes.lead():
            with self._writing():
                self._save(step, state, history)

    def _save(self, step: int, state: CohortState, history: Sequence[Chunk]) -> None:
        ocp, manager = self._open()
        arrays = _named(state)
        names = list(history[0][1]) if history else []
        columns = [np.stack([numbers[name] for _, numbers in history]) for name in names]  # each [chunk, member]
        arrays |= {f"history.{i:03d}": column for i, column in enumerate(columns)}
        meta = {
            "arrays": {name: [list(a.shape), a.dtype.name, _checksum(a)] for name, a in arrays.items()},
            "history": names,
            "steps": [at for at, _ in history],
        }
        meta["checksum"] = _checksum_of_json(meta)
        args = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(meta))
        manager.save(step, args=args, force=True)

    def restore(self, like: CohortState) -> tuple[int, CohortState, list[Chunk]] | None:
        """(step, state, history) of the newest checkpoint that reads back as it was written, None if there is none.

        `like` has the state's shapes and dtypes. The history is process 0's, and empty elsewhere.
        """
        leaves = _named(like)
        found = processes.of_lead(lambda: self._newest(leaves))
        step = processes.shared(found and found[0])
        if step is None:
            return None
        read = processes.spread(found and found[1], list(leaves.values()))
        state = jax.tree.unflatten(jax.tree.structure(like), read)
        return step, state, found[2] if found else []

    def _newest(self, leaves: Mapping[str, jax.ShapeDtypeStruct]) -> tuple[int, list[np.ndarray], list[Chunk]] | None:
        if not self.folder.exists():
            return None
        _, manager = self._open()
        for step in sorted(manager.all_steps(), reverse=True):
            try:
                arrays, meta = self._read(step)
                columns = [arrays[f"history.{i:03d}"] for i in range(len(meta["history"]))]
            except Exception as error:  # Orbax, JSON, zstd and the file system each have their own
                reason = " ".join(str(error).split())[:200]
                self._say(f"checkpoint {self.folder / str(step)} is damaged and is passed over: {reason}")
                manager.delete(step)
                continue
            described = lambda tree: {name: (leaf.shape, leaf.dtype) for name, leaf in tree.items()}
            kept = {name: array for name, array in arrays.items() if name.startswith("state.")}
            if bits := _other_bits(kept, leaves):
                fix = f"set JAX_ENABLE_X64={int(bits == 64)}, as the run began, or start again with --fresh"
                path = self.folder / str(step)
                raise UserError(f"checkpoint {path} has numbers of {bits} bits, and this process has others; {fix}")
            if other := sorted(described(kept).items() ^ described(leaves).items(), key=str):
                self._say(
                    f"checkpoint {self.folder / str(step)} is of another version: {other[0][0]} differs; passed over"
                )
                continue
            state = [arrays[name] for name in leaves]
            numbers = [dict(zip(meta["history"], row, strict=True)) for row in zip(*columns, strict=True)]
            history = list(zip(meta["steps"], numbers, strict=True))
            return step, state, history
        return None

    def _read(self, step: int) -> tuple[dict[str, np.ndarray], dict]:
        ocp, manager = self._open()
        meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
        if meta.pop("checksum") != _checksum_of_json(meta):
            raise ValueError("its description has another checksum")
        shapes = {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype, _) in meta["arrays"].items()}
        found = manager.restore(step, args=ocp.args.Composite(arrays=ocp.args.StandardRestore(shapes))).arrays
        arrays = {name: np.asarray(array) for name, array in found.items()}
        wrong = [name for name, array in arrays.items() if _checksum(array) != meta["arrays"][name][2]]
        if wrong:
            raise ValueError(f"{len(wrong)} of {len(arrays)} arrays have another checksum")
        return arrays, meta

    def remove(self) -> None:
        """Delete all checkpoints: the cohort is finished and its members have their rows."""
        self.close()
        if processes.lead():
            shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Wait until the last checkpoint is on the disk. Raises OSError where it cannot be written."""
        manager, self._manager = self._manager, None
        if manager is not None:
            with self._writing(), contextlib.closing(manager):
                manager.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self) -> Generator[None]:
        """Raise an OSError in one line for what Orbax raises, of many kinds and over many lines, on a full disk."""
        try:
            yield
        except Exception as error:
            code = next((code for code in FULL if os.strerror(code) in str(error)), errno.EIO)
            reason = os.strerror(code) if code != errno.EIO else " ".join(str(error).split())[:200]
            raise OSError(code, reason, str(self.folder)) from None


def _other_bits(kept: Mapping[str, np.ndarray], leaves: Mapping[str, jax.ShapeDtypeStruct]) -> int | None:
    """The bits of a checkpoint's floats where JAX had others when it was written; None where it had the same."""
    ours = {leaf.dtype for name, leaf in leaves.items() if name in kept and np.issubdtype(leaf.dtype, np.floating)}
    theirs = {array.dtype for name, array in kept.items() if name in leaves and np.issubdtype(array.dtype, np.floating)}
    wide = np.dtype(np.float64)
    return (64 if wide in theirs else 32) if (wide in theirs) != (wide in ours) else None


class _WithoutLateErrors:
    """A `sys.unraisablehook` that is silent where a read or write of Orbax fails late.

    The threads of tensorstore then meet an event loop that is closed, and Python prints a traceback for each.
    """

    def __init__(self, before: Callable[[Any], Any]) -> None:
        self.before = before

    def __call__(self, raised: Any) -> None:
        if str(raised.exc_value) != "Event loop is closed":
            self.before(raised)


def _named(state: CohortState) -> dict[str, Any]:
    """The leaves of a state by their paths, {"state.train.sae.W_enc.value": ...}, in the order of the tree."""
    paths, _ = jax.tree_util.tree_flatten_with_path(state)
    return {f"state.{jax.tree_util.keystr(path, simple=True, separator='.')}": leaf for path, leaf in paths}


def _checksum_of_json(value: dict) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).tobytes())

"""Checkpoints of a cohort in training, so that a run which is stopped anywhere goes on from there, bit for bit.

A checkpoint is the whole `CohortState` (parameters, Adam's moments, silent counts, the metric sums of an unfinished
chunk) and its step, from which the order of examples and every random key follow. Orbax writes it in the
background; the last two are kept, and one that does not read back as it was written is passed over.
"""

import logging
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from sae.cohort import CohortState


class Checkpoints:
    """The checkpoints of one cohort, in `<folder>/checkpoints/cohort-000`."""

    def __init__(self, folder: Path, cohort: int, say: Callable[[str], None]):
        self.folder = (folder / "checkpoints" / f"cohort-{cohort:03d}").absolute()
        self._say, self._manager = say, None

    def _open(self):
        """Orbax and its manager: importing takes a second, which a short run need not wait for."""
        import orbax.checkpoint as ocp

        if self._manager is None:
            logging.getLogger("absl").setLevel(logging.ERROR)
            options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=True)
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        return ocp, self._manager

    def save(self, step: int, state: CohortState) -> None:
        """Copy the state to the host, and write it while training goes on."""
        ocp, manager = self._open()
        leaves = _named(jax.device_get(jax.tree.leaves(state)))
        meta = {"checksums": {name: _checksum(leaf) for name, leaf in leaves.items()}}
        args = ocp.args.Composite(state=ocp.args.StandardSave(leaves), meta=ocp.args.JsonSave(meta))
        manager.save(step, args=args, force=True)

    def restore(self, like: CohortState) -> tuple[int, CohortState] | None:
        """(step, state) of the newest checkpoint that reads back as it was written; None where there is none."""
        if not self.folder.exists():
            return None
        ocp, manager = self._open()
        leaves, structure = jax.tree.flatten(like)
        shapes = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in _named(leaves).items()}
        for step in sorted(manager.all_steps(), reverse=True):
            args = ocp.args.Composite(state=ocp.args.StandardRestore(shapes), meta=ocp.args.JsonRestore())
            try:
                restored = manager.restore(step, args=args)
                found = {name: np.asarray(leaf) for name, leaf in restored.state.items()}
                wrong = [name for name, leaf in found.items() if _checksum(leaf) != restored.meta["checksums"][name]]
                if wrong:
                    raise ValueError(f"{len(wrong)} of {len(found)} arrays have another checksum")
            except Exception as error:  # Orbax, JSON, zstd and the file system each have their own
                reason = " ".join(str(error).split())[:200]
                self._say(f"checkpoint {self.folder / str(step)} is damaged and is passed over: {reason}")
                manager.delete(step)
                continue
            return step, jax.tree.unflatten(structure, [jax.numpy.asarray(found[name]) for name in shapes])
        return None

    def remove(self) -> None:
        """Delete them all: the cohort is finished, and its members have their rows."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Wait until the last one is on the disk."""
        if self._manager is not None:
            self._manager.wait_until_finished()
            self._manager.close()
            self._manager = None


def _named(leaves: list) -> dict:
    return {f"{i:03d}": leaf for i, leaf in enumerate(leaves)}


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).tobytes())

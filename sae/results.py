"""A run's folder: what is written there, and how a notebook reads it back."""

import io
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
import safetensors.numpy

from sae.experiment import Experiment, unflatten
from sae.files import write_atomically, write_json
from sae.model import Sae
from sae.types import UserError, nearest

DEFINITION, MEMBERS, HISTORY = "definition.json", "members.parquet", "history.parquet"
PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")


class Results:
    """The results of a run, read from its folder: `sae.load("runs/patches_l1")`."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser()
        path = self.folder / DEFINITION
        if not path.exists():
            raise UserError(f"{self.folder}: no {DEFINITION} there, so no run; allowed: a folder that `sae run` wrote")
        try:
            self.definition: dict[str, Any] = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path}: not readable as JSON ({error})") from None

    def __repr__(self) -> str:
        state = "finished" if self.finished else "unfinished"
        n = len(self.definition["members"])
        return f"<Results of {self.definition['name']!r}, {n} members, {state}: {self.folder}>"

    @property
    def members(self) -> pd.DataFrame:
        """A row per finished member: hyper-parameters by dotted name, `member`, `cohort`, `status`, `eval/...`."""
        return self._table(MEMBERS)

    @property
    def history(self) -> pd.DataFrame:
        """A row per member and chunk: `member`, `step`, `examples`, `train/...`."""
        return self._table(HISTORY)

    @property
    def finished(self) -> bool:
        """Whether every member of the definition has its row in the members table."""
        return (self.folder / MEMBERS).exists() and len(self.members) == len(self.definition["members"])

    def sae(self, member: int) -> Sae:
        """The trained autoencoder of a member. Raises UserError where there is none."""
        table = self.members.set_index("member")
        if member not in table.index:
            raise UserError(
                f"{self.folder}: got member {member}, allowed: those that are finished: {_ranges(table.index)}"
            )
        cohort = int(table.loc[member, "cohort"])
        with safetensors.safe_open(weights_path(self.folder, cohort), framework="numpy") as file:
            place = int(np.flatnonzero(file.get_tensor("member") == member)[0])
            weights = [jnp.asarray(file.get_slice(name)[place]) for name in PARAMETERS]
        flat = self.definition["members"][member]
        activation = unflatten(Experiment, "activation", flat)
        precision = flat.get("precision", "float32")  # a folder older than this choice has no such name
        return Sae(*weights, activation, flat["apply_b_dec_to_input"], precision)

    def _table(self, name: str) -> pd.DataFrame:
        path = self.folder / name
        if not path.exists():
            raise UserError(
                f"{self.folder}: no {name} yet; {nearest(name, sorted(p.name for p in self.folder.iterdir()))}"
            )
        return pd.read_parquet(path)


def _ranges(numbers) -> str:
    """[0, 1, 2, 5] -> "0-2, 5"."""
    numbers = sorted(numbers)
    starts = [n for i, n in enumerate(numbers) if i == 0 or numbers[i - 1] != n - 1]
    ends = [n for i, n in enumerate(numbers) if i + 1 == len(numbers) or numbers[i + 1] != n + 1]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def load(folder: str | Path) -> Results:
    """Open a run's folder. Raises UserError where there is no run."""
    return Results(folder)


def weights_path(folder: Path, cohort: int) -> Path:
    """Where a cohort's weights lie."""
    return folder / "weights" / f"cohort-{cohort:03d}.safetensors"


def write_definition(folder: Path, definition: dict[str, Any]) -> None:
    """Write definition.json."""
    write_json(folder / DEFINITION, definition)


def write_table(folder: Path, name: str, table: pd.DataFrame) -> None:
    """Write members.parquet or history.parquet."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    write_atomically(folder / name, lambda file: file.write(buffer.getbuffer()))


def write_weights(folder: Path, cohort: int, members: tuple[int, ...], saes: Sae) -> None:
    """Write a cohort's parameters: W_enc, W_dec [member, d_sae, d_in], b_enc, b_dec, and the members' numbers."""
    path = weights_path(folder, cohort)
    path.parent.mkdir(exist_ok=True)
    # safetensors writes scrambled values from a non-contiguous array, without a word
    tensors = {name: np.ascontiguousarray(np.asarray(getattr(saes, name)[...])) for name in PARAMETERS}
    data = safetensors.numpy.save(tensors | {"member": np.asarray(members, np.int64)})
    write_atomically(path, lambda file: file.write(data))

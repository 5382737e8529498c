"""What a run writes: a folder for each cohort, so that processes can work on one sweep side by side.

    runs/x/definition.json
    runs/x/cohorts/000/cohort.json          its members, status, step, and the checksums of what is finished
                       history.parquet      a row per member and log point, also while it trains
                       members.parquet      a row per member, once finished
                       weights.safetensors  once finished
                       steps/               weights after chosen steps, where they are kept
                       state/               the last state of the training, where it is kept
                       checkpoints/         until then
    runs/x/members.parquet, history.parquet all finished cohorts together, for other programs
    runs/x/others/                          the folder of a run: what the sweep's others came to
    runs/x/analysis.parquet                 what the sweep's measures found, once all are finished

Every file has a checksum: JSON as its last entry, a table before its footer, weights in cohort.json. A file that
differs from what was written is never read. What is derived from other files is compared with them, and made again.
"""

import hashlib
import io
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.numpy

from sae.core.files import DamagedError, read_checked, remove_leftovers, sha256, write_atomically, write_checked
from sae.core.model import BESIDE, MEMBER, PARTS, RATES, SCALE, SHIFT, Sae, parameters
from sae.core.normalization import Normalization
from sae.core.types import UserError
from sae.store import schema
from sae.study.measures import PREFIX

DEFINITION, MEMBERS, HISTORY, WEIGHTS, STATE = (
    "definition.json",
    "members.parquet",
    "history.parquet",
    "weights.safetensors",
    "cohort.json",
)
OWN = ("member", "cohort", "status")  # columns that are neither hyper-parameters nor numbers
NUMBERS = ("eval/", "train/", PREFIX)  # how the names of columns with numbers begin
ANALYSIS = "analysis.parquet"
OTHERS = "others"  # the folder of a sweep's others, itself that of a run
STEPS, LAST_STATE, CHECKPOINTS = "steps", "state", "checkpoints"  # folders in a cohort's
STEP = re.compile(r"\d{9,}\.safetensors")  # names of files in `steps`
SEAL = b"sparsity-lab sha256 "  # with a checksum, between a table's pages and its footer, where no reader looks


class CohortFiles:
    """One cohort's folder. A writer holds its lock (`folder.lock`); anyone may read."""

    def __init__(self, folder: Path, index: int) -> None:
        self.index, self.path = index, folder / "cohorts" / f"{index:03d}"
        self._sound: set[tuple] = set()

    @property
    def state(self) -> dict[str, Any]:
        """The contents of cohort.json; {} if there is none. Raises DamagedError."""
        path = self.path / STATE
        try:
            return schema.state(read_checked(path))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise DamagedError(f"{path} is damaged, or was edited by hand: {error}") from None

    @property
    def finished(self) -> bool:
        """Whether all members are trained and evaluated."""
        return self.state.get("status") == "finished"

    @property
    def has_weights(self) -> bool:
        """Whether it has or will have weights. A run pulled from W&B has none."""
        return not self.finished or WEIGHTS in self.state.get("checksums", {})

    def mark(self, **changes) -> None:
        """Change some entries of cohort.json."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_checked(self.path / STATE, self.state | changes)

    def forget(self) -> None:
        """Delete what says how far the cohort is, and its checkpoints: it is trained from the start."""
        shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)
        (self.path / STATE).unlink()

    def check(self) -> None:
        """Check the files of a finished cohort. Raises DamagedError, which names the file."""
        for name in self.state.get("checksums", {}):
            self._sound_path(name)

    def members(self) -> pd.DataFrame:
        """The members table of a finished cohort. Raises DamagedError."""
        return _read_table(self._sound_path(MEMBERS))

    def history(self) -> pd.DataFrame | None:
        """The history up to now; None if there is none yet. Raises DamagedError."""
        if not self.finished and not (self.path / HISTORY).exists():
            return None
        return _read_table(self._sound_path(HISTORY))

    @property
    def kept(self) -> dict[int, str]:
        """The steps after which weights are kept, and the checksums of their files."""
        return {int(step): checksum for step, checksum in self.state.get("kept", {}).items()}

    def weights(
        self, member: int, step: int | None = None
    ) -> tuple[dict[str, np.ndarray], Normalization | None, tuple[int, ...] | None]:
        """A member's parameters by name, as `model.parameters` names them, what its source does to raw rows, and parts.

        They are those of the end, or those after a step that is `kept`. A run older than normalizations has none, and
        only a crosscoder has parts (see `Sae`). Raises DamagedError.
        """
        if step is None and not self.has_weights:
            raise UserError(f"{self.path} has no weights: it was pulled from W&B")
        path = self._sound_path(WEIGHTS) if step is None else self._sound_step(step)
        with safetensors.safe_open(path, framework="numpy") as file:
            place = int(np.flatnonzero(file.get_tensor(MEMBER) == member)[0])
            of_members = [name for name in file.keys() if name not in BESIDE]
            normalization = None
            if SHIFT in file.keys():
                normalization = Normalization(file.get_tensor(SHIFT), file.get_tensor(SCALE))
            parts = tuple(file.get_tensor(PARTS).tolist()) if PARTS in file.keys() else None
            return {name: file.get_slice(name)[place] for name in of_members}, normalization, parts

    def write_history(self, table: pd.DataFrame) -> None:
        """Write history.parquet."""
        _write_table(self.path / HISTORY, table)

    def firing_rates(self) -> dict[int, np.ndarray]:
        """Each finished member's firing rates [d_sae] on held-out examples.

        {} for a run without weights, or older than the rates. Raises DamagedError.
        """
        if not self.has_weights:
            return {}
        with safetensors.safe_open(self._sound_path(WEIGHTS), framework="numpy") as file:
            if RATES not in file.keys():
                return {}
            return dict(zip(file.get_tensor(MEMBER).tolist(), file.get_tensor(RATES), strict=True))

    def write_weights(
        self, members: Sequence[int], saes: Sae, firing_rates: np.ndarray, normalization: Normalization | None
    ) -> None:
        """Write weights.safetensors: the parameters of members, firing_rates [member, d_sae], and the normalization."""
        rates = {RATES: np.asarray(firing_rates, np.float32)}
        _write_tensors(self.path / WEIGHTS, members, saes, normalization, rates)

    def keep(self, step: int, members: Sequence[int], saes: Sae, normalization: Normalization | None) -> None:
        """Write the parameters of members after a step. Only when they are on the disk does `kept` tell of them."""
        path = self._step_path(step)
        path.parent.mkdir(exist_ok=True)
        _write_tensors(path, members, saes, normalization)
        self.mark(kept={str(at): checksum for at, checksum in (self.kept | {step: sha256(path)}).items()})

    def drop_kept(self, after: int) -> None:
        """Delete the weights kept after later steps than one that training goes on from: they will be made again."""
        self.mark(kept={str(at): checksum for at, checksum in self.kept.items() if at <= after})
        if not (self.path / STEPS).exists():
            return
        remove_leftovers(self.path / STEPS)
        for path in (self.path / STEPS).iterdir():
            if STEP.fullmatch(path.name) and int(path.stem) not in self.kept:
                path.unlink()

    def finish(self, members: pd.DataFrame, **changes) -> None:
        """Write the members table and mark the cohort finished. History and any weights have been written before."""
        _write_table(self.path / MEMBERS, members)
        there = [name for name in (HISTORY, MEMBERS, WEIGHTS) if (self.path / name).exists()]
        checksums = {name: sha256(self.path / name) for name in there}
        self.mark(status="finished", checksums=checksums, **changes)

    def _step_path(self, step: int) -> Path:
        return self.path / STEPS / f"{step:09d}.safetensors"

    def _sound_step(self, step: int) -> Path:
        path = self._step_path(step)
        if not path.is_file() or sha256(path) != self.kept[step]:
            raise DamagedError(f"{path} is damaged or missing; `sae run --fresh --keep-every N` makes it anew")
        return path

    def _sound_path(self, name: str) -> Path:
        path, wanted = self.path / name, self.state.get("checksums", {}).get(name)
        try:
            stamp = (name, (stat := path.stat()).st_mtime_ns, stat.st_size)
            if wanted and stamp not in self._sound and sha256(path) != wanted:
                raise DamagedError(
                    f"{path} is damaged: its checksum is not the one in {STATE}; `sae run` makes it anew"
                )
        except FileNotFoundError:
            raise DamagedError(f"{path} is missing; `sae run` makes it anew") from None
        except IsADirectoryError:
            raise DamagedError(f"{path} is a folder, allowed: a file; move it away") from None
        self._sound.add(stamp)
        return path


def state_of(cohorts: Sequence[CohortFiles]) -> str:
    """What tells the results of all finished cohorts from others: it changes with their tables and weights."""
    checksums = {files.index: files.state.get("checksums") for files in cohorts if files.finished}
    return hashlib.sha256(json.dumps(checksums, sort_keys=True).encode()).hexdigest()


def join_members(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Members tables joined, in the members' order. A field that only some cohorts have keeps its type."""
    own = dict.fromkeys(name for table in tables for name in table if name in OWN or name.startswith(NUMBERS))
    hyper = [table.drop(columns=[name for name in own if name in table]).astype(object) for table in tables]
    numbers = [table[[name for name in own if name in table]] for table in tables]
    stack = lambda parts: pd.concat(parts, ignore_index=True)
    joined = pd.concat([stack(hyper).apply(_one_type), stack(numbers)], axis=1)
    return joined.sort_values("member", ignore_index=True)


def join_history(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Histories joined, by member and step."""
    return pd.concat(tables).sort_values(["member", "step"], ignore_index=True)


def write_joined(folder: Path, cohorts: Sequence[CohortFiles]) -> None:
    """Write the tables of all finished cohorts side by side with definition.json, unless they are there as they are."""
    finished = [files for files in cohorts if files.finished]
    histories = [table for files in finished if (table := files.history()) is not None]
    joined = {HISTORY: join_history(histories), MEMBERS: join_members([files.members() for files in finished])}
    for name, table in joined.items():
        data = _table(table)
        if not (folder / name).is_file() or (folder / name).read_bytes() != data:
            write_atomically(folder / name, lambda file, data=data: file.write(data))


def read_analysis(folder: Path, cohorts: Sequence[CohortFiles]) -> pd.DataFrame:
    """The columns that measures have found: a row per member, indexed by its number.

    `attrs["asked"]` is {measure: {column: its meaning}}. Empty where nothing is there, or what is there was found in
    other results: it will be asked again. Raises DamagedError.
    """
    path = folder / ANALYSIS
    if path.exists():
        table = _read_table(path)
        asked, made_from = table.attrs.get("asked"), table.attrs.get("of")
        if not isinstance(asked, dict) or not all(isinstance(columns, dict) for columns in asked.values()):
            raise DamagedError(f"{path} is damaged: it does not say what was asked; `sae run` makes it anew")
        if made_from in (None, state_of(cohorts)):  # an older table does not say whose it is
            return table
    return _with_attrs(pd.DataFrame(index=pd.Index([], name="member", dtype="int64")), {"asked": {}})


def write_analysis(
    folder: Path, cohorts: Sequence[CohortFiles], measure: str, found: pd.DataFrame, meanings: Mapping[str, str]
) -> None:
    """Add the columns that one measure has found; `meanings` has a line on each. Raises DamagedError."""
    older = read_analysis(folder, cohorts)
    asked = {name: columns for name, columns in older.attrs["asked"].items() if not set(columns) & set(meanings)}
    kept = older[[name for columns in asked.values() for name in columns]]
    table = kept.join(found[list(meanings)], how="outer")
    attrs = {"asked": asked | {measure: dict(meanings)}, "of": state_of(cohorts)}
    _write_table(folder / ANALYSIS, _with_attrs(table, attrs), index=True)


def _with_attrs(table: pd.DataFrame, attrs: dict[Any, Any]) -> pd.DataFrame:
    table.attrs = attrs
    return table


def _write_tensors(
    path: Path,
    members: Sequence[int],
    saes: Sae,
    normalization: Normalization | None,
    more: Mapping[str, np.ndarray] | None = None,
) -> None:
    tensors = parameters(saes) | dict(more or {}) | {MEMBER: np.array(members, np.int64)}
    if normalization is not None:
        tensors |= {SHIFT: normalization.shift, SCALE: normalization.scale}
    if len(saes.parts) > 1:
        tensors[PARTS] = np.array(saes.parts, np.int64)
    # safetensors writes scrambled values from a non-contiguous array, without a word
    data = safetensors.numpy.save({name: np.ascontiguousarray(np.asarray(value)) for name, value in tensors.items()})
    write_atomically(path, lambda file: file.write(data))


def _write_table(path: Path, table: pd.DataFrame, index: bool = False) -> None:
    data = _table(table, index)
    write_atomically(path, lambda file: file.write(data))


def _table(table: pd.DataFrame, index: bool = False) -> bytes:
    """A table as Parquet, with a checksum of all bytes before the footer, which Parquet itself does not check."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=index, write_page_checksum=True)
    data = buffer.getvalue()
    at = _footer(data)
    return data[:at] + SEAL + hashlib.sha256(data).digest() + data[at:]


def _read_table(path: Path) -> pd.DataFrame:
    """A table. Raises DamagedError, also where there is none. A table without a seal, which is older, is read too."""
    try:
        data = path.read_bytes()
        at = _footer(data)
        start = at - len(SEAL) - hashlib.sha256().digest_size
        if data[start : start + len(SEAL)] == SEAL:
            data, seal = data[:start] + data[at:], data[start + len(SEAL) : at]
            if hashlib.sha256(data).digest() != seal:
                raise ValueError("it has another checksum")
        return pd.read_parquet(io.BytesIO(data), page_checksum_verification=True)
    except IsADirectoryError:
        raise DamagedError(f"{path} is a folder, allowed: a file; move it away") from None
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing; `sae run` makes it anew") from None
    except Exception as error:  # pyarrow and pandas raise errors of any kind where names or types are damaged
        reason = " ".join(str(error).split())[:200]
        raise DamagedError(f"{path} is damaged: {reason}; `sae run` makes it anew") from None


def _footer(data: bytes) -> int:
    """Where the footer of a Parquet file begins: the file ends with the footer, its size in 4 bytes, and 4 letters."""
    return max(0, len(data) - 8 - int.from_bytes(data[-8:-4], "little"))


def _one_type(column: pd.Series) -> pd.Series:
    """A column with one type. Whole numbers stay whole where some members lack the field."""
    values = column.dropna()
    if all(isinstance(value, bool | np.bool_) for value in values):
        return column.astype(bool if len(values) == len(column) else "boolean")
    if all(isinstance(value, int | np.integer) for value in values):
        return column.astype("int64" if len(values) == len(column) else "Int64")
    if all(isinstance(value, int | float | np.number) for value in values):
        return values.astype(float).reindex(column.index)  # what is missing may be None, NaN or pandas' NA
    return column.map(str, na_action="ignore")

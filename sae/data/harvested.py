"""The folder that a harvest of a language model leaves: activations as rows, and the tokens that they stand on.

    acts/
      card.json                 model, hooks, counts, norms; written last, atomically
      pieces.safetensors        the bytes that each token stands for
      unembedding.safetensors   where the model has one
      means.safetensors         the mean training row of every hook, once complete
      documents.parquet         a row per document
      train/      contexts/00000.safetensors ...        tokens, and which of them have rows
                  resid-post.9/00000.safetensors ...    rows in text order, a folder for every hook
      held-out/   the same

A shard is a fixed number of contexts. All files are data: nothing in them is executed, and no name in the card leads
out of the folder.
"""

import contextlib
import dataclasses
import functools
import json
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.numpy

from sae.core.files import DamagedError, read_checked, write_atomically, write_checked
from sae.core.text import count, nearest
from sae.core.types import UserError
from sae.data.formats import Shards, existing

FORMAT = 1
CARD, PIECES, UNEMBEDDING, MEANS = "card.json", "pieces.safetensors", "unembedding.safetensors", "means.safetensors"
DOCUMENTS, CONTEXTS = "documents.parquet", "contexts"
SPLITS = ("train", "held-out")
HOOK = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # a hook's name is the name of its folder
NUMBERS = ("mean_norm", "mean_square", "max_norm")  # of the training rows of a hook
DTYPES = ("float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Part:
    """The training or the held-out half of a harvest. Row i of every hook is of position `position[i]` of context
    `context[i]`."""

    folder: Path
    name: str
    n_rows: int
    n_shards: int
    hooks: tuple[str, ...]

    @functools.cached_property
    def ids(self) -> np.ndarray:
        """[n_contexts, context] int32 tokens; -1 is padding."""
        return self._read("ids")

    @functools.cached_property
    def documents(self) -> np.ndarray:
        """[n_contexts, context] int32 rows of the documents table; -1 for padding, separators and the like."""
        return self._read("documents")

    @functools.cached_property
    def context(self) -> np.ndarray:
        """[n_rows] int32: the context of each row."""
        return self._read("context")

    @functools.cached_property
    def position(self) -> np.ndarray:
        """[n_rows] int32: the position of each row in its context."""
        return self._read("position")

    @functools.cached_property
    def row(self) -> np.ndarray:
        """[n_contexts, context] int32: the row of each token, -1 where none was kept."""
        row = np.full(self.ids.shape, -1, np.int32)
        row[self.context, self.position] = np.arange(self.n_rows, dtype=np.int32)
        return row

    def rows(self, hook: str) -> Shards:
        """[n_rows, d] the activations at a hook, float16 or bfloat16, not yet read. Raises UserError."""
        if hook not in self.hooks:
            raise UserError(f"{self.folder}: hook: got {hook!r}, {nearest(hook, self.hooks)}")
        paths = list(_shards(self.folder, self.name, hook, self.n_shards))
        rows = Shards(paths, "rows")
        if len(rows) != self.n_rows:
            raise DamagedError(
                f"{paths[0].parent} is damaged: its shards hold {len(rows):,} rows and {CARD} counts {self.n_rows:,}; "
                "harvest it again"
            )
        return rows

    def _read(self, key: str) -> np.ndarray:
        return np.concatenate([_tensor(path, key) for path in _shards(self.folder, self.name, CONTEXTS, self.n_shards)])


@dataclasses.dataclass(frozen=True)
class Harvested:
    """A folder of activations, as `open_folder` gives it."""

    path: Path
    card: dict[str, Any]

    @property
    def hooks(self) -> tuple[str, ...]:
        """The names of the hooks whose activations are there."""
        return tuple(self.card["hooks"])

    @property
    def context(self) -> int:
        """Tokens in a context."""
        return self.card["context"]

    def width(self, hook: str) -> int:
        """The width of the rows of a hook."""
        return self.card["hooks"][hook]["d"]

    def part(self, name: str) -> Part:
        """The half "train" or "held-out". Raises UserError."""
        if name not in SPLITS:
            raise UserError(f"part: got {name!r}, {nearest(name, SPLITS)}")
        return self._parts[name]

    @functools.cached_property
    def _parts(self) -> dict[str, Part]:
        counts = self.card["counts"]
        return {
            name: Part(self.path, name, counts[name]["rows"], counts[name]["shards"], self.hooks) for name in SPLITS
        }

    @functools.cached_property
    def pieces(self) -> list[bytes]:
        """The bytes that each token stands for; a token may hold a part of a letter only."""
        path = self.path / PIECES
        data, ends = _tensor(path, "bytes").tobytes(), _tensor(path, "ends")
        starts = np.concatenate([[0], ends[:-1]])
        return [data[start:end] for start, end in zip(starts, ends, strict=True)]

    @functools.cached_property
    def special(self) -> np.ndarray:
        """[n_tokens] bool: tokens that stand for no text, such as the end of a text."""
        return _tensor(self.path / PIECES, "special").astype(bool)

    @functools.cached_property
    def documents(self) -> pd.DataFrame:
        """A row per document: name, corpus, kind, split, n_tokens."""
        path = self.path / DOCUMENTS
        try:
            return pd.read_parquet(path)
        except FileNotFoundError:
            raise DamagedError(f"{path} is missing; harvest it again") from None
        except Exception as error:  # pyarrow raises errors of any kind
            raise DamagedError(f"{path} is damaged: {' '.join(str(error).split())[:200]}; harvest it again") from None

    def unembedding(self) -> np.ndarray | None:
        """W [n_tokens, d_model] float32, the final norm's weight folded in; None where the model has none.

        logits = W r for a residual r after the last block that is divided by its norm's scale.
        """
        path = self.path / UNEMBEDDING
        return _tensor(path, "W").astype(np.float32) if path.exists() else None

    def mean(self, hook: str) -> np.ndarray:
        """[d] float32: the mean training row of a hook."""
        return _tensor(self.path / MEANS, hook)


def open_folder(path: str | Path) -> Harvested:
    """The folder of a finished harvest, its card and its counts checked. Raises UserError."""
    folder = existing(path)
    if not folder.is_dir():
        raise UserError(f"{path}: a file, allowed: the folder that `sae harvest` wrote")
    card = read_card(folder)
    if card is None:
        raise UserError(f"{path}: a folder without {CARD}, allowed: the folder that `sae harvest` wrote")
    if not card["complete"]:
        done = sum(len(done_shards(folder, split, tuple(card["hooks"]))) for split in SPLITS)
        raise UserError(
            f"{path}: the harvest is not complete ({count(done, 'shard')} so far); the same command goes on: "
            f"{card.get('command', 'sae harvest ...')}"
        )
    harvested = Harvested(folder, card)
    for name in SPLITS:
        part, wanted = harvested.part(name), card["counts"][name]
        there = {"contexts": 0, "rows": 0}
        for file in _shards(folder, name, CONTEXTS, part.n_shards):
            there["contexts"] += _shape(file, "ids")[0]
            there["rows"] += _shape(file, "context")[0]
        if there != {key: wanted[key] for key in there}:
            raise DamagedError(
                f"{folder / name} is damaged: its shards hold {there['contexts']:,} contexts and {there['rows']:,} "
                f"rows, and {CARD} counts {wanted['contexts']:,} and {wanted['rows']:,}; harvest it again"
            )
        for hook in harvested.hooks:
            if (width := part.rows(hook).shape[1]) != harvested.width(hook):
                raise DamagedError(
                    f"{folder / name / hook} is damaged: its rows are {width} wide and {CARD} says "
                    f"{harvested.width(hook)}; harvest it again"
                )
    return harvested


def read_card(folder: Path) -> dict[str, Any] | None:
    """The card of a folder; None where there is none. Raises UserError for one that is damaged or newer."""
    path = folder / CARD
    try:
        card = read_checked(path)
    except FileNotFoundError:
        return None
    if isinstance(card, dict) and isinstance(card.get("format"), int) and card["format"] > FORMAT:
        raise UserError(f"{path}: format {card['format']}, allowed: {FORMAT}; a newer version of this project wrote it")
    if fault := _fault(card):
        raise DamagedError(f"{path} is damaged, or is no card of a harvest: {fault}")
    return card


def _fault(card: Any) -> str | None:
    """What is wrong with the card's contents, or None."""
    whole = lambda value, least=0: isinstance(value, int) and not isinstance(value, bool) and value >= least
    if not isinstance(card, dict) or card.get("format") != FORMAT or not isinstance(card.get("complete"), bool):
        return "it has no format, or does not say whether it is complete"
    hooks = card.get("hooks")
    if not isinstance(hooks, dict) or not hooks:
        return "it has no hooks"
    for name, hook in hooks.items():
        if not HOOK.fullmatch(name) or name == CONTEXTS or not isinstance(hook, dict) or not whole(hook.get("d"), 1):
            return f"hook {name[:40]!r}"
    if not whole(card.get("context"), 1):
        return "context"
    if card.get("dtype") not in DTYPES:
        return "dtype"
    if card["complete"]:
        counts = card.get("counts")
        if not isinstance(counts, dict) or not all(
            isinstance(counts.get(split), dict)
            and all(whole(counts[split].get(key), 1) for key in ("contexts", "rows", "shards"))
            for split in SPLITS
        ):
            return "counts"
    return None


def kept(documents: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Context and position of the tokens [n_contexts, context] that keep a row, in text order, each [n] int32.

    These are the tokens of documents, without the first positions of a context.
    """
    context, position = np.nonzero((documents >= 0) & (np.arange(documents.shape[1]) >= first))
    return context.astype(np.int32), position.astype(np.int32)


def write_shard(
    folder: Path,
    split: str,
    number: int,
    ids: np.ndarray,
    documents: np.ndarray,
    rows: Mapping[str, np.ndarray],
    *,
    start: int,
    first: int,
) -> None:
    """Write one shard: contexts `start`, `start + 1`, ... of a split with ids and documents [c, context].

    `rows` has for every hook [n, d], of the tokens that are `kept`. The file of the contexts is written last. Raises
    OSError.
    """
    context, position = kept(documents, first)
    for hook, values in rows.items():
        if len(values) != len(context) or not len(values):
            raise ValueError(f"{hook}: {len(values)} rows, allowed: {len(context)} and at least one")
        wide = values.astype(np.float64)
        norms = np.linalg.norm(wide, axis=1)
        sums = {"sum": wide.sum(0), "norms": np.array([norms.sum(), np.square(norms).sum(), norms.max()])}
        _write(shard_path(folder, split, hook, number), {"rows": values} | sums)
    tensors = {"ids": ids, "documents": documents, "context": context + start, "position": position}
    _write(
        shard_path(folder, split, CONTEXTS, number), {name: value.astype(np.int32) for name, value in tensors.items()}
    )


def shard_path(folder: Path, split: str, kind: str, number: int) -> Path:
    """The file of a shard of a hook, or of the contexts."""
    return folder / split / kind / f"{number:05d}.safetensors"


def done_shards(folder: Path, split: str, hooks: Sequence[str]) -> list[int]:
    """The numbers of the shards that are wholly there, up to the first that is missing."""
    done = []
    while all(shard_path(folder, split, kind, len(done)).is_file() for kind in (*hooks, CONTEXTS)):
        done.append(len(done))
    return done


def shard_contexts(folder: Path, split: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The ids and documents [c, context] of a shard. Raises DamagedError."""
    path = shard_path(folder, split, CONTEXTS, number)
    return _tensor(path, "ids"), _tensor(path, "documents")


def write_pieces(folder: Path, pieces: Sequence[bytes], special: np.ndarray) -> None:
    """Write what each token stands for; `special` [n_tokens] bool marks tokens that stand for no text."""
    tensors = {
        "bytes": np.frombuffer(b"".join(pieces), np.uint8),
        "ends": np.cumsum([len(piece) for piece in pieces], dtype=np.int64),
        "special": np.asarray(special, np.uint8),
    }
    _write(folder / PIECES, tensors)


def write_unembedding(folder: Path, W: np.ndarray) -> None:
    """Write W [n_tokens, d_model] as float16."""
    _write(folder / UNEMBEDDING, {"W": W.astype(np.float16)})


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """Write the card, atomically."""
    write_checked(folder / CARD, card)


def finish(folder: Path, card: Mapping[str, Any], documents: pd.DataFrame) -> dict[str, Any]:
    """Count the shards, write the documents, the means and the card of a complete harvest, and return the card."""
    hooks = {name: dict(hook) for name, hook in card["hooks"].items()}
    counts = {}
    for split in SPLITS:
        numbers = done_shards(folder, split, tuple(hooks))
        files = [shard_path(folder, split, CONTEXTS, number) for number in numbers]
        counts[split] = {
            "contexts": sum(_shape(file, "ids")[0] for file in files),
            "rows": sum(_shape(file, "context")[0] for file in files),
            "shards": len(numbers),
        }
    n, means = counts["train"]["rows"], {}
    for name in hooks:
        files = [shard_path(folder, "train", name, number) for number in range(counts["train"]["shards"])]
        norms = np.stack([_tensor(file, "norms") for file in files])
        means[name] = (np.sum([_tensor(file, "sum") for file in files], axis=0) / n).astype(np.float32)
        values = (norms[:, 0].sum() / n, norms[:, 1].sum() / n, norms[:, 2].max())
        hooks[name] |= {key: float(value) for key, value in zip(NUMBERS, values, strict=True)}
    write_atomically(folder / DOCUMENTS, lambda file: documents.to_parquet(file, index=False))
    _write(folder / MEANS, means)
    whole = {**card, "hooks": hooks, "counts": counts, "complete": True}
    write_card(folder, whole)
    return json.loads(json.dumps(whole))


def write(
    folder: str | Path,
    *,
    contexts: Mapping[str, tuple[np.ndarray, np.ndarray]],
    rows: Mapping[str, Mapping[str, np.ndarray]],
    documents: pd.DataFrame,
    pieces: Sequence[bytes],
    special: np.ndarray | None = None,
    unembedding: np.ndarray | None = None,
    first: int = 1,
    shard: int = 4,
    **card: Any,
) -> Harvested:
    """Write a folder from arrays, without a model: for tests, and for activations that another tool made.

    `contexts` has for "train" and "held-out" the ids and the documents [n_contexts, context]. `rows` has for both, for
    every hook, [n_rows, d]: the tokens that `kept(documents, first)` names, in that order. `shard` is the contexts of a
    shard. Other names go into the card.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ids, _ = contexts["train"]
    widths = {hook: values.shape[1] for hook, values in rows["train"].items()}
    dtype = next(iter(rows["train"].values())).dtype.name
    for split in SPLITS:
        tokens, owners = contexts[split]
        done = 0
        for number, start in enumerate(range(0, len(tokens), shard)):
            piece = slice(start, start + shard)
            n = len(kept(owners[piece], first)[0])
            some = {hook: values[done : done + n] for hook, values in rows[split].items()}
            write_shard(folder, split, number, tokens[piece], owners[piece], some, start=start, first=first)
            done += n
    write_pieces(folder, pieces, np.zeros(len(pieces), bool) if special is None else special)
    if unembedding is not None:
        write_unembedding(folder, unembedding)
    hooks = {hook: {"module": hook, "layer": 0, "d": d} for hook, d in widths.items()}
    made = {"format": FORMAT, "model": "", "hooks": hooks, "context": ids.shape[1], "dtype": dtype, "first": first}
    finish(folder, made | card, documents)
    return open_folder(folder)


def _shards(folder: Path, split: str, kind: str, n: int) -> Iterator[Path]:
    """The files of all shards. Raises DamagedError for one that is missing."""
    for number in range(n):
        path = shard_path(folder, split, kind, number)
        if not path.is_file():
            raise DamagedError(f"{path} is missing: {CARD} counts {count(n, 'shard')}; harvest it again")
        yield path


def _write(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    # safetensors writes scrambled values from a non-contiguous array, without a word
    data = safetensors.numpy.save({name: np.ascontiguousarray(value) for name, value in tensors.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(data))


def _tensor(path: Path, key: str) -> np.ndarray:
    with _opened(path) as file:
        return file.get_tensor(key)


def _shape(path: Path, key: str) -> list[int]:
    with _opened(path) as file:
        return file.get_slice(key).get_shape()


@contextlib.contextmanager
def _opened(path: Path) -> Generator[Any]:
    """A .safetensors file, whose faults are DamagedErrors."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            yield file
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing; harvest it again") from None
    except safetensors.SafetensorError as error:
        raise DamagedError(f"{path} is damaged: {' '.join(str(error).split())[:120]}; harvest it again") from None

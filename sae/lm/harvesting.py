"""Harvest activations: from a model and texts to a folder of rows (`sae.data.harvested`).

Contexts follow from the texts and the settings alone, so a harvest that was stopped makes them again, compares them
with the shards that are there, and goes on with the first that is missing.
"""

import dataclasses
import importlib.metadata
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import pandas as pd

from sae.core import console
from sae.core.files import expanded, remove_leftovers
from sae.core.text import count, nearest, one_line
from sae.core.types import UserError
from sae.data import harvested
from sae.data.harvested import DTYPES, SPLITS, Harvested, done_shards, kept
from sae.lm import models
from sae.lm.contexts import Context, Packing, contexts, drawn
from sae.lm.extra import library
from sae.lm.models import PLACES, Hook, LanguageModel
from sae.lm.pieces import pieces
from sae.lm.texts import Corpus
from sae.store.folder import lock

SEPARATORS = ("<|endoftext|>", "<|end_of_text|>")  # of documents in training; others take the end of a sequence
SHARD_ROWS = 2**14  # about so many rows are one shard
PACKAGES = ("sparsity-lab", "torch", "transformers", "tokenizers", "datasets", "gguf")
SAME = ("model", "revision", "texts", "context", "pack", "first", "held_out_fraction", "tokens", "prefix", "separator",
        "seed", "dtype", "model_dtype", "shard")  # a folder goes on with these alone  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What is harvested, and how. `sae harvest` has a flag for each."""

    layer: tuple[int, ...] = ()
    """Layers, from 0: hooks without a layer of their own are read in each of them."""
    hook: tuple[str, ...] = ("resid-post",)
    """Where: resid-post, resid-pre, mlp-out, mlp-in, attn-out, or any module's path in a block (mlp.act_fn); a whole
    name or path (resid-post.9, model.layers.9.mlp) has its layer. Several are read in one pass."""
    tokens: float = 1e6
    """Activations at each hook, training and held out together: contexts are read until there are so many."""
    context: int = 256
    """Tokens of a context."""
    pack: bool = True
    """Several documents in a context, with a separator between them; else every document begins its own."""
    first: int = 1
    """Positions at the beginning of every context that are left out, as attention sinks stand there."""
    held_out_fraction: float = 0.1
    """Share of tokens that is held out: whole documents, or the last contexts where there are too few."""
    dtype: str = "float16"
    """Number type of the rows on disk: float16 or bfloat16."""
    model_dtype: str = "float32"
    """What the model computes in: float32, bfloat16 or float16."""
    batch: int = 8
    """Contexts of one forward. It affects rounding, so keep it for a harvest that goes on."""
    device: str = "auto"
    """Where the model runs: auto, which is a GPU where there is one, cpu, cuda, cuda:1, mps."""
    seed: int = 0
    """Order of the files of a folder."""


class Progress(Protocol):
    """Who is told of rows."""

    def __call__(self, done: int, total: int, new: int, /) -> None:
        """`done` rows of `total` are there, `new` of them made by this call; called once before the first."""
        ...


def harvest(
    model: str | Path | LanguageModel,
    texts: str | Path | Sequence[str | Path],
    out: str | Path = "acts",
    *,
    command: Sequence[str] = (),
    say: Callable[[str], None] = console.say,
    progress: Progress = lambda done, total, new: None,
    **settings: Any,
) -> Harvested:
    """Write the activations of a model on texts to a folder, and open it; `settings` are those of `Settings`.

    A folder that is there is finished, if it is of the same model, texts and settings. Raises UserError, and OSError
    for a full disk: what is written stays, and the same call goes on.
    """
    how = _settings(settings)
    folder = expanded(out)
    one = _model(model, how, say)
    plan = _plan(one, model, texts, how, say)
    with _own(folder):
        card = _begin(folder, plan, command, say)
        if not card["complete"]:
            _write_all(folder, plan, card, say, progress)
    found = harvested.open_folder(folder)
    counts = {split: found.card["counts"][split]["rows"] for split in SPLITS}
    say(f"{folder}: {counts['train']:,} training and {counts['held-out']:,} held-out rows at {', '.join(found.hooks)}")
    return found


def rehearse(
    model: str | Path | LanguageModel,
    texts: str | Path | Sequence[str | Path],
    *,
    say: Callable[[str], None] = console.say,
    **settings: Any,
) -> dict[str, int]:
    """Read the texts and count what a harvest would write: {"train", "held-out", "bytes"}. It says so, too."""
    how = _settings(settings)
    plan = _plan(_model(model, how, say), model, texts, how, say)
    rows, tally = dict.fromkeys(SPLITS, 0), _Tally(plan.packing)
    for corpus, context in plan.contexts():
        rows[context.split] += tally.add(corpus, context)
    n_bytes = sum(plan.bytes_of(n) for n in rows.values())
    tally.say(say, plan.corpora)
    widths = ", ".join(f"{name} [{width}]" for name, width in plan.widths.items())
    say(
        f"{rows['train']:,} training and {rows['held-out']:,} held-out rows at {widths} in {how.dtype}: "
        f"{n_bytes / 2**20:,.1f} MiB"
    )
    if sum(rows.values()) < plan.packing.tokens:
        say(f"the texts end before the {plan.packing.tokens:,} rows that tokens asks for")
    return {**rows, "bytes": n_bytes}


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Everything that a harvest needs but its folder."""

    model: LanguageModel
    name: str
    texts: tuple[str, ...]
    how: Settings
    packing: Packing
    hooks: tuple[Hook, ...]
    widths: dict[str, int]
    corpora: tuple[Corpus, ...]
    notes: Callable[[str], None]

    @property
    def shard(self) -> int:
        """Contexts of a shard."""
        return max(1, SHARD_ROWS // self.packing.context)

    def contexts(self) -> Iterator[tuple[int, Context]]:
        """All contexts, from the first."""
        streams = [contexts(corpus, self.tokenize, self.packing, self.notes) for corpus in self.corpora]
        return drawn(streams, self.packing)

    def tokenize(self, text: str) -> list[int]:
        """Tokens of a text, in which the name of a special token is text like any other."""
        tokenizer = self.model.tokenizer
        return tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]

    def bytes_of(self, n_rows: int) -> int:
        """What so many rows need on disk."""
        return n_rows * (2 * sum(self.widths.values()) + 4 * 4)

    def card(self) -> dict[str, Any]:
        """What the folder's card says before anything is counted."""
        hooks = {one.name: {"module": one.module, "layer": one.layer, "d": self.widths[one.name]} for one in self.hooks}
        settings = {name: value for name, value in dataclasses.asdict(self.packing).items()}
        return {
            "format": harvested.FORMAT, "model": self.name, "revision": self.model.identity, "hooks": hooks,
            "texts": self.texts, **settings, "dtype": self.how.dtype, "model_dtype": self.how.model_dtype,
            "seed": self.how.seed, "batch": self.how.batch, "shard": self.shard, "complete": False,
        }  # fmt: skip


def _settings(given: dict[str, Any]) -> Settings:
    """Settings with their ranges checked. Raises UserError."""
    names = [field.name for field in dataclasses.fields(Settings)]
    for name in given:
        if name not in names:
            raise UserError(f"harvest has no setting {name!r}; {nearest(name, names)}")
    for name, alone in (("layer", int), ("hook", str)):
        if name in given:
            given = given | {name: (given[name],) if isinstance(given[name], alone) else tuple(given[name])}
    how = Settings(**given)
    for name, low in (("tokens", 1), ("context", 2), ("batch", 1), ("first", 0), ("seed", 0)):
        if not getattr(how, name) >= low:
            raise UserError(f"{name}: got {getattr(how, name):g}, allowed: at least {low}")
    if how.first >= how.context:
        raise UserError(f"first: got {how.first}, allowed: below the context, {how.context}")
    if not 0 < how.held_out_fraction < 1:
        raise UserError(f"held-out-fraction: got {how.held_out_fraction:g}, allowed: above 0 and below 1")
    if how.dtype not in DTYPES:
        raise UserError(f"dtype: got {how.dtype!r}, {nearest(how.dtype, DTYPES)}")
    if not how.hook:
        raise UserError("hook: got none, allowed: one or more, such as resid-post")
    return how


def _model(model: str | Path | LanguageModel, how: Settings, say: Callable[[str], None]) -> LanguageModel:
    if isinstance(model, LanguageModel):
        return model
    torch = library("torch")
    say(f"loading {model}")
    one = models.load(model, how.model_dtype)
    auto = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        one.model.to(auto if how.device == "auto" else how.device)
    except (RuntimeError, AssertionError) as error:  # torch's errors about devices
        raise UserError(f"device: got {how.device!r}: {one_line(str(error))[:150]}; allowed: auto, cpu, cuda") from None
    return one


def _plan(
    one: LanguageModel,
    name: str | Path | LanguageModel,
    texts: str | Path | Sequence[str | Path],
    how: Settings,
    say: Callable[[str], None],
) -> _Plan:
    """Look at hooks, their widths and the texts. Raises UserError."""
    named = tuple(str(text) for text in ((texts,) if isinstance(texts, str | Path) else texts))
    if not named:
        raise UserError("texts: got none, allowed: files, folders, .jsonl files or hf:NAME")
    hooks: dict[str, Hook] = {}
    for hook in how.hook:
        if hook in PLACES and not how.layer:
            raise UserError(f"layer: got none with {hook}, allowed: 0 to {one.n_layers - 1}")
        whole = hook in one.modules or (hook.rpartition(".")[0] in PLACES)
        for layer in (None,) if whole or not how.layer else how.layer:
            found = one.hook(hook, layer)
            hooks[found.name] = found
    limit = getattr(one.model.config, "max_position_embeddings", None)
    if isinstance(limit, int) and how.context > limit:
        raise UserError(f"context: got {how.context}, allowed: at most {limit} with this model")
    prefix = one.tokenizer("a")["input_ids"][:1]
    prefix = tuple(prefix) if prefix and prefix[0] == one.tokenizer.bos_token_id else ()
    special = {one.content: i for i, one in one.tokenizer.added_tokens_decoder.items()}
    separator = next((special[name] for name in SEPARATORS if name in special), one.tokenizer.eos_token_id)
    if how.context <= max(len(prefix), how.first):
        raise UserError(f"context: got {how.context}, allowed: more than {max(len(prefix), how.first)}")
    packing = Packing(
        context=how.context, pack=how.pack, first=how.first, held_out_fraction=how.held_out_fraction,
        tokens=int(how.tokens), prefix=tuple(map(int, prefix)), separator=None if separator is None else int(separator),
    )  # fmt: skip
    corpora = tuple(Corpus(text, how.seed) for text in named)
    looked = one.activations(np.zeros((1, 2), np.int32), tuple(hooks.values()))
    widths = {name: int(looked[name].shape[2]) for name in hooks}
    label = "a model in memory" if isinstance(name, LanguageModel) else str(name)
    return _Plan(one, label, named, how, packing, tuple(hooks.values()), widths, corpora, say)


def _own(folder: Path) -> Any:
    """The folder, made and locked. Raises UserError where it holds something else or another process works on it."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; use --out DIR with a new or empty folder")
    if folder.exists() and not (folder / harvested.CARD).exists():
        others = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
        if others:
            raise UserError(f"{folder} is not empty and holds no harvest; use --out DIR with a new or empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    return lock(folder)


def _begin(folder: Path, plan: _Plan, command: Sequence[str], say: Callable[[str], None]) -> dict[str, Any]:
    """The card of the folder, written if it is new. Raises UserError for a folder of another harvest."""
    wanted = plan.card()
    card = harvested.read_card(folder)
    begun = any((folder / split).exists() for split in SPLITS)
    if card is None or not (begun or card["complete"]):
        card = wanted | {"command": " ".join(command), "versions": _versions()}
        harvested.write_card(folder, card)  # first, so that the folder is known for what it is
        made, special = pieces(plan.model.tokenizer, int(plan.model.model.get_input_embeddings().weight.shape[0]))
        harvested.write_pieces(folder, made, special)
        if (W := plan.model.unembedding()) is not None:
            harvested.write_unembedding(folder, W)
        return card
    plain = lambda value: list(value) if isinstance(value, tuple) else value
    hooks = {name: {key: hook.get(key) for key in ("module", "layer", "d")} for name, hook in card["hooks"].items()}
    pairs: list[tuple[str, Any, Any]] = [("hooks", list(hooks), list(wanted["hooks"]))]
    pairs += [(name, card.get(name), plain(wanted[name])) for name in SAME]
    for name, was, now in pairs:
        if name == "model" and card.get("revision") == wanted["revision"]:
            continue  # the same weights by another path
        if was != now:
            raise UserError(
                f"{folder} holds another harvest: {name} was {_shown(was)}, is {_shown(now)}; use --out DIR"
            )
    remove_leftovers(folder)
    if card["complete"]:
        say(f"{folder} is complete")
    return card


def _shown(value: Any) -> str:
    return ", ".join(map(str, value))[:120] if isinstance(value, list) else str(value)[:120]


def _write_all(folder: Path, plan: _Plan, card: dict[str, Any], say: Callable[[str], None], progress: Progress) -> None:
    """Write the shards that are missing, and finish. Raises UserError and OSError."""
    names = tuple(plan.widths)
    there = {split: len(done_shards(folder, split, names)) for split in SPLITS}
    if any(there.values()):
        say(f"{folder} goes on from {count(sum(there.values()), 'shard')}")
    _room(folder, plan, sum(there.values()))
    for split in SPLITS:
        for name in (*names, harvested.CONTEXTS):
            if (folder / split / name).is_dir():
                remove_leftovers(folder / split / name)
    table, tally = _Documents(), _Tally(plan.packing)
    shards = {split: _Shards(folder, split, plan, there[split]) for split in SPLITS}
    done = 0
    progress(0, plan.packing.tokens, 0)
    for corpus, context in plan.contexts():
        tally.add(corpus, context)
        documents = table.known(plan.corpora[corpus], context)
        done += shards[context.split].add(context.ids, documents)
        progress(done, plan.packing.tokens, sum(one.new for one in shards.values()))
    for split in SPLITS:
        done += shards[split].close()
        if not shards[split].number:
            raise UserError(f"the texts give {done:,} rows, too few for {split} ones; allowed: two contexts or more")
    progress(done, done, sum(one.new for one in shards.values()))
    tally.say(say, plan.corpora)
    if done < plan.packing.tokens:
        say(f"the texts ended before the {plan.packing.tokens:,} rows that tokens asks for")
    harvested.finish(folder, card | {"left_out": tally.left_out}, table.frame())


def _room(folder: Path, plan: _Plan, n_shards: int) -> None:
    """Raises UserError where the disk has no room for what is still to be written."""
    wanted = plan.bytes_of(max(0, plan.packing.tokens - n_shards * SHARD_ROWS))
    if wanted > (free := shutil.disk_usage(folder).free):
        need, left = (f"{n / 2**20:,.0f} MiB" for n in (wanted, free))
        raise UserError(
            f"{folder}: {need} are still to be written and the disk has {left} left; "
            "allowed: fewer tokens, or --out DIR on another disk"
        )


class _Shards:
    """Gathers contexts of one split, and writes a shard when there are enough."""

    def __init__(self, folder: Path, split: str, plan: _Plan, there: int) -> None:
        self.folder, self.split, self.plan, self.there = folder, split, plan, there
        self.number = self.start = self.new = 0
        self.ids: list[np.ndarray] = []
        self.documents: list[np.ndarray] = []

    def add(self, ids: np.ndarray, documents: np.ndarray) -> int:
        """One more context -> rows of the shard that is full with it, else 0."""
        self.ids.append(ids)
        self.documents.append(documents)
        return self._shard() if len(self.ids) == self.plan.shard else 0

    def close(self) -> int:
        """The last shard, which may be smaller."""
        return self._shard() if self.ids else 0

    def _shard(self) -> int:
        ids, documents = np.stack(self.ids), np.stack(self.documents)
        if self.number < self.there:
            same = harvested.shard_contexts(self.folder, self.split, self.number)
            if not (np.array_equal(same[0], ids) and np.array_equal(same[1], documents)):
                raise UserError(
                    f"{self.folder} holds a harvest of other text: shard {self.number} of {self.split} differs from "
                    "what the texts give now; use --out DIR"
                )
        else:
            first = self.plan.packing.first
            rows = self._rows(ids, documents)
            harvested.write_shard(
                self.folder, self.split, self.number, ids, documents, rows, start=self.start, first=first
            )
        n = len(kept(documents, self.plan.packing.first)[0])
        self.new += n if self.number >= self.there else 0
        self.number, self.start = self.number + 1, self.start + len(ids)
        self.ids, self.documents = [], []
        return n

    def _rows(self, ids: np.ndarray, documents: np.ndarray) -> dict[str, np.ndarray]:
        """{hook: [n, d]} of the tokens that are kept, in the dtype of the folder. Raises UserError."""
        plan, parts = self.plan, {hook.name: [] for hook in self.plan.hooks}
        dtype = np.dtype(ml_dtypes.bfloat16 if plan.how.dtype == "bfloat16" else np.float16)
        for start in range(0, len(ids), plan.how.batch):
            piece = slice(start, start + plan.how.batch)
            context, position = kept(documents[piece], plan.packing.first)
            if not len(context):
                continue
            found = plan.model.activations(ids[piece], plan.hooks)
            for name, value in found.items():
                rows = value[context.astype(np.int64), position.astype(np.int64)].float().cpu().numpy()
                with np.errstate(over="ignore"):
                    small = rows.astype(dtype)
                if not np.isfinite(small.astype(np.float32)).all():
                    raise UserError(_too_large(name, rows, plan.how.dtype))
                parts[name].append(small)
        return {name: np.concatenate(values) for name, values in parts.items()}


def _too_large(name: str, rows: np.ndarray, dtype: str) -> str:
    largest = np.max(np.abs(rows))
    if np.isfinite(largest) and dtype == "float16":
        return f"{name}: got {largest:.4g}, allowed: at most 65504 in float16; --dtype bfloat16 holds it"
    return f"{name}: the model gives values that are not finite; --model-dtype float32 may help"


class _Documents:
    """The table of documents: numbered over all corpora in the order in which they are met."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[str, int, str], int] = {}
        self.rows: list[dict[str, Any]] = []

    def known(self, corpus: Corpus, context: Context) -> np.ndarray:
        """The documents of a context [context] by their numbers in the table; their tokens are counted."""
        numbers = np.full(context.documents.shape, -1, np.int32)
        for local, document in context.named.items():
            key = (corpus.text, local, context.split)
            if key not in self.numbers:
                self.numbers[key] = len(self.rows)
                row = {"name": document.name, "corpus": corpus.text, "kind": document.kind, "split": context.split}
                self.rows.append(row | {"n_tokens": 0})
            mine = context.documents == local
            numbers[mine] = self.numbers[key]
            self.rows[self.numbers[key]]["n_tokens"] += int(mine.sum())
        return numbers

    def frame(self) -> pd.DataFrame:
        """A row per document."""
        return pd.DataFrame(self.rows)


class _Tally:
    """Counts what is left out."""

    def __init__(self, packing: Packing) -> None:
        self.packing = packing
        self.left_out = {"first": 0, "separators": 0, "padding": 0}
        self.rows: dict[int, int] = {}

    def add(self, corpus: int, context: Context) -> int:
        """Count one context -> its rows."""
        token = context.ids >= 0
        first = np.arange(len(token)) < self.packing.first
        n = len(kept(context.documents[None], self.packing.first)[0])
        self.left_out["padding"] += int((~token).sum())
        self.left_out["first"] += int((token & first).sum())
        self.left_out["separators"] += int((token & ~first).sum()) - n
        self.rows[corpus] = self.rows.get(corpus, 0) + n
        return n

    def say(self, say: Callable[[str], None], corpora: Sequence[Corpus]) -> None:
        """A line on each corpus and one on positions."""
        for number, corpus in enumerate(corpora):
            left_out = f"; left out: {words}" if (words := corpus.left_out()) else ""
            say(f"{corpus.text}: {self.rows.get(number, 0):,} rows{left_out}")
        n = self.left_out
        say(
            f"positions without a row: {n['first']:,} first ones (attention sinks), {n['separators']:,} separators, "
            f"{n['padding']:,} of padding"
        )


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found

"""Documents from files, folders, .jsonl files and data sets of the Hugging Face hub.

    notes.txt, main.py        a file is a document
    /usr/share/doc            a folder: every text file under it is a document
    pages.jsonl[:FIELD]       a line is a document; the field is "text" if not given
    hf:NAME[:SPLIT[:COLUMN]]  a data set, streamed; the split is "train" and the column "text" if not given

Each such argument is a *corpus*. Texts are data: nothing in them is run, and no link leads out of a folder.
"""

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sae.core.files import expanded
from sae.core.text import count, nearest
from sae.core.types import UserError
from sae.data.formats import existing
from sae.lm.extra import library

LARGEST = 2**28  # bytes of one file that is a document
LINES = (".jsonl", ".ndjson")


@dataclasses.dataclass(frozen=True)
class Document:
    """A text, and where it comes from."""

    name: str
    kind: str  # the suffix of its file, or "hf"
    text: str


class Corpus:
    """The documents of one argument, in an order that its text and the seed decide.

    The files of a folder are shuffled, as a budget may not reach all of them; lines and data sets keep their order.
    """

    def __init__(self, text: str, seed: int) -> None:
        """Raises UserError where nothing is there."""
        self.text, self.seed = text, seed
        self.empty = self.unreadable = 0  # documents that were left out so far
        self.field: str | None = None
        if text.startswith("hf:"):
            return
        path, field = text, None
        if not expanded(text).exists() and ":" in text:
            path, _, field = text.rpartition(":")
            if not path.endswith(LINES) or not expanded(path).exists():
                path, field = text, None
        self.path, self.field = existing(expanded(path)), field

    def documents(self) -> Iterator[Document]:
        """Every document with text in it. Raises UserError."""
        found = self._data_set() if self.text.startswith("hf:") else self._local()
        none = True
        for document in found:
            if not document.text.strip():
                self.empty += 1
                continue
            none = False
            yield document
        if none:
            raise UserError(f"{self.text}: no text in it ({self.left_out() or 'it is empty'}); allowed: text in UTF-8")

    def left_out(self) -> str:
        """What was left out so far, in words; "" for nothing."""
        parts = [count(self.empty, "empty document")] * bool(self.empty)
        parts += [count(self.unreadable, "file") + " that held no UTF-8 text"] * bool(self.unreadable)
        return " and ".join(parts)

    def _local(self) -> Iterator[Document]:
        if not self.path.is_dir():
            yield from self._file(self.path, self.path.name, alone=True)
            return
        files = []
        for folder, folders, names in os.walk(self.path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            files += [Path(folder) / name for name in sorted(names) if not name.startswith(".")]
        files = [file for file in files if file.is_file() and not file.is_symlink()]
        for place in np.random.default_rng(self.seed).permutation(len(files)):
            yield from self._file(files[place], str(files[place].relative_to(self.path)), alone=False)

    def _file(self, path: Path, name: str, alone: bool) -> Iterator[Document]:
        """The documents of a file. One that is no text is left out of a folder, and an error where it stands alone."""
        name = os.fsencode(name).decode(errors="replace")
        if path.suffix in LINES:
            yield from self._lines(path, name)
            return
        try:
            if path.stat().st_size > LARGEST:
                raise UserError(
                    f"{path}: {path.stat().st_size:,} bytes, allowed: {LARGEST:,}; write its texts as .jsonl"
                )
            data = path.read_bytes()
            if b"\0" in data[:8192]:
                raise ValueError("it is binary")
            text = data.decode("utf-8")
        except ValueError as error:
            if alone:
                raise UserError(f"{path}: no UTF-8 text ({' '.join(str(error).split())[:100]})") from None
            self.unreadable += 1
            return
        except PermissionError:
            if alone:
                raise
            self.unreadable += 1
            return
        yield Document(name, path.suffix.lstrip(".").lower(), text)

    def _lines(self, path: Path, name: str) -> Iterator[Document]:
        field = self.field or "text"
        with open(path, encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError):
                    raise UserError(f"{path}: line {number} is no JSON; allowed: an object in every line") from None
                if not isinstance(value, dict) or not isinstance(value.get(field), str):
                    names = [str(key) for key in value][:20] if isinstance(value, dict) else []
                    there = nearest(field, names) if names else "it is no object"
                    raise UserError(f"{path}: line {number} has no text {field!r}; {there}")
                yield Document(f"{name}:{number}", path.suffix.lstrip("."), value[field])

    def _data_set(self) -> Iterator[Document]:
        datasets = library("datasets")
        name, _, rest = self.text.removeprefix("hf:").partition(":")
        split, _, column = rest.partition(":")
        datasets.disable_progress_bars()
        rows: Any = _asked(self.text, lambda: datasets.load_dataset(name, split=split or "train", streaming=True))
        rows = iter(rows)
        number = 0
        while (row := _asked(self.text, lambda: next(rows, None))) is not None:
            texts = [key for key, value in row.items() if isinstance(value, str)]
            key = column or ("text" if "text" in texts else texts[0] if len(texts) == 1 else "")
            if key not in texts:
                what = f"no column of text {key!r}" if key else f"{len(texts)} columns of text"
                raise UserError(
                    f"{self.text}: {what}; name it as hf:{name}:{split or 'train'}:COLUMN; {nearest(key, texts)}"
                )
            yield Document(f"{name}:{number}", "hf", row[key])
            number += 1


def _asked(text: str, call: Any) -> Any:
    """What a call to the library of data sets gives. Raises UserError for its errors, which are of any kind."""
    try:
        return call()
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{text}: no data set could be read: {reason}; allowed: hf:NAME[:SPLIT[:COLUMN]]") from None

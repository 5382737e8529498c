"""The page of features as one HTML file, further files of the same kind for the latents that it lacks, and a card.

Tokens and names of documents are data from anyone. They enter a page as JSON without "<", and features.js puts them on
the page as text; the page's policy lets a browser run the page's own script and nothing else.
"""

import base64
import functools
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from markupsafe import Markup

from sae.core.files import write_atomically
from sae.core.text import count, printable
from sae.lm import features as numbers
from sae.report.features import Features, Texts, choose, evenly, gather, names
from sae.report.page import ENVIRONMENT, contents, policy
from sae.report.runs import Runs
from sae.store.results import Results

LATENTS = 200  # of each member, in the page itself
REST = 32_768  # latents of all members together, in the folder beside it
CHUNKS = re.compile(r"member-\d+-\d+\.html")  # names of the files in the folder
CHUNK = 256  # latents of one file in the folder
PEAKS, PROMOTED = 4, 3  # tokens of a latent that can be searched for without its card
NONE = 2**32 - 1  # no token
BETWEEN = 32_767  # a value is kept as a whole number of so many parts of the latent's largest value
UNKNOWN = -32_768


class Pages(NamedTuple):
    """The text of the page, and by name those of the files in the folder, each made when it is asked for."""

    main: str
    chunks: Mapping[str, Callable[[], str]]


class _Vocabulary:
    """The tokens and the documents on one page, both numbered from 0 in the order of their first use."""

    def __init__(self, texts: Texts) -> None:
        self._texts, self._place, self._documents = texts, {}, {}

    def of_documents(self, documents: np.ndarray) -> str:
        """Documents as numbers on the page, -1 for none, the bytes in base64."""
        unique, inverse = np.unique(documents, return_inverse=True)
        places = [-1 if one < 0 else self._documents.setdefault(int(one), len(self._documents)) for one in unique]
        return _base64(np.array(places)[inverse], np.int32)

    @property
    def documents(self) -> list[str]:
        """The name of each document."""
        return [self._texts.documents[one] for one in self._documents]

    def __call__(self, ids: np.ndarray) -> list[str]:
        """Tokens, -1 for none, as (the tokens that occur, the place of each among these), the bytes in base64.

        The first are numbers on the page, NONE for none. Places have 16 bits, which halves a page, where they suffice.
        """
        unique, inverse = np.unique(ids, return_inverse=True)
        numbers_here = [NONE if token < 0 else self._place.setdefault(int(token), len(self._place)) for token in unique]
        kind = np.uint16 if len(unique) < 2**16 else np.uint32
        return [_base64(np.array(numbers_here), np.uint32), _base64(inverse, kind), np.dtype(kind).name]

    @property
    def pieces(self) -> list[str | list[int]]:
        """The text of each, or its bytes where it holds a part of a letter."""
        return [self._texts.piece(token) for token in self._place]


def write(results: Results, runs: Runs, out: Path, report: str, say: Callable[[str], object]) -> Path | None:
    """Write the page of features to `out` and a folder beside it; return its path, or None without such data.

    `report` is the address of the report on the page. Raises UserError and OSError.
    """
    members, sentence = choose(runs)
    if not members:
        return None
    begun = time.monotonic()
    shown = lambda rates: evenly(rates, max(LATENTS, REST // len(members)))
    found = gather(results, members, names(runs, members), shown=shown)
    folder = out.with_suffix("")
    made = pages(found, results.definition["name"], sentence, report, out.name, LATENTS)
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():  # of an earlier choice
        if CHUNKS.fullmatch(path.name) and path.is_file() and path.name not in made.chunks:
            path.unlink()
    for name, text in made.chunks.items():
        write_atomically(folder / name, lambda file, text=text: file.write(text().encode(errors="replace")))
    write_atomically(out, lambda file: file.write(made.main.encode(errors="replace")))
    say(f"features: {count(len(found), 'member')} in {time.monotonic() - begun:.0f} s: {out}")
    return out


def pages(found: Sequence[Features], title: str, sentence: str, report: str, home: str, most: int) -> Pages:
    """The page with all latents of these members, `most` of each with their contexts, and the files with the others.

    `sentence` says which members are shown, `report` is the address of the report, `home` the name of the page's file.
    """
    folder = Path(home).stem
    chunks: dict[str, Callable[[], str]] = {}
    entries, vocabulary = [], _Vocabulary(found[0].texts)
    for one in found:
        rates = np.zeros(len(one.latents.fired))
        rates[one.latents.shown] = one.latents.rates[one.latents.shown]
        cards = evenly(rates, most)
        files = np.full(len(rates), -1)
        if len(cards) < len(one.latents.shown):
            files[one.latents.shown] = one.latents.shown // CHUNK
        numbers_of_files = np.unique(files[files >= 0])
        files_there = [f"member-{one.member}-{file * CHUNK:05d}.html" for file in numbers_of_files]
        entry = _member(one, np.arange(len(rates)), cards, vocabulary) | {"whole": len(rates)}
        entry |= {
            "files": {
                str(file): f"{quote(folder)}/{name}" for file, name in zip(numbers_of_files, files_there, strict=True)
            }
        }
        entry |= {"inFile": _base64(np.isin(np.arange(len(rates)), one.latents.shown), np.uint8)}
        entries.append(entry)
        for i, (file, name) in enumerate(zip(numbers_of_files, files_there, strict=True)):
            around = {"before": files_there[i - 1] if i else None, "after": (*files_there, None)[i + 1]}
            chunks[name] = functools.partial(_chunk, one, int(file), {"home": f"../{quote(home)}", **around}, title)
    note = _note(found, sentence, most, bool(chunks))
    return Pages(_render(found, entries, vocabulary, title, note, {"report": quote(report)}), chunks)


def _chunk(one: Features, file: int, links: Mapping[str, str | None], title: str) -> str:
    """The file with the latents file · CHUNK to (file + 1) · CHUNK - 1 of one member."""
    vocabulary = _Vocabulary(one.texts)
    some = one.latents.shown[one.latents.shown // CHUNK == file]
    entry = _member(one, some, some, vocabulary) | {
        "files": {},
        "inFile": _base64(np.zeros(len(some)), np.uint8),
        "whole": 0,
    }
    note = [f"Latents {some[0]} to {some[-1]} of {one.name}."]
    return _render([one], [entry], vocabulary, title, note, links)


def _render(
    found: Sequence[Features],
    entries: Sequence[dict[str, Any]],
    vocabulary: _Vocabulary,
    title: str,
    note: Sequence[str],
    links: Mapping[str, str | None],
) -> str:
    labels = found[0].labels.names if found[0].labels is not None else ()
    content = {
        "members": entries,
        "labels": list(labels),
        "documents": vocabulary.documents,
        "vocabulary": vocabulary.pieces,
        "links": dict(links),
        "shape": {
            "strongest": numbers.STRONGEST, "others": numbers.OTHERS, "before": numbers.BEFORE, "after": numbers.AFTER,
            "bins": numbers.BINS, "chunk": CHUNK, "tokens": numbers.TOKENS, "labels": numbers.LABELS,
        },
    }  # fmt: skip
    script, style = contents("features.js"), contents("page.css") + contents("features.css")
    return ENVIRONMENT.get_template("features.html").render(
        title=printable(title),
        note=note,
        data=content,
        script=Markup(script),
        style=Markup(style),
        policy=policy([script], [style]),
        links={"report": None, "home": None, "before": None, "after": None, **links},
        has_labels=bool(labels),
    )


def _note(found: Sequence[Features], sentence: str, most: int, has_files: bool) -> list[str]:
    """What the page shows and what it leaves out, in sentences."""
    first = found[0]
    tokens = f"{first.latents.n:,} of {first.part.n_rows:,} {first.part.name} tokens"
    tokens += "" if first.latents.n == first.part.n_rows else ", in contexts that are evenly spaced,"
    dead = sum(int((one.latents.fired == 0).sum()) for one in found)
    alive = sum(int((one.latents.fired > 0).sum()) for one in found)
    with_contexts = sum(len(one.latents.shown) for one in found)
    note = [f"What latents do on {tokens} at {first.hook}.", *([sentence] if sentence else [])]
    if has_files:
        note.append(
            f"Contexts of {most} latents of each member are in this file, evenly spaced in the order of firing rates; "
            "those of others are in the folder beside it."
        )
    if with_contexts < alive:
        note.append(
            f"{count(alive - with_contexts, 'latent')} that fire have no contexts here: too many for the folder."
        )
    if dead:
        note.append(f"{count(dead, 'latent')} never fired.")
    return note


def _member(one: Features, latents: np.ndarray, cards: np.ndarray, vocabulary: _Vocabulary) -> dict[str, Any]:
    """A member as the page knows it: numbers of some latents, all of whose arrays begin with [latents], and cards."""
    found = one.latents
    peaks = found.rows[latents, :PEAKS]
    at = np.maximum(peaks, 0)
    tokens = np.where(peaks >= 0, one.part.ids[one.part.context[at], one.part.position[at]], -1)
    promoted, effect = _of_all(one, latents, PROMOTED)
    own = one.nearest[one.member].cosines
    others = [near.cosines[:, 0] for member, near in one.nearest.items() if member != one.member]
    entry = {
        "member": one.member,
        "name": one.name,
        "examples": found.n,
        "latents": _base64(latents, np.uint32),
        "rate": _base64(found.rates[latents], np.float32),
        "largest": _base64(found.largest[latents], np.float32),
        "peaks": vocabulary(tokens),
        "promoted": vocabulary(promoted),
        "effect": _base64(effect, np.float32),
        "own": _base64(own[latents, 0] if own.shape[1] else np.full(len(latents), np.nan), np.float32),
        "other": _base64(np.max(others, axis=0)[latents] if others else np.full(len(latents), np.nan), np.float32),
        "f1": _f1(one, latents),
        "cards": _cards(one, cards, vocabulary),
    }
    return entry


def _of_all(one: Features, latents: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The first k tokens that latents promote [n, k], -1 for none, and the largest effects [n], NaN for none."""
    d_sae = len(one.latents.fired)
    ids, effect = np.full((d_sae, k), -1), np.full(d_sae, np.nan)
    if one.promoted is not None:
        ids[one.written, : one.promoted.ids.shape[1]] = one.promoted.ids[:, :k]
        effect[one.written] = one.promoted.effects[:, 0]
    return ids[latents], effect[latents]


def _f1(one: Features, latents: np.ndarray) -> str:
    """F1 of every label [labels, n] in 255ths; 0 where a latent is no better than a detector that always says yes."""
    if one.labels is None:
        return ""
    f1, gain = numbers.scores(one.latents, one.labels)
    return _base64(np.where(gain > 0, 255 * f1, 0).round()[latents].T, np.uint8)


def _cards(one: Features, cards: np.ndarray, vocabulary: _Vocabulary) -> dict[str, Any]:
    """All that is shown of some latents, arrays that begin with [cards]."""
    found, place = one.latents, np.searchsorted(one.latents.shown, cards)
    rows = found.rows[cards]
    at = np.maximum(rows, 0)
    context, position = one.part.context[at], one.part.position[at]
    document = np.where(rows >= 0, one.part.documents[context, position], -1)
    values = found.windows.values[place] / np.maximum(found.largest[cards], 1e-30)[:, None, None]
    values = np.where(np.isnan(values), UNKNOWN, np.round(np.nan_to_num(values) * BETWEEN))
    others = {member: near for member, near in one.nearest.items() if member != one.member}
    entry: dict[str, Any] = {
        "latents": _base64(cards, np.uint32),
        "document": vocabulary.of_documents(document),
        "value": _base64(found.values[cards], np.float32),
        "below": _base64(found.below[cards], np.float32),
        "ids": vocabulary(found.windows.ids[place]),
        "values": _base64(values, np.int16),
        "histogram": _base64(found.histogram[cards], np.uint32),
        "own": [
            _base64(one.nearest[one.member].latents[cards], np.uint32),
            _base64(one.nearest[one.member].cosines[cards], np.float32),
        ],
        "others": {
            str(member): [_base64(near.latents[cards], np.uint32), _base64(near.cosines[cards], np.float32)]
            for member, near in others.items()
        },
    }
    if one.promoted is not None and one.suppressed is not None:
        written = np.searchsorted(one.written, cards)  # a latent with a card fires, so it is among them
        for name, tokens in (("promotes", one.promoted), ("suppresses", one.suppressed)):
            entry[name] = [vocabulary(tokens.ids[written]), _base64(tokens.effects[written], np.float32)]
    if one.detected is not None:
        best = one.detected
        three = (best.f1, best.precision, best.recall)
        entry["labels"] = [_base64(best.labels[cards], np.int32), *(_base64(v[cards], np.float32) for v in three)]
    return entry


def _base64(values: np.ndarray, kind: type[np.generic]) -> str:
    """The bytes of an array, little-endian, in base64."""
    array = np.asarray(values).astype(np.dtype(kind).newbyteorder("<"))
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()

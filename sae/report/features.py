"""The latents of some members that were trained on activations of a language model, ready to be read by a person.

    results.features(3)       # a table of all latents of member 3, in a notebook
    results.features(3)[120]  # one latent: its contexts, what it promotes, its neighbours

`gather` looks at the members; features_page.py writes them to a page.
"""

import dataclasses
import functools
import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sae.core import model
from sae.core.definitions import kind
from sae.core.text import count, printable
from sae.core.types import UserError
from sae.data.activations import Activations
from sae.data.harvested import Harvested, Part
from sae.data.rows import Rows
from sae.data.source import Source
from sae.lm import features as numbers
from sae.lm import labels
from sae.lm.features import Detected, Labels, Latents, Neighbours, Tokens
from sae.report import data
from sae.report.data import label, number
from sae.report.runs import Runs
from sae.store.results import Results

MEMBERS = 8  # at most so many members are shown
EXAMPLES = 16_384  # at most so many held-out examples are looked through
RESIDUAL = ("resid-", "mlp-out", "attn-out")  # hooks of which a decoder row is a vector of the residual stream


@dataclasses.dataclass(frozen=True)
class Features:
    """What the latents of one member do on text. `features[120]` is one latent."""

    member: int
    name: str  # "member 3", and what sets it apart
    hook: str  # where in the model; several are joined by a comma
    harvested: Harvested
    part: Part
    latents: Latents
    promoted: Tokens | None  # of the latents that are active on an example; None without an unembedding
    suppressed: Tokens | None
    written: np.ndarray  # the latents that `promoted` and `suppressed` are of
    nearest: Mapping[int, Neighbours]  # member -> its latents nearest to each latent of this one
    labels: Labels | None
    detected: Detected | None

    @functools.cached_property
    def texts(self) -> "Texts":
        """What tokens stand for."""
        return Texts(self.harvested)

    @functools.cached_property
    def table(self) -> pd.DataFrame:
        """A row per latent: firing rate, largest value, tokens of its strongest contexts, what it promotes, and so on.

        `f1` is that of "the latent is active" as a detector of `label`, the label that it is best at.
        """
        found, no_text = self.latents, [""] * len(self.latents.fired)
        peaks = [
            [self.part.ids[self.part.context[r], self.part.position[r]] for r in rows if r >= 0]
            for rows in found.rows[:, :3]
        ]
        columns = {
            "firing_rate": found.rates,
            "largest": found.largest,
            "on": [", ".join(map(self.texts.shown, ids)) for ids in peaks],
            "promotes": no_text,
            "label": no_text,
            "f1": np.nan,
        }
        table = pd.DataFrame(columns, index=pd.RangeIndex(len(found.fired), name="latent"))
        if self.promoted is not None:
            table.loc[self.written, "promotes"] = [
                ", ".join(map(self.texts.shown, ids[:3])) for ids in self.promoted.ids
            ]
        if self.labels is not None and self.detected is not None:
            best = self.detected.labels[:, 0]
            table["label"] = [self.labels.names[i] if i >= 0 else "" for i in best]
            table["f1"] = np.where(best >= 0, self.detected.f1[:, 0], np.nan)
        for member, near in self.nearest.items():
            name = "nearest" if member == self.member else f"nearest_in_{member}"
            table[name] = near.cosines[:, 0] if near.cosines.shape[1] else np.nan
        return table

    def __getitem__(self, latent: int) -> "Card":
        """One latent, which a notebook shows with its contexts. Raises UserError."""
        if latent not in range(n := len(self.latents.fired)):
            raise UserError(f"{self.name}: got latent {latent}, allowed: 0 to {n - 1}")
        if latent not in self.latents.shown:
            raise UserError(f"{self.name}: got latent {latent}, allowed: those that were looked at with their contexts")
        return Card(self, int(latent))

    def _repr_html_(self) -> str:
        table = self.table.sort_values("firing_rate", ascending=False)
        return f"<p>{escaped(self.name)}</p>{table.head(20).to_html(escape=True)}"


def escaped(text: str) -> str:
    """A text for HTML."""
    return html.escape(printable(text))


class Card(NamedTuple):
    """One latent, as a notebook shows it; `contexts` are the numbers behind it."""

    features: "Features"
    latent: int

    @property
    def contexts(self) -> list[dict[str, Any]]:
        """The contexts, the strongest first: tokens, their values (None where no example was kept), document, value."""
        one, found = self.features, self.features.latents
        place = int(np.flatnonzero(found.shown == self.latent)[0])
        contexts = []
        for c, row in enumerate(found.rows[self.latent]):
            if row < 0:
                continue
            ids, values = found.windows.ids[place, c], found.windows.values[place, c]
            document = int(one.part.documents[one.part.context[row], one.part.position[row]])
            contexts.append(
                {
                    "tokens": [one.texts.shown(int(token)) for token in ids if token >= 0],
                    "values": [
                        None if v != v else float(v) for v, token in zip(values, ids, strict=True) if token >= 0
                    ],
                    "document": one.texts.documents[document],
                    "value": float(found.values[self.latent, c]),
                    "below": float(found.below[self.latent, c]),
                    "strongest": c < numbers.STRONGEST,
                }
            )
        return contexts

    def __repr__(self) -> str:
        found = self.features.latents
        strongest = "; ".join("".join(context["tokens"]) for context in self.contexts[:3])
        rate = f"active on {number(100 * float(found.rates[self.latent]))} % of {found.n:,} tokens"
        return f"<latent {self.latent} of {self.features.name}, {rate}: {strongest}>"

    def _repr_html_(self) -> str:
        one, found, j = self.features, self.features.latents, self.latent
        rate = f"active on {number(100 * float(found.rates[j]))} % of {found.n:,} tokens"
        lines = [f"<b>latent {j}</b> of {escaped(one.name)}: {rate}"]
        if one.promoted is not None and one.suppressed is not None and found.fired[j]:
            place = np.searchsorted(one.written, j)
            for word, tokens in (("promotes", one.promoted), ("suppresses", one.suppressed)):
                texts = [escaped(one.texts.shown(int(token))) for token in tokens.ids[place]]
                lines.append(f"{word} {', '.join(texts)}")
        for context in self.contexts:
            spans = [
                self._shaded(token, value) for token, value in zip(context["tokens"], context["values"], strict=True)
            ]
            kind = "" if context["strongest"] else f", above {100 * context['below']:.0f} % of its values"
            words = f"{number(context['value'])}{kind}, {context['document']}"
            lines.append(f"{''.join(spans)} <small>{escaped(words)}</small>")
        return "".join(f'<p style="margin:.3em 0;overflow-wrap:anywhere">{line}</p>' for line in lines)

    def _shaded(self, token: str, value: float | None) -> str:
        """A token over a background that is the stronger, the larger the latent's value is on it."""
        share = min(abs(value or 0) / max(float(self.features.latents.largest[self.latent]), 1e-30), 1)
        tip = "" if value is None else number(value)
        return f'<span title="{tip}" style="background:rgba(230,120,20,{0.6 * share:.2f})">{escaped(token)}</span>'


class Texts:
    """The texts of a harvest's tokens and documents. Nothing in them can steer a page or a terminal."""

    def __init__(self, harvested: Harvested) -> None:
        self._pieces = harvested.pieces
        self.documents = [printable(str(name)) for name in harvested.documents["name"]]

    def piece(self, token: int) -> str | list[int]:
        """The text of a token; its bytes where it holds a part of a letter."""
        data = self._pieces[token] if 0 <= token < len(self._pieces) else b"?"
        try:
            return printable(data.decode())
        except UnicodeDecodeError:
            return list(data)

    def shown(self, token: int) -> str:
        """The text of a token in one line, with its spaces and line ends visible."""
        piece = self.piece(token)
        text = piece if isinstance(piece, str) else "".join(map(_bytewise, piece))
        return text.replace(" ", "␣").replace("\n", "↵").replace("\t", "→")


def _bytewise(byte: int) -> str:
    return printable(chr(byte)) if byte < 0x80 else f"<{byte:02x}>"


def choose(runs: Runs) -> tuple[list[int], str]:
    """(numbers of the members of a run that are shown, a sentence that says which); none without `Activations`.

    All of them are on one harvest: the tokens of another may stand for other texts.
    """
    members, results = data.brief(runs.sound), runs.results[0]
    paths = {int(n): getattr(results.source(int(n)), "path", None) for n in members["number"] if _on_text(results, n)}
    path = next(iter(paths.values()), None)
    rows = [row for row, n in members["number"].items() if n in paths and paths[n] == path]
    left_out = len(members) - len(rows)
    sentence = f"{count(left_out, 'member')} on other data left out." if left_out and rows else ""
    if len(rows) > MEMBERS:
        among = members.loc[rows]
        rows = data.typical(among, runs.along, runs.group, MEMBERS)
        shown = (
            f"{len(rows)} of {len(among)} members are shown: the middle one of each arm and group, at most {MEMBERS}."
        )
        sentence = f"{shown} {sentence}".strip()
    return [int(members.at[row, "number"]) for row in rows], sentence


def _on_text(results: Results, member: int) -> bool:
    return results.definition["members"][int(member)].get("data") == kind(Activations)


@dataclasses.dataclass(frozen=True)
class _Text:
    """A harvest, the examples of a split that are looked at, and what is known of them."""

    harvested: Harvested
    part: Part
    rows: np.ndarray  # [n]
    read: Callable[[np.ndarray], np.ndarray]
    labels: Labels | None
    unembedding: np.ndarray | None
    hooks: tuple[str, ...]

    def written(self, W_dec: np.ndarray, latents: np.ndarray) -> tuple[Tokens, Tokens] | None:
        """The tokens that latents promote and suppress; None where rows are not of the residual stream."""
        hook, U = self.hooks[-1], self.unembedding
        width = self.harvested.width(hook)
        if U is None or U.shape[1] != width or not hook.startswith(RESIDUAL) or not len(latents):
            return None
        return numbers.effects(W_dec[:, -width:], U, latents)


def _text(results: Results, member: int, source: Activations, split: str, examples: int) -> _Text:
    """What a member's source names. Raises UserError."""
    harvested, loaded = source.harvested(), results.data(member)
    assert isinstance(loaded, Rows)  # as Activations.load() gives them
    part = harvested.part(split)
    table = loaded.held_out if split == "held-out" else loaded.train
    rows = numbers.spread(part, examples)
    read = lambda some: loaded.examples(np.asarray(table[some]))
    return _Text(
        harvested, part, rows, read, known_labels(harvested, part, rows), harvested.unembedding(), source.hooks()
    )


def gather(
    results: Results,
    members: Sequence[int],
    called: Mapping[int, str] | None = None,
    *,
    split: str = "held-out",
    examples: int = EXAMPLES,
    shown: Callable[[np.ndarray], np.ndarray] | None = None,
) -> list[Features]:
    """Look at some members of a run on about so many examples of a split, "held-out" or "train".

    The examples are whole contexts, evenly spaced. called: names of members; shown: see `sae.lm.features.look`. Raises
    UserError for members that are not trained on `Activations`, and for data that are gone or changed.
    """
    texts: dict[Source, _Text] = {}
    saes, decoders, sources = {}, {}, {}
    for member in members:
        source = results.source(member)
        if not isinstance(source, Activations):
            got = f"got member {member} on {type(source).__name__}"
            raise UserError(f"{results.folder}: {got}, allowed: Activations, whose tokens are known")
        if source not in texts:
            texts[source] = _text(results, member, source, split, examples)
        sae = results.sae(member)
        made = model.target_normalization(sae)
        saes[member], sources[member] = model.on_examples(sae), source
        decoders[member] = np.asarray(sae.W_dec[...]) / (1 if made is None else np.asarray(made.scale))
    found: list[Features] = []
    for member in members:
        text, W_dec = texts[sources[member]], decoders[member]
        latents = numbers.look(saes[member], text.part, text.read, text.rows, shown, text.labels)
        fires = np.flatnonzero(latents.fired)
        written = text.written(W_dec, fires)
        nearest = {
            other: numbers.neighbours(W_dec, theirs, numbers.NEAREST if other == member else 1, other == member)
            for other, theirs in decoders.items()
            if theirs.shape[1] == W_dec.shape[1]
        }
        found.append(
            Features(
                member=member,
                name=(called or {}).get(member, f"member {member}"),
                hook=", ".join(text.hooks),
                harvested=text.harvested,
                part=text.part,
                latents=latents,
                promoted=written and written[0],
                suppressed=written and written[1],
                written=fires,
                nearest=nearest,
                labels=text.labels,
                detected=None if text.labels is None else numbers.detected(latents, text.labels),
            )
        )
    return found


def known_labels(harvested: Harvested, part: Part, rows: np.ndarray) -> Labels | None:
    """What is known of the tokens of some rows, without the labels that none or all of them have; None for nothing."""
    values = labels.labels(harvested, part).values[:, rows]
    there = np.flatnonzero((values == labels.YES).any(axis=1) & (values == labels.NO).any(axis=1))
    corpora = dict.fromkeys(printable(str(name)) for name in harvested.documents["corpus"])
    named = {f"corpus_{i}": f"corpus {name}" for i, name in enumerate(corpora)}
    names = [named.get(name, name.replace("_", " ")) for name in labels.TASKS]
    return Labels(tuple(names[i] for i in there), values[there]) if len(there) else None


def evenly(rates: np.ndarray, most: int) -> np.ndarray:
    """At most so many latents that fire, evenly spaced in the order of their firing rates; in the order of numbers."""
    order = np.argsort(-rates, kind="stable")
    order = order[: np.count_nonzero(rates)]
    if len(order) > most:
        order = order[np.linspace(0, len(order) - 1, most).round().astype(int)]
    return np.sort(order)


def names(runs: Runs, members: Sequence[int]) -> dict[int, str]:
    """{member: its number, the hyper-parameters that set it apart, and its main numbers}."""
    table, varied = runs.sound.set_index("number"), data.hyper(data.brief(runs.sound))
    shown = [*varied, *(name for name in ("eval/fvu", "eval/l0") if name in table)]
    words = lambda row: [
        f"{label(name)} {number(row[name])}" for name in shown if name != "run" and pd.notna(row[name])
    ]
    return {member: ", ".join([f"member {member}", *words(table.loc[member])]) for member in members}

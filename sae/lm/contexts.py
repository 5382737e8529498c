"""From documents to contexts of a fixed length, some of them held out."""

import dataclasses
import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from sae.core.text import count
from sae.data.harvested import SPLITS, kept
from sae.lm.texts import Corpus, Document

Tokenize = Callable[[str], Sequence[int]]
TRAIN, HELD_OUT = SPLITS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packing:
    """How documents become contexts."""

    context: int  # tokens
    pack: bool  # several documents in a context, or one only
    first: int  # positions of a context without a row
    held_out_fraction: float
    tokens: int  # rows in all
    prefix: tuple[int, ...]  # tokens that begin every context
    separator: int | None  # between documents


@dataclasses.dataclass(frozen=True)
class Context:
    """One context: ids [context] with -1 for padding, the document of each token by its number in the corpus, or -1."""

    split: str
    ids: np.ndarray
    documents: np.ndarray
    named: dict[int, Document]  # without their texts


class Packer:
    """Cuts tokens into contexts of one split."""

    def __init__(self, packing: Packing, split: str) -> None:
        self.packing, self.split = packing, split
        self.ids: list[int] = []
        self.owners: list[int] = []
        self.named: dict[int, Document] = {}

    def add(self, number: int, document: Document, ids: Sequence[int]) -> Iterator[Context]:
        """The contexts that are full with one more document."""
        self.named[number] = document
        if self.ids and self.packing.separator is not None:
            self.ids.append(self.packing.separator)
            self.owners.append(-1)
        self.ids.extend(ids)
        self.owners.extend([number] * len(ids))
        yield from self._full()
        if not self.packing.pack:
            yield from self.flush()

    def flush(self) -> Iterator[Context]:
        """The last context, padded."""
        if self.ids:
            yield from self._made(len(self.ids))

    def _full(self) -> Iterator[Context]:
        room = self.packing.context - len(self.packing.prefix)
        while len(self.ids) >= room:
            yield from self._made(room)

    def _made(self, n: int) -> Iterator[Context]:
        packing, begin = self.packing, len(self.packing.prefix)
        ids, documents = np.full((2, packing.context), -1, np.int32)
        ids[:begin] = packing.prefix
        ids[begin : begin + n], documents[begin : begin + n] = self.ids[:n], self.owners[:n]
        self.ids, self.owners = self.ids[n:], self.owners[n:]
        inside = {number: self.named[number] for number in dict.fromkeys(documents.tolist()) if number >= 0}
        last = self.owners[0] if self.owners else -1
        self.named = {number: one for number, one in self.named.items() if number >= last}
        if len(kept(documents[None], packing.first)[0]):
            yield Context(self.split, ids, documents, inside)


def contexts(
    corpus: Corpus, tokenize: Tokenize, packing: Packing, note: Callable[[str], None] = lambda line: None
) -> Iterator[Context]:
    """The contexts of a corpus, held-out ones among them in about their share at every moment.

    A document goes to one split as a whole: it is held out where that brings the share of held-out tokens nearer to
    what is asked. A corpus that is too small for this (one document, or a few) gives its last contexts instead.
    """
    packers = {split: Packer(packing, split) for split in SPLITS}
    waiting: list[tuple[int, Document, Sequence[int], str]] = []
    total = held = 0
    for number, document in enumerate(corpus.documents()):
        ids = tokenize(document.text)
        total += len(ids)
        split = HELD_OUT if held + len(ids) / 2 <= packing.held_out_fraction * total else TRAIN
        held += len(ids) if split == HELD_OUT else 0
        waiting.append((number, dataclasses.replace(document, text=""), ids, split))
        if held == 0 and total >= packing.tokens:
            break
        if held:
            # held out first: rows may be enough before the last of those that waited is reached
            for number, document, ids, split in sorted(waiting, key=lambda one: one[3] != HELD_OUT):
                yield from packers[split].add(number, document, ids)
            waiting.clear()
    if held:
        for packer in packers.values():
            yield from packer.flush()
        return
    note(
        f"{corpus.text}: {count(len(waiting), 'document')} of {total:,} tokens, too few to keep some apart; "
        "the last contexts are held out"
    )
    yield from _tail(waiting, packing)


def _tail(waiting: Iterable[tuple[int, Document, Sequence[int], str]], packing: Packing) -> Iterator[Context]:
    """The contexts of a few documents: the last ones are held out, and come among the others in their share."""
    packer = Packer(packing, TRAIN)
    every = [context for number, document, ids, _ in waiting for context in packer.add(number, document, ids)]
    every += packer.flush()
    n_held = min(max(1, round(len(every) * packing.held_out_fraction)), len(every) - 1)
    n_train = len(every) - n_held
    train = (((i + 0.5) / n_train, 0, i) for i in range(n_train))
    held = (((i + 0.5) / n_held, 1, n_train + i) for i in range(n_held))
    for _, is_held, place in heapq.merge(train, held):
        yield dataclasses.replace(every[place], split=HELD_OUT if is_held else TRAIN)


def drawn(corpora: Sequence[Iterator[Context]], packing: Packing) -> Iterator[tuple[int, Context]]:
    """(corpus, context) in equal shares of rows, until there are `packing.tokens` rows or the texts end."""
    rows, left, total = [0] * len(corpora), set(range(len(corpora))), 0
    while left and total < packing.tokens:
        which = min(left, key=lambda one: (rows[one], one))
        context = next(corpora[which], None)
        if context is None:
            left.remove(which)
            continue
        n = len(kept(context.documents[None], packing.first)[0])
        rows[which] += n
        total += n
        yield which, context

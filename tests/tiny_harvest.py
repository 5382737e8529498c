"""A harvest without a model: real text, cut into tokens by a rule, and rows that a test makes of their labels."""

import re

import numpy as np
import pandas as pd

from sae.data import harvested
from sae.data.harvested import Harvested
from sae.lm import labels

CUT = re.compile(rb" ?[A-Za-z]{1,4}| ?[0-9]| ?[^A-Za-z0-9\s]{1,2}|\s+?", re.DOTALL)
SEPARATOR = b"<end>"


def tokens(text: bytes) -> list[bytes]:
    """Pieces of a text that are put together again by joining."""
    found = CUT.findall(text)
    assert b"".join(found) == text
    return found


def write(folder, documents, rows, context=32, first=1, hook="resid-post.1", **card) -> Harvested:
    """Pack documents (name, corpus, kind, split, text) into contexts, with a separator before each.

    `rows(part, labels)` gives the activations [n_rows, d] of a part, from its `labels.labels`.
    """
    pieces = [SEPARATOR, *dict.fromkeys(piece for *_, text in documents for piece in tokens(text))]
    number = {piece: i for i, piece in enumerate(pieces)}
    contexts, table = {}, []
    for split in harvested.SPLITS:
        ids, owners = [], []
        for i, (*_, where, text) in enumerate(documents):
            if where == split:
                some = [number[piece] for piece in tokens(text)]
                ids += [0, *some]
                owners += [-1, *[i] * len(some)]
        short = -len(ids) % context
        contexts[split] = tuple(
            np.array(values + [-1] * short, np.int32).reshape(-1, context) for values in (ids, owners)
        )
    for name, corpus, kind, where, text in documents:
        table.append({"name": name, "corpus": corpus, "kind": kind, "split": where, "n_tokens": len(tokens(text))})
    special = np.arange(len(pieces)) == 0
    given = {"documents": pd.DataFrame(table), "pieces": pieces, "special": special, "first": first} | card
    kept = {split: len(harvested.kept(contexts[split][1], first)[0]) for split in harvested.SPLITS}
    blank = {split: {hook: np.zeros((n, 2), np.float16)} for split, n in kept.items()}
    made = harvested.write(folder, contexts=contexts, rows=blank, **given)
    full = {split: {hook: rows(split, made, labels.labels(made, made.part(split)))} for split in harvested.SPLITS}
    return harvested.write(folder, contexts=contexts, rows=full, **given)

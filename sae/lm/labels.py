"""Labels of tokens that cost nothing and are certain: facts about a text, read off its bytes.

    made = labels.labels(harvested, harvested.part("held-out"))
    made["next_digit"]  # [n_rows] int8: 1 yes, 0 no, -1 not asked of this row

A row is a position of which an activation was kept. A task that makes no sense for a row is not asked of it: what is
next after a document's last token, or what Python says of prose.
"""

import dataclasses
import io
import keyword
import string
import tokenize
from collections.abc import Callable

import numpy as np

from sae.data.harvested import Harvested, Part

OF_TOKEN = {
    "digit": "has a digit",
    "capital": "has a capital letter, A to Z",
    "punctuation": "has a character, and beside whitespace nothing but punctuation of ASCII",
    "whitespace": "is whitespace alone",
    "word_start": "begins a word: its first character beside whitespace is a letter, and no word runs into it",
}
OF_PYTHON = {
    "string": "lies in a string of Python",
    "comment": "lies in a comment of Python",
    "keyword": "lies in a keyword of Python",
    "name": "lies in a name of Python that is no keyword",
    "number": "lies in a number of Python",
    "operator": "lies in an operator or a bracket of Python",
}
CORPORA = 4  # so many corpora have a task each
TASKS = (
    {name: f"the token {words}" for name, words in OF_TOKEN.items()}
    | {f"next_{name}": f"the next token {words}" for name, words in OF_TOKEN.items()}
    | {
        "brackets": "after the token, a bracket ( [ or { is open that stands behind the last blank line",
        "quotes": 'after the token, an odd number of " stands behind the last blank line; not asked of Python',
    }
    | {f"python_{name}": f"the token {words}; asked of Python alone" for name, words in OF_PYTHON.items()}
    | {"python_document": "the document is Python"}
    | {f"corpus_{i}": f"the document is of corpus {i}, counted from 0 in the harvest's order" for i in range(CORPORA)}
)
"""Every task, and what its label says where it is 1. The order is that of `Labels.values`."""

UNKNOWN, NO, YES = -1, 0, 1
KINDS = {name: i for i, name in enumerate(OF_PYTHON, 1)}  # 0: none of them
LETTERS = frozenset(string.ascii_letters.encode()) | frozenset(range(0x80, 0x100))  # beyond ASCII, letters mostly
WORD = LETTERS | frozenset(b"0123456789_")
SPACE = frozenset(b" \t\n\r\v\f")
PUNCTUATION = frozenset(string.punctuation.encode())
OPENS, CLOSES = frozenset(b"([{"), frozenset(b")]}")


@dataclasses.dataclass(frozen=True)
class Labels:
    """The labels of rows, and where each row is from."""

    values: np.ndarray  # [n_tasks, n_rows] int8: 1, 0, or -1 where the task is not asked of a row
    documents: np.ndarray  # [n_rows] int32: the row's document, by its place in the table of documents
    strata: np.ndarray  # [n_rows] int32: one number for each pair of corpus and kind of document

    def __getitem__(self, task: str) -> np.ndarray:
        return self.values[list(TASKS).index(task)]

    def of(self, rows: np.ndarray) -> "Labels":
        """The labels of some rows."""
        return Labels(self.values[:, rows], self.documents[rows], self.strata[rows])


def labels(harvested: Harvested, part: Part) -> Labels:
    """The labels of all rows of a part, in the order of its rows.

    A document's text is the pieces of its tokens, one after another over contexts. Tokens at positions of which no
    activation was kept belong to it as well.
    """
    pieces, table = harvested.pieces, harvested.documents
    ids, documents = np.ravel(part.ids), np.ravel(part.documents)
    rows = np.asarray(part.context, np.int64) * part.ids.shape[1] + np.asarray(part.position)
    values = np.full((len(TASKS), len(ids)), UNKNOWN, np.int8)
    place = {name: i for i, name in enumerate(TASKS)}
    python = np.array([kind == "py" for kind in table["kind"]])
    special = np.asarray(harvested.special, bool)

    made = np.stack([[one(piece) for piece in pieces] for one in PIECES.values()])  # [4, n_tokens]
    within = documents >= 0
    for tokens in _by_document(documents):
        is_python = bool(python[documents[tokens[0]]])
        text = [b"" if special[i] else pieces[i] for i in ids[tokens]]
        known = ~special[ids[tokens]]
        own = np.empty((len(OF_TOKEN), len(tokens)), np.int8)
        own[:4] = made[:, ids[tokens]]
        own[4] = _word_starts(text)
        own[:, ~known] = UNKNOWN
        values[: len(OF_TOKEN), tokens] = own
        values[len(OF_TOKEN) : 2 * len(OF_TOKEN), tokens[:-1]] = own[:, 1:]
        values[place["brackets"], tokens], quotes = _open(text)
        if is_python:
            kinds = python_kinds(text)
            for name, kind in KINDS.items():
                values[place[f"python_{name}"], tokens] = np.where(kinds == UNKNOWN, UNKNOWN, kinds == kind)
        else:
            values[place["quotes"], tokens] = quotes
    values[place["python_document"], within] = python[documents[within]]
    names, corpus = _numbered(table["corpus"])
    for i in range(min(CORPORA, len(names))):
        values[place[f"corpus_{i}"], within] = corpus[documents[within]] == i
    kinds, kind = _numbered(table["kind"])
    of_row = documents[rows]
    return Labels(values[:, rows], of_row, (corpus * len(kinds) + kind)[of_row].astype(np.int32))


def _numbered(column: object) -> tuple[list[str], np.ndarray]:
    """The names in a column in the order of their first, and the number of each row's."""
    texts = [str(value) for value in np.asarray(column)]
    names = list(dict.fromkeys(texts))
    return names, np.array([names.index(text) for text in texts], np.int64)


def _by_document(documents: np.ndarray) -> list[np.ndarray]:
    """The places of the tokens of every document, in text order."""
    order = np.argsort(documents, kind="stable")
    order = order[documents[order] >= 0]
    edges = np.flatnonzero(np.diff(documents[order])) + 1
    return [tokens for tokens in np.split(order, edges) if len(tokens)]


PIECES: dict[str, Callable[[bytes], bool]] = {
    "digit": lambda piece: any(byte in b"0123456789" for byte in piece),
    "capital": lambda piece: any(0x41 <= byte <= 0x5A for byte in piece),
    "punctuation": lambda piece: bool(piece.strip()) and all(b in PUNCTUATION for b in piece if b not in SPACE),
    "whitespace": lambda piece: bool(piece) and all(byte in SPACE for byte in piece),
}
"""What a piece of text is made of, by the names of tasks."""


def _word_starts(text: list[bytes]) -> np.ndarray:
    """Which pieces of a text begin a word, [n] bool."""
    found, before = np.zeros(len(text), bool), b""
    for i, piece in enumerate(text):
        rest = piece.lstrip()
        found[i] = bool(rest) and rest[0] in LETTERS and (len(rest) < len(piece) or before[-1:] not in WORDS)
        before = piece or before
    return found


WORDS = frozenset(bytes([byte]) for byte in WORD)


def _open(text: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """After each piece, whether a bracket is open, and whether a quotation is, [n] int8 each.

    A blank line closes both. A bracket that closes nothing is passed over.
    """
    brackets, quotes = np.zeros((2, len(text)), np.int8)
    depth, quoted, line_is_blank = 0, False, False
    for i, piece in enumerate(text):
        for byte in piece:
            if byte == 0x0A:
                if line_is_blank:
                    depth, quoted = 0, False
                line_is_blank = True
            elif byte not in SPACE:
                line_is_blank = False
                depth = depth + 1 if byte in OPENS else max(depth - 1, 0) if byte in CLOSES else depth
                quoted ^= byte == 0x22
        brackets[i], quotes[i] = depth > 0, quoted
    return brackets, quotes


def python_kinds(text: list[bytes]) -> np.ndarray:
    """What Python's own tokenizer says of each piece of a source text, [n] int8: one of `KINDS`, 0 for none, or -1.

    A piece is what covers its first byte that is not whitespace, or its first byte. -1 stands for what is not known:
    what follows the first thing that is not Python, or the end of a text that was cut off.
    """
    source = b"".join(text)
    covers = _covers(source)
    first = np.cumsum([0, *map(len, text)])[:-1]
    found = np.full(len(text), UNKNOWN, np.int8)
    for i, piece in enumerate(text):
        if piece:
            found[i] = covers[first[i] + (len(piece) - len(piece.lstrip()) if piece.strip() else 0)]
    return found


def _covers(source: bytes) -> np.ndarray:
    """The kind of the Python token that covers each byte, [n_bytes] int8."""
    covers = np.full(len(source), UNKNOWN, np.int8)
    # a byte is a character of latin-1, so that columns are bytes; a space before the first line is a tokenizer's own
    lead = len(source) - len(source.lstrip(b" \xef\xbb\xbf"))
    lines = source[lead:].split(b"\n")
    starts = np.cumsum([lead, *(len(line) + 1 for line in lines)])
    at = lambda point: int(starts[point[0] - 1]) + point[1]
    text, done = io.StringIO(source[lead:].decode("latin-1"), newline="\n"), 0
    formatted = 0  # depth of f-strings, which are tokens of their own since Python 3.12
    try:
        for token in tokenize.generate_tokens(text.readline):
            name = tokenize.tok_name[token.type]
            if name == "ERRORTOKEN":
                break
            begin, end = at(token.start), min(at(token.end), len(source))
            formatted += name == "FSTRING_START"
            covers[done:begin] = KINDS["string"] if formatted and name != "FSTRING_START" else 0
            kind = KINDS["string"] if formatted else KINDS.get(NAMED.get(name, ""), 0)
            if kind == KINDS["name"] and keyword.iskeyword(token.string):
                kind = KINDS["keyword"]
            covers[begin:end] = kind
            done = max(done, end)
            formatted -= name == "FSTRING_END"
    except (tokenize.TokenError, SyntaxError, UnicodeError):  # IndentationError is a SyntaxError
        pass
    if not source.endswith(b"\n"):  # the last word may have been cut off, and is another one then
        covers[len(source.rstrip(bytes(WORD))) :] = UNKNOWN
    return covers


NAMED = {"STRING": "string", "COMMENT": "comment", "NAME": "name", "NUMBER": "number", "OP": "operator"}

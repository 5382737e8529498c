"""Words for people: plurals, ranges of numbers, close names, short names, tables of text."""

import difflib
import itertools
import re
from collections.abc import Iterable, Sequence

from rich.cells import cell_len

SEPARATORS = " /\\._-=,:"
ROOM = 0.6  # share of a table's width that the names of its rows may take
ENOUGH, LEAST = 24, 8  # names of rows get as short to spare a block of a table, and as short if they must
WORDS = 24  # characters of the longest words in the other columns; numbers are never as long
Column = tuple[str, list[str]]  # its head, and its cells


def count(n: int, thing: str) -> str:
    """A number with its noun: "1 member", "2 members"."""
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers as ranges: [0, 1, 2, 5] -> "0-2, 5"."""
    by_offset = itertools.groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0])
    runs = [[number for _, number in pairs] for _, pairs in by_offset]
    ends = [(run[0], run[-1]) for run in runs]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ends)


def nearest(name: str, allowed: Iterable[str]) -> str:
    """The end of an error message: the allowed names that are close to a name, or all of them if none is close."""
    allowed = list(allowed)
    close = difflib.get_close_matches(name, allowed, n=3, cutoff=0.5)
    return f"close names: {', '.join(close)}" if close else f"allowed: {', '.join(allowed) or 'none here'}"


# what moves a terminal's cursor, sets its title or its clipboard, or turns the direction of text
_CONTROLS = [
    *range(0x20),
    0x7F,
    *range(0x80, 0xA0),
    0x61C,
    0x200E,
    0x200F,
    *range(0x2028, 0x202F),
    *range(0x2066, 0x206A),
]
_SHOWN = {code: 0x2400 + code if code < 0x20 else 0xFFFD for code in _CONTROLS if chr(code) not in "\n\t"}
_SHOWN |= {code: 0xFFFD for code in range(0xD800, 0xE000) if not 0xDC80 <= code <= 0xDCFF}  # these are bytes of paths


def printable(text: str) -> str:
    """A text that cannot steer a terminal: control characters are replaced by visible ones, ESC by "␛".

    The ends of lines and tabs stay.
    """
    return text.translate(_SHOWN)


def one_line(text: str) -> str:
    """A text that cannot steer a terminal, in one line."""
    return re.sub(r"[\n\t]+", " ", printable(text))


def in_markdown(text: str) -> str:
    """A text for a cell of a table in Markdown, in one line and without links and tags."""
    return re.sub(r"([\\|]|\](?=\())", r"\\\1", one_line(text)).replace("<", "&lt;")


def unquoted(text: str) -> str:
    """A text without the backticks that mark code, for places that do not show code."""
    return text.replace("`", "")


def abbreviated(names: Iterable[str], most: int) -> dict[str, str]:
    """{name: the same in at most `most` characters}; different names stay different, short ones stay as they are.

    What all long names share gives way to "…" first, and what stands next to a difference last:
    "acts/gpt2_blocks.4.hook.npy" and "acts/gpt2_blocks.8.hook.npy" are "…blocks.4.hook…" and "…blocks.8.hook…".
    """
    names = list(dict.fromkeys(names))
    words = {name: [word for word in re.split(r"(\d+|[\W_])", name) if word] for name in names if len(name) > most}
    short = {name: name for name in names if name not in words}
    shared = _shared(list(words.values())) if len(words) > 1 else []
    runs = {name: _runs(of_name, shared) for name, of_name in words.items()}
    kept = max(map(len, words.values()), default=0)
    while kept and any(len(_joined(of_name, kept)) > most for of_name in runs.values()):
        kept -= 1
    for name, of_name in runs.items():
        text = _middle(_joined(of_name, kept), most)
        tries = (f"{_middle(text, most - len(end))}{end}" for end in map("~{}".format, itertools.count(2)))
        taken = set(short.values())
        short[name] = next(one for one in itertools.chain([text], tries) if one not in taken)
    return short


def _shared(words: Sequence[Sequence[str]]) -> list[str]:
    """Words that stand in all of these sequences, in the same order."""
    common = list(words[0])
    for other in words[1:]:
        blocks = difflib.SequenceMatcher(None, common, other, autojunk=False).get_matching_blocks()
        common = [word for block in blocks for word in common[block.a : block.a + block.size]]
    return common


def _runs(words: Sequence[str], shared: Sequence[str]) -> list[tuple[bool, list[str]]]:
    """Words as runs that are shared or not."""
    blocks = difflib.SequenceMatcher(None, shared, words, autojunk=False).get_matching_blocks()
    places = {place for block in blocks for place in range(block.b, block.b + block.size)}
    by_kind = itertools.groupby(range(len(words)), key=places.__contains__)
    return [(is_shared, [words[place] for place in run]) for is_shared, run in by_kind]


def _joined(runs: Sequence[tuple[bool, list[str]]], kept: int) -> str:
    """Runs as a text; of shared ones only as many words as `kept`, next to what is not shared."""
    parts = []
    for i, (is_shared, words) in enumerate(runs):
        whole = "".join(words)
        before = "".join(words[:kept]).rstrip(SEPARATORS) if i else ""
        after = "".join(words[max(len(words) - kept, 0) :]).lstrip(SEPARATORS) if i < len(runs) - 1 else ""
        cut = f"{before}…{after}"
        parts.append(cut if is_shared and len(runs) > 1 and len(cut) < len(whole) else whole)
    return "".join(parts)


def _middle(text: str, most: int) -> str:
    """A text in at most `most` characters, without its middle."""
    end = most // 2
    return text if len(text) <= most else f"{text[: most - end - 1]}…{text[len(text) - end :]}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], width: int, names: int = 1) -> str:
    """A table as lines of at most `width` characters; its first `names` columns name the rows.

    Long words are `abbreviated`. Columns that do not fit stand in further blocks below, beside the names again. No
    number is ever cut: a line is longer than `width` where even that is too little. A head may have several lines.
    """
    columns = [(name, [one_line(row[i]) for row in rows]) for i, name in enumerate(head)]
    if _taken(columns) > width:  # the first words of a dotted name go above the last
        columns = [(name.replace(".", ".\n") if _size(name) > _size(*of) else name, of) for name, of in columns]
    others = [(name, _abbreviated(of, WORDS)) for name, of in columns[names:]]
    first, least = columns[:names], max((_size(*name.split("\n"), *of) for name, of in others), default=0)
    for most in (*range(width, ENOUGH, -2), *range(ENOUGH, LEAST - 1, -2)):
        first = [(name, _abbreviated(of, most)) for name, of in columns[:names]]
        one_block = _taken(first + others) <= width
        if one_block or (most <= ENOUGH and _taken(first) <= ROOM * width and _taken(first) + 1 + least <= width):
            break
    blocks: list[list[Column]] = [[]]
    for column in others:
        if blocks[-1] and _taken([*first, *blocks[-1], column]) > width:
            blocks.append([])
        blocks[-1].append(column)
    return "\n\n".join(_block(first, block) for block in blocks)


def _abbreviated(cells: Sequence[str], most: int) -> list[str]:
    short = abbreviated((cell for cell in cells if not _is_number(cell)), most)
    return [short.get(cell, cell) for cell in cells]


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", ""))
    except ValueError:
        return False
    return True


def _size(*texts: str) -> int:
    """The width of the widest text on a terminal."""
    return max(map(cell_len, texts), default=0)


def _taken(columns: Sequence[Column]) -> int:
    """The width of some columns side by side."""
    return sum(_size(*name.split("\n"), *of) + 1 for name, of in columns) - 1


def _block(first: Sequence[Column], others: Sequence[Column]) -> str:
    """Columns side by side: the first aligned to the left, the others to the right."""
    deep = max(name.count("\n") for name, _ in [*first, *others])
    padded = []
    for i, (name, of) in enumerate([*first, *others]):
        lines = [*[""] * (deep - name.count("\n")), *name.split("\n"), *of]
        space = [" " * (_size(*lines) - cell_len(line)) for line in lines]
        padded.append([line + s if i < len(first) else s + line for line, s in zip(lines, space, strict=True)])
    rows = [" ".join(row).rstrip() for row in zip(*padded, strict=True)]
    return "\n".join([*rows[: deep + 1], "─" * _taken([*first, *others]), *rows[deep + 1 :]])

"""Words for people: plurals, ranges of numbers, close names."""

import difflib
import itertools
from collections.abc import Iterable


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
    return f"close names: {', '.join(close)}" if close else f"allowed: {', '.join(allowed)}"

"""Words for people: plurals, ranges of numbers, the nearest of some names."""

import difflib
import itertools
from collections.abc import Iterable


def count(n: int, thing: str) -> str:
    """ "1 member", "2 members"."""
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def ranges(numbers: Iterable[int]) -> str:
    """[0, 1, 2, 5] -> "0-2, 5"."""
    runs = itertools.groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0])
    ends = [(of[0][1], of[-1][1]) for _, group in runs if (of := list(group))]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ends)


def nearest(name: str, allowed: Iterable[str]) -> str:
    """The end of an error message: the close names, or all of them where nothing is close."""
    allowed = list(allowed)
    close = difflib.get_close_matches(name, allowed, n=3, cutoff=0.5)
    return f"close names: {', '.join(close)}" if close else f"allowed: {', '.join(allowed)}"

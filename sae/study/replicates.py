"""Replicates: members that differ in their seeds alone. Only these may be averaged over."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

OWN = ("member", "cohort", "status", "name", "number")  # columns that are neither hyper-parameters nor metrics


def is_seed(name: str) -> bool:
    """Whether a field is a seed, by its name: `seed`, `data_seed`, `data.split_seed`, or one of a user's own."""
    last = name.rpartition(".")[2]
    return last == "seed" or last.endswith("_seed")


def seeds(members: pd.DataFrame) -> list[str]:
    """The seeds among the hyper-parameters of a table. Each combination of their values is one replicate."""
    return [name for name in hyper(members) if is_seed(name)]


def hyper(members: pd.DataFrame) -> list[str]:
    """The columns of a members table that are hyper-parameters."""
    return [name for name in members if name not in OWN and "/" not in name]


def lurking(members: pd.DataFrame, names: Iterable[str]) -> tuple[str, ...]:
    """The hyper-parameters, other than seeds, in which some members with equal values of `names` differ.

    A mean over members with equal `names` would hide them. One that follows from the others is left out.
    """
    found: list[str] = []
    words = members[hyper(members)].map(str)  # a value that is missing is a word too
    varied = [name for name in words if not is_seed(name) and words[name].nunique() > 1]
    cells = _cells(words, [name for name in names if name in words])
    for name in varied:
        if words[name].groupby(cells).nunique().max() > 1:
            found.append(name)
            cells = _cells(words.assign(_before=cells), ["_before", name])
    return tuple(found)


def _cells(words: pd.DataFrame, names: Sequence[str]) -> np.ndarray:
    """A number for each row, equal where the values of these names are."""
    return words.groupby(list(names)).ngroup().to_numpy() if names else np.zeros(len(words), int)


def over_seeds(members: pd.DataFrame) -> str:
    """What a mean over replicates is: "means over 3 seeds", "means over 1 to 3 seeds", or "one seed".

    Members that were not trained here have no known seed, and are "one of each".
    """
    words = members[hyper(members)].map(str)  # a value that is missing is a word too
    axes = [name for name in words if not is_seed(name) and words[name].nunique() > 1]
    sizes = words.groupby(axes).size() if axes else pd.Series([len(words)])
    least, most = int(sizes.min()), int(sizes.max())
    if most < 2:
        return "one seed" if "seed" in words else "one of each"
    varied = [name for name in words if is_seed(name) and words[name].nunique() > 1]
    named = "" if varied in ([], ["seed"]) else f" ({', '.join(varied)})"
    return f"means over {most if least == most else f'{least} to {most}'} seeds{named}"

"""How far the dictionaries of a run agree: what the figure of an `AgreementMatrix` shows."""

import dataclasses
from collections.abc import Sequence

import pandas as pd

from sae.analysis import agreement
from sae.report.data import label, numbers
from sae.store.results import Results
from sae.study.figures import AgreementMatrix


@dataclasses.dataclass(frozen=True)
class Agreements:
    """The mean MCC between members of every two groups, and that of random dictionaries of their shapes."""

    names: Sequence[str]  # of the groups, "top-k, d_sae 64"
    mcc: pd.DataFrame  # [group, group]; NaN for a group of one member with itself
    chance: pd.DataFrame  # [group, group]


def look(results: Results, figure: AgreementMatrix) -> Agreements:
    """Match the dictionaries of a run. Raises UserError for weights that cannot be read, and for several d_in."""
    found = agreement.matrix(results, figure.group, figure.most)
    columns = []
    for i, name in enumerate(figure.group):
        values = found.index.get_level_values(i)
        words = name == "activation" or not all(isinstance(value, int | float) for value in values)
        columns.append([text if words else f"{label(name)} {text}" for text in numbers(values)])
    names = [", ".join(row) for row in zip(*columns, strict=True)]
    return Agreements(names, found, agreement.matrix_chance(results, figure.group))

"""Arms compared in sentences and in a table: what each reaches at the same L0, or the same FVU."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from sae.report.data import groups, interval, label, number
from sae.study.answers import AtMatched


def statements(table: pd.DataFrame, figure: AtMatched) -> dict[float, list[str]]:
    """{matched value: a sentence per group} on the first metric of a table that `figure.compare` gave.

    "At l0 = 10, d_sae 64: L1 reaches fvu 0.12 [0.11, 0.13]; L2 cannot reach it (its least l0 is 31)." Many arms are
    named in rising order, where they reach the value: "fvu from its least: TopK 0.12 [0.11, 0.13], ...".
    """
    first = table[table["metric"] == label(figure.metrics[0])]
    sentences: dict[float, list[str]] = {}
    for value, rows in first.groupby("value"):
        for words, group in groups(rows, figure.groups):
            at = ", ".join([f"At {label(figure.matched)} = {value:g}", *words])
            clauses = (
                _ranked(group, figure) if figure.many else [_clause(row, figure) for row in group.to_dict("records")]
            )
            sentences.setdefault(float(value), []).append(f"{at}: {'; '.join(clauses)}.")
    return sentences


def _ranked(group: pd.DataFrame, figure: AtMatched) -> list[str]:
    reached, others = group[group["seeds"] > 0].sort_values("mean"), group[group["seeds"] == 0]
    ranks = [
        f"{row['arm']} {number(row['mean'])}{interval(row['low'], row['high'])}" for row in reached.to_dict("records")
    ]
    metric = label(figure.metrics[0])
    return [f"{metric} from its least: {', '.join(ranks)}"] * bool(ranks) + [
        _clause(row, figure) for row in others.to_dict("records")
    ]


def _clause(row: Mapping[Any, Any], figure: AtMatched) -> str:
    matched = label(figure.matched)
    if row["seeds"]:
        some = f" ({row['seeds']} of {row['of_seeds']} seeds reach it)" if row["seeds"] < row["of_seeds"] else ""
        return f"{row['arm']} reaches {row['metric']} {number(row['mean'])}{interval(row['low'], row['high'])}{some}"
    if not row["of_seeds"]:
        return f"{row['arm']} has no member here"
    if row["value"] < row["lowest"]:
        return f"{row['arm']} cannot reach it (its least {matched} is {number(row['lowest'])})"
    if row["value"] > row["highest"]:
        return f"{row['arm']} does not go as far (its largest {matched} is {number(row['highest'])})"
    return f"no single seed of {row['arm']} brackets it"


def table(compared: pd.DataFrame, figure: AtMatched) -> pd.DataFrame:
    """A table that `figure.compare` gave, as text: a row per metric and group, a column per matched value and arm.

    With many arms, an arm is a row.
    """
    cells = compared.assign(
        cell=[
            f"{number(row['mean'])}{interval(row['low'], row['high'])}" if row["seeds"] else "–"
            for row in compared.to_dict("records")
        ],
        at=[f"{label(figure.matched)} {value:g}" for value in compared["value"]],
    )
    rows = ["metric", *figure.groups, *["arm"] * figure.many]
    columns = ["at"] if figure.many else ["at", "arm"]
    cells[rows] = cells[rows].astype(object).where(cells[rows].notna(), number(None))  # a pivot drops missing labels
    every = lambda names: pd.MultiIndex.from_frame(cells[names].drop_duplicates())
    text = cells.pivot(index=rows, columns=columns, values="cell").reindex(index=every(rows))
    return text[cells["at"].drop_duplicates()] if figure.many else text.reindex(columns=every(columns))

"""The comparison a reader wants: what each arm reaches at the same L0, or the same FVU, in plain sentences."""

import pandas as pd

from sae.report.data import label, number, pairs
from sae.study.answers import AtMatched


def statements(table: pd.DataFrame, figure: AtMatched) -> dict[float, list[str]]:
    """Sentences by matched value, one per group, of what `AtMatched.compare` gave, about the first metric.

    "At l0 = 10, d_sae 64: L1 reaches fvu 0.12 [0.11, 0.13]; L2 cannot reach it (its least l0 is 31)."
    """
    first = table[table["metric"] == label(figure.metrics[0])]
    sentences: dict[float, list[str]] = {}
    for (value, *group), rows in first.groupby(["value", *figure.groups], dropna=False):
        at = [f"At {label(figure.matched)} = {value:g}"]
        at += [f"{label(name)} {number(v)}" for name, v in zip(figure.groups, group, strict=True)]
        clauses = "; ".join(_clause(row, figure) for row in rows.to_dict("records"))
        sentences.setdefault(value, []).append(f"{', '.join(at)}: {clauses}.")
    return sentences


def _clause(row: dict, figure: AtMatched) -> str:
    matched = label(figure.matched)
    if row["seeds"]:
        some = f" ({row['seeds']} of {row['of_seeds']} seeds reach it)" if row["seeds"] < row["of_seeds"] else ""
        return f"{row['arm']} reaches {row['metric']} {number(row['mean'])}{pairs(row['low'], row['high'])}{some}"
    if row["value"] < row["lowest"]:
        return f"{row['arm']} cannot reach it (its least {matched} is {number(row['lowest'])})"
    if row["value"] > row["highest"]:
        return f"{row['arm']} does not go as far (its largest {matched} is {number(row['highest'])})"
    return f"{row['arm']} passes it between two members of no one seed"


def table(compared: pd.DataFrame, figure: AtMatched) -> pd.DataFrame:
    """What `AtMatched.compare` gave, as text: a row per metric and group, a column per matched value and arm."""
    cells = compared.assign(
        cell=[
            "–" if not row.seeds else f"{number(row.average)}{pairs(row.low, row.high)}"
            for row in compared.rename(columns={"mean": "average"}).itertuples()
        ],
        at=[f"{label(figure.matched)} {value:g}" for value in compared["value"]],
    )
    rows = ["metric", *figure.groups]
    return cells.pivot(index=rows, columns=["at", "arm"], values="cell").reindex(
        index=pd.MultiIndex.from_frame(cells[rows].drop_duplicates()),
        columns=pd.MultiIndex.from_frame(cells[["at", "arm"]].drop_duplicates()),
    )

"""The answer of a finished run, and the verdicts on its claims, on the terminal."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sae.core.text import count
from sae.store.results import Results
from sae.study import claims
from sae.study.answers import AtMatched
from sae.study.sweep import Sweep, varying

MOST_ROWS = 40  # rows of a table that are printed


def print_answer(sweep: Sweep, results: Results, console: Console) -> None:
    """Print the sweep's answer, or held-out numbers where it asks for none, and the folder of the results."""
    everyone = results.members
    members = everyone[everyone["status"] == "finished"]
    if len(members) == 0:
        table, title = pd.DataFrame(), "every member diverged: no answer"
    elif sweep.answer is not None:
        table, title = sweep.answer.table(members), sweep.answer.title
    elif len(members) == 1:
        numbers = {name: members[name].iloc[0] for name in members.columns if name.startswith("eval/")}
        table, title = pd.DataFrame({"": numbers}, dtype=object), sweep.name
    else:
        axes = [name for name in varying(sweep.members) if name != "seed"]
        numbers = [f"eval/{name}" for name in ("fvu", "l0", "dead_fraction")]
        means = members.groupby(axes, dropna=False)[numbers].mean() if axes else members[numbers]
        table, title = means, "means over seeds"
    console.print(f"\n{title} ({count(len(members), 'member')}, held out)", highlight=False, markup=False)
    if len(table):
        console.print(_rich_table(table.head(MOST_ROWS)))
    if len(table) > MOST_ROWS:
        console.print(f"... {len(table) - MOST_ROWS} more rows in members.parquet", highlight=False)
    if isinstance(sweep.answer, AtMatched) and len(table) and table.isna().any(axis=None):
        low, high = members[sweep.answer.matched].min(), members[sweep.answer.matched].max()
        console.print(
            f"-: not reached; {sweep.answer.matched} spans {low:.3g} to {high:.3g} over all members", highlight=False
        )
    if diverged := len(everyone) - len(members):
        console.print(f"{diverged} of {len(everyone)} members diverged and are left out", highlight=False)
    names = sorted(path.name for path in results.folder.iterdir() if not path.name.startswith("."))
    console.print(f"results: {results.folder} ({', '.join(names)})", soft_wrap=True, highlight=False, markup=False)


def _rich_table(frame: pd.DataFrame) -> Table:
    """A data frame as a table for the terminal. Its index names the rows."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in frame.index.names:
        table.add_column(name or "", justify="left", no_wrap=True)
    for column in frame.columns:
        table.add_column("\n".join(column) if isinstance(column, tuple) else str(column), justify="right")
    before: tuple = ()
    for index, row in zip(frame.index, frame.to_numpy(), strict=True):
        labels = index if isinstance(index, tuple) else (index,)
        # a label that repeats the one above it is left out
        shown = [
            ("" if i == 0 and len(labels) > 1 and labels[:1] == before[:1] else str(v)) for i, v in enumerate(labels)
        ]
        table.add_row(*shown, *map(_cell, row))
        before = labels
    return table


def _cell(value: Any) -> str:
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float | np.floating):
        return "-" if value != value else f"{value:.3g}"
    return str(value)


def print_claims(runs: Mapping[str, list[dict[str, Any]]], console: Console, check: bool = False) -> int:
    """Print the claims of runs, {name of the run: its claims.json}, a row per cell.

    Returns the exit code: 2 where `check` is set and a claim fails, else 0.
    """
    decided = [claim for of_run in runs.values() for claim in of_run]
    if not decided:
        return 0
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, title_justify="left")
    for column in ("claim", "at", "measured", "", "verdict"):
        table.add_column(column, overflow="fold")
    for name, of_run in runs.items():
        if name:
            table.add_row(f"[bold]{name}[/bold]")
        for claim in of_run:
            for i, cell in enumerate(claim["clauses"]):
                reason = f": {cell['reason']}" if cell["reason"] else ""
                text = claims.named(claim) if i == 0 else ""
                row = (text, cell["text"], claims.measured(cell), cell["threshold"], cell["verdict"] + reason)
                table.add_row(*map(escape, row))
    found = [claim["verdict"] for claim in decided]
    console.print()
    console.print(table)
    verdicts = ", ".join(f"{found.count(verdict)} {verdict}" for verdict in ("holds", "fails", "undecided"))
    console.print(
        f"claims: {len(found)}: {verdicts}; means over seeds [bootstrap 95 % interval]",
        highlight=False,
        markup=False,
    )
    return 2 if check and "fails" in found else 0

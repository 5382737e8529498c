"""The answer of a finished run, and the verdicts on its claims, on the terminal.

Everything is printed as `Text`, so that nothing in a run's names and paths is read as rich's markup.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sae.core.text import count, one_line, table
from sae.report import matched
from sae.report.data import brief, held_out, number
from sae.report.warnings import REMEDY
from sae.store.results import Results
from sae.study import claims
from sae.study.answers import Answer, AtMatched
from sae.study.replicates import over_seeds

MOST_ROWS = 40  # rows of a table that are printed
METRICS = ("eval/fvu", "eval/l0", "eval/dead_fraction")  # of a run that asks for none


def print_answer(results: Results, console: Console) -> None:
    """Print the answer of a run, or held-out numbers where it asks for none, and the folder of the results."""
    say = lambda line: console.print(Text(line), soft_wrap=True)
    everyone, answer = results.members, results.answer
    members = brief(everyone[everyone["status"] == "finished"])
    diverged = len(everyone) - len(members)
    if len(members) == 0:
        say(f"\nno answer: {'the member' if diverged == 1 else f'all {diverged} members'} diverged; {REMEDY}")
    else:
        if answer is not None:
            title, means, frame = answer.title, over_seeds(members), _asked(answer, members, say)
        elif len(members) == 1:
            numbers = {name: members[name].iloc[0] for name in members.columns if name.startswith("eval/")}
            title, means, frame = results.definition["name"], "", pd.DataFrame({"": numbers}, dtype=object)
        else:
            title, columns = results.definition["name"], [name for name in METRICS if name in members]
            means, frame = held_out(members, columns) if columns else ("no held-out numbers", pd.DataFrame())
        facts = [count(len(members), "member"), "held out", *([means] if means else [])]
        say(f"\n{one_line(title)} ({', '.join(facts)})")
        if len(frame):
            say(_text(frame.head(MOST_ROWS), console.width))
        if len(frame) > MOST_ROWS:
            say(f"... {len(frame) - MOST_ROWS} more rows in members.parquet")
        if isinstance(answer, AtMatched) and len(frame) and (frame.isna() | (frame == "–")).any(axis=None):
            low, high = members[answer.matched].min(), members[answer.matched].max()
            say(f"–: not reached; {answer.matched} spans {number(low)} to {number(high)} over all members")
        if diverged:
            say(f"{diverged} of {len(everyone)} members diverged and are left out; {REMEDY}")
    names = sorted(path.name for path in results.folder.iterdir() if not path.name.startswith("."))
    say(one_line(f"results: {results.folder} ({', '.join(names)})"))


def _asked(answer: Answer, members: pd.DataFrame, say: Callable[[str], object]) -> pd.DataFrame:
    """The table of an answer; an empty one, and a line, where a table of another program cannot answer.

    Arms that are rows leave room for intervals.
    """
    try:
        if isinstance(answer, AtMatched) and answer.many:
            complete = answer.complete(members)
            return matched.table(complete.compare(members), complete).rename_axis(columns=None)
        return answer.table(members)
    except Exception as error:
        say(f"no answer: {' '.join(str(error).split()) or type(error).__name__}")
        return pd.DataFrame()


def _text(frame: pd.DataFrame, width: int) -> str:
    """A data frame as a table for the terminal. Its index names the rows."""
    head = [name or "" for name in frame.index.names]
    head += ["\n".join(column) if isinstance(column, tuple) else str(column) for column in frame.columns]
    rows: list[list[str]] = []
    before: tuple = ()
    for index, values in zip(frame.index, frame.itertuples(index=False), strict=True):
        labels = index if isinstance(index, tuple) else (index,)
        repeated = len(labels) > 1 and labels[:1] == before[:1]  # a label that repeats the one above it is left out
        rows.append(["" if i == 0 and repeated else _label(value) for i, value in enumerate(labels)])
        rows[-1] += map(_cell, values)
        before = labels
    return table(head, rows, width, names=len(frame.index.names))


def _label(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float | np.floating) and value == value else number(value)


def _cell(value: Any) -> str:
    if isinstance(value, float | np.floating) and float(value).is_integer() and abs(value) < 1e15:
        return f"{value:,.0f}"  # a count
    return f"{value:,}" if isinstance(value, int | np.integer) and not isinstance(value, bool) else number(value)


def print_claims(runs: Mapping[str, list[dict[str, Any]]], console: Console, check: bool = False) -> int:
    """Print the claims of runs, {name of the run: its claims.json}, a row per cell.

    Returns the exit code: 2 where `check` is set and a claim fails, else 0.
    """
    decided = [claim for of_run in runs.values() for claim in of_run]
    if not decided:
        return 0
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, title_justify="left")
    for column in ("claim", "at", "measured", "", "verdict"):
        table.add_column(column, overflow="fold", no_wrap=column in ("measured", ""))
    for name, of_run in runs.items():
        if name:
            table.add_row(Text(one_line(name), "bold"))
        for claim in of_run:
            for i, cell in enumerate(claim["clauses"]):
                reason = f": {cell['reason']}" if cell["reason"] else ""
                text = claims.named(claim) if i == 0 else ""
                row = (text, cell["text"], claims.measured(cell), cell["threshold"], cell["verdict"] + reason)
                table.add_row(*(Text(one_line(word)) for word in row))
    found = [claim["verdict"] for claim in decided]
    console.print()
    console.print(table)
    verdicts = ", ".join(f"{found.count(verdict)} {verdict}" for verdict in ("holds", "fails", "undecided"))
    seeds = max((cell.get("seeds", 0) for claim in decided for cell in claim["clauses"]), default=0)
    means = "means over seeds [bootstrap 95 % interval]" if seeds > 1 else "one seed, so no interval"
    console.print(Text(f"claims: {len(found)}: {verdicts}; {means}"), soft_wrap=True)
    return 2 if check and "fails" in found else 0

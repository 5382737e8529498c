"""`sae watch`: a run's progress in any terminal that sees its folder. It only reads what the run writes."""

import time
from collections.abc import Sequence

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sae.core.files import DamagedError
from sae.core.text import one_line, ranges
from sae.core.types import UserError
from sae.report.data import ARMS
from sae.report.terminal import SHOWN, spread
from sae.report.warnings import DEAD
from sae.store.results import Results
from sae.store.storage import DEFINITION, HISTORY, STATE
from sae.study.figures import arm_names, axes

MARKS = "●▲■◆"  # one per arm
X, Y = "train/fvu", "train/l0"


def watch(results: Results, console: Console, *, once: bool = False, seconds: float = 1.0) -> None:
    """Show a run until it is finished, or once."""
    if once or not console.is_terminal:
        console.print(frame(results, *console.size))
        return
    with Live(frame(results, *console.size), console=console, auto_refresh=False, transient=False) as live:
        while not results.finished:
            time.sleep(seconds)
            if not (results.folder / DEFINITION).exists():
                raise UserError(f"{results.folder} is gone, or holds no run any more; there is nothing to watch")
            live.update(frame(results, *console.size), refresh=True)


def frame(results: Results, width: int = 100, height: int = 40) -> Group:
    """The state of a run now: its cohorts, its frontier so far, and what is wrong."""
    head = Text(one_line(f"{results.definition['name']}: {results.status}  "), style="bold")
    head.append(one_line(results.definition.get("question") or ""), style="not bold dim")
    try:
        latest = _latest(results)
    except DamagedError as error:
        return Group(head, _cohorts(results), Text(one_line(str(error)), style="red"))
    except UserError:  # nothing is written yet
        return Group(head, _cohorts(results), Text("no log point yet", style="dim"))
    shown = [*_spreads(results, latest), *_frontier(results, latest, width, height), *_troubles(latest)]
    return Group(head, _cohorts(results), Text(), *shown)


def scatter(points: Sequence[tuple[float, float, str, str]], width: int = 64, height: int = 16) -> list[Text]:
    """Points (x, y, mark, colour) on log axes, as lines of text; the ends of the axes are written out."""
    values = np.log10(np.array([point[:2] for point in points]))
    low, high = values.min(axis=0), values.max(axis=0)
    span = np.maximum(high - low, 1e-9)
    places = np.round((values - low) / span * (width - 1, height - 1)).astype(int)
    cells = {(height - 1 - y, x): point[2:] for (x, y), point in zip(places, points, strict=True)}
    labels = {0: f"{10 ** high[1]:.3g}", height - 1: f"{10 ** low[1]:.3g}"}
    lines = []
    for row in range(height):
        line = Text(f"{labels.get(row, ''):>8} │", style="dim")
        for column in range(width):
            mark, colour = cells.get((row, column), (" ", ""))
            line.append(mark, style=f"not dim {colour}")
        lines.append(line)
    ends = f"{10 ** low[0]:.3g}", f"{10 ** high[0]:.3g}"
    lines.append(Text(f"{'':>8} └{'─' * width}", style="dim"))
    lines.append(Text(f"{'':>10}{ends[0]}{ends[1]:>{width - len(ends[0])}}", style="dim"))
    return lines


def _latest(results: Results) -> pd.DataFrame:
    """A row per member: its last log point and its hyper-parameters."""
    last, hyper = results.history.groupby("member").last(), pd.DataFrame(results.definition["members"])
    return last.join(hyper[[name for name in hyper if name not in last]])


def _cohorts(results: Results) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("cohort", "members", "status", "", "step", "written"):
        table.add_column(name, justify="left" if name in ("status", "") else "right")
    for cohort in results.cohorts:
        state, members = cohort.state, results.definition["cohorts"][cohort.index]
        step = state.get("step", 0)
        n_steps = results.definition["members"][members[0]].get("n_steps") or state.get("n_steps")
        paths = [path for name in (HISTORY, STATE) if (path := cohort.path / name).exists()]
        ago = time.time() - max((path.stat().st_mtime for path in paths), default=time.time())
        table.add_row(
            str(cohort.index),
            ranges(members),
            Text(str(state.get("status", "waiting"))),
            ProgressBar(total=n_steps or max(step, 1), completed=step, width=24),
            f"{step:,}/{n_steps:,}" if n_steps else f"{step:,}",
            f"{ago:,.0f} s ago" if paths else "",
        )
    return table


def _spreads(results: Results, latest: pd.DataFrame) -> list[Text]:
    """A line per cohort that has log points: medians and ranges over its members' last ones."""
    lines = []
    shown = [name for name in SHOWN if f"train/{name}" in latest]
    for index, members in enumerate(results.definition["cohorts"] if shown else ()):
        logged = latest[latest.index.isin(members)]
        numbers = ", ".join(f"{name} {spread(logged[f'train/{name}'].to_numpy())}" for name in shown)
        lines += [Text(f"cohort {index}: {numbers}")] if len(logged) else []
    return lines


def _frontier(results: Results, latest: pd.DataFrame, width: int, height: int) -> list[Text]:
    if not {X, Y} <= set(latest):  # a run of another program, from W&B
        return []
    shown = latest[(latest[[X, Y]] > 0).all(axis=1)]
    if shown.empty:
        return []
    along, _ = axes(results.definition["members"], results.arms)
    arms = {name: (MARKS[i % len(MARKS)], ARMS[i % len(ARMS)]) for i, name in enumerate(along)}
    none = ("·", "white")  # a member in no arm
    points: list[tuple[float, float, str, str]] = []
    for row in shown.to_dict("records"):
        mark, colour = next((arms[name] for name in along if row.get(name) and row[name] == row[name]), none)
        points.append((row[X], row[Y], mark, colour))
    legend = Text("l0 (upwards) against fvu, last log points of training, log axes  ", style="dim")
    names = arm_names(arms, results.definition["members"])
    for name, (mark, colour) in arms.items():
        legend.append(f"{mark} {names[name]}  ", style=f"not dim {colour}")
    rows = min(16, height - 2 * len(results.cohorts) - 12)
    return [legend, *scatter(points, max(20, min(width - 14, 72)), max(6, rows))]


def _troubles(latest: pd.DataFrame) -> list[Text]:
    lines = []
    if "train/diverged" in latest and latest["train/diverged"].any():
        lines.append(
            Text(f"diverged: members {ranges(latest.index[latest['train/diverged'].astype(bool)])}", style="red")
        )
    dead = latest.index[latest["train/dead_fraction"] > DEAD] if "train/dead_fraction" in latest else ()
    if len(dead):
        lines.append(Text(f"over {DEAD:.0%} of the latents dead: members {ranges(dead)}", style="yellow"))
    return lines

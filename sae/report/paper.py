"""The same figures in matplotlib, for a paper: a PNG and an SVG of each, without titles, one column wide."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.ticker
import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas

from sae.core.files import write_atomically
from sae.report import data, dictionaries
from sae.report.data import WIDE, Line, label, lines, number
from sae.report.dictionaries import Dictionary
from sae.report.draw import swatch
from sae.study.answers import AtMatched
from sae.study.figures import Curves, Figure, FiringRates, Frontier, Heatmap, Parallel, Profile

STYLE = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "sae",  # the same figure is the same file
}
WIDTH = 5.5  # inches
MARKS = "osDv^P"  # one per group of an arm, as in draw


def save(canvas: Canvas, path: Path) -> None:
    """Write PATH.png and PATH.svg."""
    for suffix in ("png", "svg"):
        buffer = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            canvas.savefig(buffer, format=suffix, dpi=200, metadata={"Date": None} if suffix == "svg" else None)
        write_atomically(path.with_suffix(f".{suffix}"), lambda file, data=buffer: file.write(data.getbuffer()))


def paint(
    figure: Figure,
    members: pd.DataFrame,
    history: pd.DataFrame,
    rates: Mapping[Any, np.ndarray],
    chosen: Sequence[int],
) -> Canvas:
    """Any figure but Dictionaries, as `draw.draw`."""
    with matplotlib.rc_context(STYLE):
        match figure:
            case Frontier():
                shown = members[(members[[figure.x, figure.y]] > 0).all(axis=1)]
                return _lines(lines(shown, figure.along, figure.group), figure.x, figure.y, log="xy")
            case Profile():
                shown, log = data.along(members, figure)
                drawn = lines(shown, [figure.x], figure.group)
                return _lines(drawn, figure.x, figure.metric, log="x" if log else "")
            case Heatmap():
                return _heatmap(members, figure)
            case Parallel():
                return _parallel(members, figure)
            case AtMatched():
                return _matched(members, figure)
            case Curves():
                return _curves(history, members, figure, chosen)
            case FiringRates():
                return _firing_rates(rates, members, chosen)
    raise TypeError(f"no painting of {type(figure).__name__}")


def dictionary(shown: Dictionary, columns: int = 16) -> Canvas:
    """Decoder rows as images, the most active first; those that are never active are pale."""
    images = dictionaries.directions_as_tiles(shown).astype(float)
    images[shown.rates == 0] = 255 - 0.25 * (255 - images[shown.rates == 0])
    images = images.repeat(8, axis=1).repeat(8, axis=2)  # so that a gap can be thinner than a pixel of an image
    gaps = ((0, 0), (0, 4), (0, 4), *[(0, 0)] * (images.ndim - 3))
    picture = dictionaries.sheet(np.pad(images, gaps, constant_values=255).round().astype(np.uint8), columns, 255)
    height, width = picture.shape[:2]
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(WIDTH, WIDTH * height / width + 0.25), layout="constrained")
        axes = canvas.subplots()
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="none")
        axes.set_title(shown.name, size=8)
        axes.axis("off")
    return canvas


def _new(rows: int = 1, columns: int = 1, height: float = 3.6, **kwargs) -> tuple[Canvas, np.ndarray]:
    # without pyplot, and so without a display or a global state
    canvas = Canvas(figsize=(WIDTH, height), layout="constrained")
    return canvas, canvas.subplots(rows, columns, squeeze=False, **kwargs)


def _lines(drawn: Sequence[Line], x: str, y: str, log: str) -> Canvas:
    canvas, ((axes,),) = _new()
    for line in drawn:
        means = line.means(x, y)
        style = {"color": line.colour, "alpha": line.strength}
        mark = {} if line.mark is None else {"marker": MARKS[line.mark % len(MARKS)], "ms": 3.6, "mew": 0}
        axes.plot(means["x"], means["y"], lw=1.1, label=line.name, **mark, **style)
        axes.plot(line.members[x], line.members[y], "o", ms=1.4 if mark else 2, mew=0, **style)
        axes.fill_between(
            means["x"].astype(float),
            means["low"],
            means["high"],
            color=line.colour,
            alpha=0.16 * line.strength,
            lw=0,
        )
    axes.set(xlabel=label(x), ylabel=label(y))
    shown = pd.concat([line.members for line in drawn]) if drawn else pd.DataFrame()
    for name, axis, column in (("x", axes.xaxis, x), ("y", axes.yaxis, y)):
        if name in log and len(shown):
            axes.set(**{f"{name}scale": "log"})
            ends = axis.get_view_interval()
            ticks = [tick for tick in data.log_ticks(shown[column]) if ends[0] <= tick <= ends[1]]
            if len(ticks) > 1:  # else matplotlib has finer ones
                axis.set_ticks(ticks)
                axis.set_minor_formatter(matplotlib.ticker.NullFormatter())
            axis.set_major_formatter(lambda tick, _: f"{tick:g}")
    if len(drawn) > 1:
        axes.legend(ncols=1 + len(drawn) // 8, fontsize=7)
    return canvas


def _heatmap(members: pd.DataFrame, figure: Heatmap) -> Canvas:
    panels = list(data.grids(members, figure.metric, figure.along, figure.y, figure.group))
    values = np.concatenate([grid.to_numpy(float).ravel() for _, _, grid in panels])
    values = values[np.isfinite(values)]
    log = bool(values.size and values.min() > 0 and values.max() > WIDE * values.min())
    rows = sum(len(grid) for _, _, grid in panels)
    canvas, axes = _new(len(panels), height=0.28 * rows + 0.75 * len(panels))
    norm = matplotlib.colors.LogNorm if log else matplotlib.colors.Normalize
    scale = norm(*((values.min(), values.max()) if values.size else (0, 1)))
    for panel, (title, coefficient, grid) in zip(axes[:, 0], panels, strict=True):
        mesh = panel.imshow(grid.to_numpy(float), norm=scale, cmap="viridis", aspect="auto", origin="lower")
        panel.set(xlabel=label(coefficient), ylabel=label(figure.y), title=title)
        crowded = {"rotation": 60, "fontsize": 7} if grid.shape[1] > 8 else {}
        panel.set_xticks(range(grid.shape[1]), [number(v, 2) for v in grid.columns], **crowded)
        panel.set_yticks(range(grid.shape[0]), [number(v) for v in grid.index])
        panel.spines[:].set_visible(False)
        for (i, k), value in np.ndenumerate(grid.to_numpy(float)):
            colour = "white" if scale(value) < 0.6 else "black"
            panel.text(k, i, number(value, 2), ha="center", va="center", size=6, color=colour)
    canvas.colorbar(mesh, ax=list(axes[:, 0]), label=label(figure.metric)).outline.set_visible(False)
    return canvas


def _parallel(members: pd.DataFrame, figure: Parallel) -> Canvas:
    names = [*figure.hyper, *figure.metrics]
    columns = []
    for name in names:
        column = members[name]
        if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
            column = pd.Series(pd.factorize(column.astype(str))[0], index=members.index)
        values = column.to_numpy(float, na_value=np.nan)
        positive = values[values > 0]
        if positive.size and positive.max() > WIDE * positive.min():
            values = np.log10(np.maximum(values, positive.min() / 2))
        span = np.nanmax(values) - np.nanmin(values)
        columns.append((values - np.nanmin(values)) / (span or 1))
    rows = np.stack(columns, axis=1)
    canvas, ((axes,),) = _new(height=3)
    shade = matplotlib.colormaps["viridis"](columns[len(figure.hyper)])
    for row, colour in zip(rows, shade, strict=True):
        axes.plot(row, lw=0.6, alpha=0.7, color=colour)
    axes.set_xticks(range(len(names)), [label(name) for name in names], rotation=20, ha="right")
    axes.set_yticks([0, 1], ["least", "largest"])
    for place in range(len(names)):
        axes.axvline(place, color="0.6", lw=0.6, zorder=0)
    return canvas


def _matched(members: pd.DataFrame, figure: AtMatched) -> Canvas:
    table = figure.compare(members)
    names = list(dict.fromkeys(table["metric"]))
    one = table[(table["metric"] == names[0]) & (table["arm"] == next(iter(figure.arms)))]
    canvas, axes = _new(1, len(names), height=0.8 + 0.2 * len(one), sharey=True)
    for panel, metric in zip(axes[0], names, strict=True):
        for i, arm in enumerate(figure.arms):
            rows = table[(table["metric"] == metric) & (table["arm"] == arm)]
            place = np.arange(len(rows)) + 0.16 * (i - (len(figure.arms) - 1) / 2)
            errors = np.abs(rows[["low", "high"]].to_numpy() - rows[["mean"]].to_numpy()).T
            colour = data.ARMS[i % len(data.ARMS)]
            panel.errorbar(
                rows["mean"], place, xerr=np.nan_to_num(errors), fmt="o", ms=3, lw=1, color=colour, label=arm
            )
        positive = table[table["metric"] == metric]["mean"].dropna()
        if len(positive) and positive.min() > 0 and positive.max() > WIDE * positive.min():
            panel.set_xscale("log")
        panel.set(xlabel=metric)
    rows = [", ".join(f"{label(n)} {number(r[n])}" for n in figure.groups) for r in one.to_dict("records")]
    rows = [f"{row}, {label(figure.matched)} {value:g}" for row, value in zip(rows, one["value"], strict=True)]
    axes[0, 0].set_yticks(range(len(rows)), rows)
    axes[0, 0].invert_yaxis()
    axes[0, -1].legend()
    return canvas


def _curves(history: pd.DataFrame, members: pd.DataFrame, figure: Curves, chosen: Sequence[int]) -> Canvas:
    names = [name for name in figure.metrics if name in history]
    canvas, axes = _new(len(names), height=1.6 * len(names), sharex=True)
    for i, row in enumerate(chosen):
        of_member = history[history["member"] == members.at[row, "member"]]
        for panel, name in zip(axes[:, 0], names, strict=True):
            panel.plot(
                of_member["step"], of_member[name], lw=1, color=swatch(i), label=f"member {members.at[row, 'member']}"
            )
    for panel, name in zip(axes[:, 0], names, strict=True):
        panel.set(ylabel=label(name), ylim=(0, None))
    axes[-1, 0].set(xlabel="step")
    axes[0, 0].legend(fontsize=7, ncols=2)
    return canvas


def _firing_rates(rates: Mapping[Any, np.ndarray], members: pd.DataFrame, chosen: Sequence[int]) -> Canvas:
    edges = data.firing_edges(rates.values())
    canvas, ((axes,),) = _new(height=2.6)
    for i, row in enumerate(chosen):
        if (member := members.at[row, "member"]) in rates:
            shares = data.firing_histogram(rates[member], edges)
            axes.stairs(shares, [edges[0] - 0.5, *edges], color=swatch(i), lw=1.2, label=f"member {member}")
    decades = np.arange(np.ceil(edges[0]), 1)
    axes.set_xticks([edges[0] - 0.25, *decades], ["dead", *(f"{10.0**d:g}" for d in decades)])
    axes.set(xlabel="firing rate", ylabel="share of latents")
    axes.legend(fontsize=7, ncols=2)
    return canvas

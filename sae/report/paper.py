"""The same figures in matplotlib, for a paper: a PNG and an SVG of each, without a title, one column wide.

Matplotlib reads mathematics between two dollars, so every text that comes from a run passes through `_text`.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.ticker
import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas

from sae.core.files import write_atomically
from sae.report import data, images
from sae.report.agreements import Agreements
from sae.report.data import Line, lines, number, swatch, wide
from sae.report.dictionaries import Dictionary
from sae.study.answers import AtMatched
from sae.study.figures import Curves, Figure, FiringRates, Frontier, Heatmap, Parallel, Profile, complete

STYLE: Any = {  # matplotlib's stubs want a mapping of its own literal names
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "sae",  # the same figure is the same file
}
WIDTH = 5.5  # inches
MARKS = "osDv^P"  # one per group of an arm, as in draw.py
COLUMNS, SCALE, GAP = 16, 8, 4  # tiles in a row; screen pixels per pixel of a tile; pixels between tiles
PALE = 223  # the grey of 0 in the tile of a dead latent, near the white of the paper


def save(canvas: Canvas, path: Path) -> None:
    """Write PATH.png and PATH.svg."""
    for suffix in ("png", "svg"):
        buffer = io.BytesIO()
        with matplotlib.rc_context(STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # a name in another script: boxes in the PNG, text in the SVG
            canvas.savefig(buffer, format=suffix, dpi=200, metadata={"Date": None} if suffix == "svg" else None)
        write_atomically(path.with_suffix(f".{suffix}"), lambda file, data=buffer: file.write(data.getbuffer()))


def paint(
    figure: Figure,
    members: pd.DataFrame,
    history: pd.DataFrame,
    rates: Mapping[Any, np.ndarray],
    chosen: Sequence[int],
) -> Canvas:
    """Paint any figure but Dictionaries; arguments as in `draw.draw`."""
    members = data.brief(members)
    figure = complete(figure, members)
    with matplotlib.rc_context(STYLE):
        match figure:
            case Frontier():
                shown = members[(members[[figure.x, figure.y]] > 0).all(axis=1)]
                points = data.others(members, figure.x, figure.y)
                return _lines(lines(shown, figure.along, figure.group), figure.x, figure.y, log="xy", others=points)
            case Profile():
                shown, log = data.along(members, figure)
                drawn = lines(shown, [figure.x], figure.group)
                levels = data.others_along(members, figure.metric)
                return _lines(drawn, figure.x, figure.metric, log="x" if log else "", levels=levels)
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


def dictionary(shown: Dictionary, image_shape: Sequence[int]) -> Canvas:
    """Decoder rows as images, the most active latent first; latents that are never active are pale."""
    tiles = images.directions(shown.directions, image_shape, shown.rates == 0, PALE)
    picture = images.sheet(tiles, COLUMNS, scale=SCALE, gap=GAP, empty=255)
    height, width = picture.shape[:2]
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(WIDTH, WIDTH * height / width + 0.25), layout="constrained")
        axes = canvas.subplots()
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="none")
        axes.set_title(_wrapped(shown.name, 96), size=8, loc="left")
        axes.axis("off")
    return canvas


def _new(rows: int = 1, columns: int = 1, height: float = 3.6, **kwargs: Any) -> tuple[Canvas, np.ndarray]:
    """A canvas and its axes [rows, columns]; without pyplot, so it needs no display and has no global state."""
    canvas = Canvas(figsize=(WIDTH, height), layout="constrained")
    return canvas, canvas.subplots(rows, columns, squeeze=False, **kwargs)


def _lines(
    drawn: Sequence[Line],
    x: str,
    y: str,
    log: str,
    others: Mapping[str, tuple[float, float]] | None = None,
    levels: Mapping[str, float] | None = None,
) -> Canvas:
    """A line per arm and group; `others` are points and `levels` dashed lines across, by name."""
    canvas, ((axes,),) = _new()
    for i, (name, value) in enumerate((levels or {}).items()):
        axes.axhline(value, ls="--", lw=1.1, color=data.swatch(len(data.ARMS) - 1 - i), label=name)
    for i, (name, point) in enumerate((others or {}).items()):
        colour = data.swatch(len(data.ARMS) - 1 - i)
        axes.plot(*([value] for value in point), "D", ms=5, mfc="none", mec=colour, label=name)
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
    axes.set(xlabel=_label(x), ylabel=_label(y))
    shown = pd.concat([line.members for line in drawn]) if drawn else pd.DataFrame()
    for name, axis, column in (("x", axes.xaxis, x), ("y", axes.yaxis, y)):
        if name in log and len(shown):
            axes.set(**{f"{name}scale": "log"})
            ends = axis.get_view_interval()
            ticks = [tick for tick in data.log_ticks(shown[column]) if ends[0] <= tick <= ends[1]]
            axis.set_ticks(ticks)
            axis.set_minor_formatter(matplotlib.ticker.NullFormatter())
            axis.set_major_formatter(lambda tick, _: f"{tick:g}")
    if len(drawn) > 1 or others or levels:
        _legend(canvas, axes)
    return canvas


def _legend(canvas: Canvas, axes: Any) -> None:
    """A legend above the axes, which makes the canvas higher, so that it covers no data."""
    handles, labels = axes.get_legend_handles_labels()
    labels = [_wrapped(text, 84) for text in labels]
    widest = max((len(line) for text in labels for line in text.split("\n")), default=0)
    columns = max(1, min(len(labels), int(WIDTH / (0.06 * widest + 0.45))))
    lines = -(-len(labels) // columns) * max((text.count("\n") + 1 for text in labels), default=0)
    canvas.set_figheight(canvas.get_figheight() + 0.15 * lines + 0.1)
    canvas.legend(handles, labels, loc="outside upper left", ncols=columns, fontsize=7)


def _heatmap(members: pd.DataFrame, figure: Heatmap) -> Canvas:
    panels = list(data.grids(members, figure.metric, figure.along, figure.y, figure.group))
    values = np.concatenate([grid.to_numpy(float).ravel() for _, _, grid in panels])
    values = values[np.isfinite(values)]
    rows = sum(len(grid) for _, _, grid in panels)
    titles = [_wrapped(title, 60) for title, _, _ in panels]
    lines_of_titles = sum(title.count("\n") + 1 for title in titles)
    canvas, axes = _new(len(panels), height=0.28 * rows + 0.6 * len(panels) + 0.15 * lines_of_titles)
    norm = matplotlib.colors.LogNorm if wide(values) else matplotlib.colors.Normalize
    scale = norm(*((values.min(), values.max()) if values.size else (0, 1)))
    for panel, title, (_, coefficient, grid) in zip(axes[:, 0], titles, panels, strict=True):
        mesh = panel.imshow(grid.to_numpy(float), norm=scale, cmap="viridis", aspect="auto", origin="lower")
        panel.set(xlabel=_label(coefficient), ylabel=_label(figure.y))
        panel.set_title(title, size=8, loc="left")
        ticks = [_text(text) for text in data.numbers(grid.columns)]
        crowded = {"rotation": 60, "fontsize": 7} if sum(map(len, ticks)) > 40 else {}
        panel.set_xticks(range(grid.shape[1]), ticks, **crowded)
        panel.set_yticks(range(grid.shape[0]), [_text(text) for text in data.numbers(grid.index)])
        panel.spines[:].set_visible(False)
        for (i, k), value in np.ndenumerate(grid.to_numpy(float)):
            colour = "white" if scale(value) < 0.6 else "black"
            panel.text(k, i, number(value, 2), ha="center", va="center", size=6, color=colour)
    canvas.colorbar(mesh, ax=list(axes[:, 0]), label=_label(figure.metric)).outline.set_visible(False)
    return canvas


def agreement(found: Agreements) -> Canvas:
    """The MCC of every two groups as a colour from 0 to 1, with the floor by chance below each number."""
    n, z = len(found.names), found.mcc.to_numpy(float)
    with matplotlib.rc_context(STYLE):
        canvas, ((axes,),) = _new(height=1.2 + 0.34 * n)
        mesh = axes.imshow(z, cmap="viridis", aspect="auto", vmin=0, vmax=1)
        names = [_text(name) for name in found.names]
        axes.set_xticks(range(n), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=7)
        axes.set_yticks(range(n), names, fontsize=7)
        axes.spines[:].set_visible(False)
        for (i, k), value in np.ndenumerate(z):
            words = f"{number(value, 2)}\n({number(found.chance.iat[i, k], 2)})"
            colour = "white" if z[i, k] < 0.6 else "black"
            axes.text(k, i, words, ha="center", va="center", size=6 if n <= 10 else 4, color=colour)
        canvas.colorbar(mesh, ax=axes, label="MCC").outline.set_visible(False)
    return canvas


def _parallel(members: pd.DataFrame, figure: Parallel) -> Canvas:
    names = [*figure.hyper, *figure.metrics]
    columns = []
    for name in names:
        column = members[name]
        if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
            column = pd.Series(pd.factorize(column.map(str))[0], index=members.index)
        values = column.to_numpy(float, na_value=np.nan)
        positive = values[values > 0]
        if wide(positive):
            values = np.log10(np.maximum(values, positive.min() / 2))
        span = np.nanmax(values) - np.nanmin(values)
        columns.append((values - np.nanmin(values)) / (span or 1))
    rows = np.stack(columns, axis=1)
    canvas, ((axes,),) = _new(height=3)
    shade = matplotlib.colormaps["viridis"](columns[len(figure.hyper)])
    for row, colour in zip(rows, shade, strict=True):
        axes.plot(row, lw=0.6, alpha=0.7, color=colour)
    axes.set_xticks(range(len(names)), [_label(name) for name in names], rotation=20, ha="right")
    axes.set_yticks([0, 1], ["least", "largest"])
    for place in range(len(names)):
        axes.axvline(place, color="0.6", lw=0.6, zorder=0)
    return canvas


def _matched(members: pd.DataFrame, figure: AtMatched) -> Canvas:
    table = figure.compare(members)
    names = list(dict.fromkeys(table["metric"]))
    one = table[(table["metric"] == names[0]) & (table["arm"] == next(iter(figure.arms)))]
    ticks = [_wrapped(text, 34) for text in data.rows_of(one, figure)]
    lines_of_ticks = sum(tick.count("\n") + 1 for tick in ticks)
    canvas, axes = _new(1, len(names), height=0.8 + 0.08 * len(ticks) + 0.13 * lines_of_ticks, sharey=True)
    for panel, metric in zip(axes[0], names, strict=True):
        for i, arm in enumerate(figure.arms):
            rows = table[(table["metric"] == metric) & (table["arm"] == arm)]
            place = data.places(len(rows), i, len(figure.arms))
            errors = np.abs(rows[["low", "high"]].to_numpy() - rows[["mean"]].to_numpy()).T
            style = {"fmt": "o", "ms": 3, "lw": 1, "color": data.ARMS[i % len(data.ARMS)], "label": arm}
            panel.errorbar(rows["mean"], place, xerr=np.nan_to_num(errors), **style)
        if wide(table[table["metric"] == metric]["mean"]):
            panel.set_xscale("log")
        panel.set(xlabel=_text(metric))
    axes[0, 0].set_yticks(range(len(ticks)), ticks)
    axes[0, 0].invert_yaxis()
    _legend(canvas, axes[0, 0])
    return canvas


def _curves(history: pd.DataFrame, members: pd.DataFrame, figure: Curves, chosen: Sequence[int]) -> Canvas:
    names = [name for name in figure.metrics if name in history]
    canvas, axes = _new(len(names), height=1.6 * len(names), sharex=True)
    for i, row in enumerate(chosen):
        member = members.at[row, "member"]
        points = history[history["member"] == member]
        for panel, name in zip(axes[:, 0], names, strict=True):
            panel.plot(points["step"], points[name], lw=1, color=swatch(i), label=f"member {member}")
    for panel, name in zip(axes[:, 0], names, strict=True):
        panel.set(ylabel=_label(name), ylim=(0, None))
    axes[-1, 0].set(xlabel="step")
    _legend(canvas, axes[0, 0])
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
    _legend(canvas, axes)
    return canvas


def _label(name: str) -> str:
    """A column's name, as `data.label`, for matplotlib."""
    return _text(data.label(name))


def _wrapped(text: str, width: int) -> str:
    return "\n".join(map(_text, data.in_lines(text, width)))


def _text(text: str) -> str:
    """A text as matplotlib shows it, without mathematics."""
    return text.replace("$", r"\$")

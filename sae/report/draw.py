"""Figures in plotly, for the page and for notebooks: each function takes tables and a definition, and gives a figure.

The page reads a figure's title and caption from `layout.meta`. A point's `customdata` is its member's row in the
members table, by which the page goes from a point to its member. Plotly reads tags in the texts of a figure, so every
text that comes from a run passes through `_text`.
"""

import html
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sae.core.text import abbreviated
from sae.core.types import UserError
from sae.report import captions, data
from sae.report.agreements import Agreements
from sae.report.data import ARMS, Line, label, lines, number, rgba, swatch, wide
from sae.study.answers import AtMatched
from sae.study.figures import (
    AgreementMatrix,
    Curves,
    Figure,
    FiringRates,
    Frontier,
    Heatmap,
    Parallel,
    Profile,
    complete,
)

COLOURS = "Viridis"
LINE, TICK = 44, 14  # characters of a line of a title or a tick; of a word beside an axis of parallel coordinates
MARKS = ("circle", "square", "diamond", "triangle-down", "triangle-up", "cross")  # one per group of an arm


def draw(
    figure: Figure,
    members: pd.DataFrame,
    history: pd.DataFrame,
    rates: Mapping[Any, np.ndarray],
    chosen: Sequence[int] = (),
) -> go.Figure:
    """Draw any figure but Dictionaries and AgreementMatrix, which need weights.

    rates: member -> firing rates [d_sae]. chosen: rows of the members shown by the figures that show a few.
    """
    members = data.brief(members)
    figure = complete(figure, members)
    match figure:
        case Frontier():
            return frontier(members, figure)
        case Profile():
            return profile(members, figure)
        case Heatmap():
            return heatmap(members, figure)
        case Parallel():
            return parallel(members, figure)
        case AtMatched():
            return matched(members, figure)
        case Curves():
            return curves(history, members, figure, chosen)
        case FiringRates():
            if not rates:
                raise UserError("the run keeps no firing rates; one pulled from W&B has no weights")
            return firing_rates(rates, members, figure, chosen)
    raise TypeError(f"no drawing of {type(figure).__name__}")


def is_empty(drawn: go.Figure) -> bool:
    """Whether a figure shows no number at all."""
    shown: list[Any] = []
    for trace in drawn.data:
        several = trace.type == "parcoords"
        shown += [axis.values for axis in trace.dimensions] if several else [trace.z if "z" in trace else trace.y]
    return not any(np.isfinite(np.asarray(values, float)).any() for values in shown if values is not None)


def frontier(members: pd.DataFrame, figure: Frontier) -> go.Figure:
    """A line of means per arm and group with its band over seeds, and a point per member; both axes are logarithmic."""
    shown = members[(members[[figure.x, figure.y]] > 0).all(axis=1)]
    drawn = _lines(lines(shown, figure.along, figure.group), figure.x, figure.y)
    others = data.others(members, figure.x, figure.y)
    for i, (name, (x, y)) in enumerate(others.items()):
        drawn.add_scatter(
            x=[x],
            y=[y],
            mode="markers",
            marker={"symbol": "diamond-open", "size": 10, "color": swatch(len(ARMS) - 1 - i), "line": {"width": 2}},
            name=_wrapped(name),
            hovertemplate=f"{_text(name)}<extra></extra>",
        )
    values = lambda column, i: np.array([*shown[column].astype(float), *(point[i] for point in others.values())])
    return _finish(
        drawn,
        _meta(figure, members),
        xaxis=_log(figure.x, values(figure.x, 0)),
        yaxis=_log(figure.y, values(figure.y, 1)),
        height=520,
    )


def profile(members: pd.DataFrame, figure: Profile) -> go.Figure:
    """A line of means per group with its band over seeds, and a point per member."""
    shown, log = data.along(members, figure)
    drawn = _lines(lines(shown, [figure.x], figure.group), figure.x, figure.metric)
    for i, (name, value) in enumerate(data.others_along(members, figure.metric).items()):
        drawn.add_scatter(
            x=[shown[figure.x].min(), shown[figure.x].max()],
            y=[value, value],
            mode="lines",
            line={"dash": "dash", "color": swatch(len(ARMS) - 1 - i)},
            name=_wrapped(name),
            hovertemplate=f"{_text(name)}<br>%{{y}}<extra></extra>",
        )
    xaxis = _log(figure.x, shown[figure.x].astype(float)) if log else {"title": _text(label(figure.x))}
    yaxis = {"title": _text(label(figure.metric))}
    return _finish(drawn, _meta(figure, members), xaxis=xaxis, yaxis=yaxis, height=460)


def heatmap(members: pd.DataFrame, figure: Heatmap) -> go.Figure:
    """A panel per arm and group, all on one colour scale."""
    panels = list(data.grids(members, figure.metric, figure.along, figure.y, figure.group))
    values = np.concatenate([grid.to_numpy(float).ravel() for _, _, grid in panels])
    values = values[np.isfinite(values)]
    log = wide(values)
    scale = np.log10 if log else np.asarray
    written = max(grid.shape[1] for _, _, grid in panels) <= 14  # more columns leave no room for numbers in the cells
    deep = max(len(data.in_lines(title, LINE)) for title, _, _ in panels)
    rows, gap = [34 * len(grid) for _, _, grid in panels], 60 + 17 * deep  # pixels
    area = sum(rows) + gap * (len(panels) - 1)
    drawn = make_subplots(
        rows=len(panels),
        cols=1,
        subplot_titles=[_wrapped(title) for title, _, _ in panels],
        row_heights=rows,
        vertical_spacing=gap / area if len(panels) > 1 else 0,
    )
    drawn.update_annotations(font_size=12)
    for row, (_, coefficient, grid) in enumerate(panels, 1):
        across, upwards, z = _text(label(coefficient)), _text(label(figure.y)), grid.to_numpy(float)
        text = [[number(value, 2) for value in line] for line in z]
        drawn.add_heatmap(
            z=scale(z),
            x=[_text(text) for text in data.numbers(grid.columns)],
            y=[_text(text) for text in data.numbers(grid.index)],
            text=text,
            texttemplate="%{text}" if written else None,
            hovertemplate=f"{upwards} %{{y}}<br>{across} %{{x}}<br>%{{text}}<extra></extra>",
            coloraxis="coloraxis",
            xgap=2,
            ygap=2,
            row=row,
            col=1,
        )
        drawn.update_xaxes(title=across, type="category", showgrid=False, row=row, col=1)
        drawn.update_yaxes(title=upwards, type="category", showgrid=False, row=row, col=1)
    name = _text(f"log10 {label(figure.metric)}" if log else label(figure.metric))
    bar = {"thickness": 10, "outlinewidth": 0, "title": name}
    low, high = scale(np.array([values.min(), values.max()])) if values.size else (0, 1)
    ends = {"cmin": low, "cmax": high if high > low else low + 1}
    drawn.update_layout(coloraxis={"colorscale": COLOURS, "showscale": not written, "colorbar": bar, **ends})
    top = 14 + 17 * deep
    return _finish(drawn, _meta(figure, members), height=area + 50 + top, margin={"t": top, "l": 60, "r": 20, "b": 50})


def agreement(found: Agreements, figure: AgreementMatrix, members: pd.DataFrame) -> go.Figure:
    """The MCC of every two groups as a colour from 0 to 1, and as numbers with the floor by chance where they fit."""
    names, written = [_text(name) for name in found.names], len(found.names) <= 16
    pairs = zip(found.mcc.to_numpy(float), found.chance.to_numpy(float), strict=True)
    text = [[f"{number(a, 2)}<br>({number(b, 2)})" for a, b in zip(*rows, strict=True)] for rows in pairs]
    cells = go.Heatmap(
        z=found.mcc.to_numpy(float),
        x=names,
        y=names,
        text=text,
        texttemplate="%{text}" if written else None,
        hovertemplate="%{y}<br>%{x}<br>%{text}<extra></extra>",
        coloraxis="coloraxis",
        xgap=2,
        ygap=2,
    )
    drawn = go.Figure(cells)
    drawn.update_xaxes(type="category", showgrid=False)
    drawn.update_yaxes(type="category", showgrid=False, autorange="reversed")
    bar = {"thickness": 10, "outlinewidth": 0, "title": "MCC"}
    drawn.update_layout(coloraxis={"colorscale": COLOURS, "colorbar": bar, "cmin": 0, "cmax": 1})
    room = 7 * max(map(len, found.names))  # pixels for the longest name
    slanted = len(names) * room > 560  # plotly turns names that do not fit side by side
    margin = {"t": 14, "l": min(260, 20 + room), "r": 20, "b": min(200, 30 + room) if slanted else 40}
    return _finish(drawn, _meta(figure, members), height=38 * len(names) + margin["b"] + 14, margin=margin)


def parallel(members: pd.DataFrame, figure: Parallel) -> go.Figure:
    """A line per member, coloured by the first metric; a drag along an axis keeps some of the members."""
    names = [name for name in (*figure.hyper, *figure.metrics) if members[name].nunique() > 1]
    dimensions = [_dimension(members[name], label(name), name in figure.hyper) for name in names]
    first = max((len(text) for text in dimensions[0]["ticktext"]), default=0) if dimensions else 0
    colour = _dimension(members[figure.metrics[0]], "", False)
    line = {"color": colour["values"], "colorscale": COLOURS, "showscale": False}
    drawn = go.Figure(go.Parcoords(dimensions=dimensions, line=line, labelside="top"))
    return _finish(
        drawn, _meta(figure, members), height=420, margin={"t": 60, "l": max(50, 8 * first), "r": 50, "b": 24}
    )


def matched(members: pd.DataFrame, figure: AtMatched) -> go.Figure:
    """A panel per metric: a dot, with its interval over seeds, for each group, matched value and arm."""
    table = figure.compare(members)
    names = list(dict.fromkeys(table["metric"]))
    drawn = make_subplots(rows=1, cols=len(names), shared_yaxes=True, horizontal_spacing=0.04)
    for column, metric in enumerate(names, 1):
        panel = table[table["metric"] == metric]
        for i, arm in enumerate(figure.arms):
            rows = panel[panel["arm"] == arm].reset_index(drop=True)
            place = data.places(len(rows), i, len(figure.arms))
            reached = rows["mean"].notna()
            rows, place = rows[reached], place[reached]
            drawn.add_scatter(
                x=rows["mean"].to_numpy(),
                y=place,
                error_x={
                    "array": (rows["high"] - rows["mean"]).to_numpy(),
                    "arrayminus": (rows["mean"] - rows["low"]).to_numpy(),
                    "thickness": 1.5,
                    "width": 0,
                },
                mode="markers",
                marker={"size": 9, "color": data.ARMS[i % len(data.ARMS)]},
                name=_text(arm),
                legendgroup=arm,
                showlegend=column == 1,
                text=[_text(_reached(row)) for row in rows.to_dict("records")],
                hovertemplate="%{text}<extra></extra>",
                row=1,
                col=column,
            )
        means = panel["mean"].dropna()
        axis = _log(metric, means) if wide(means) else {"title": _text(metric), "rangemode": "tozero"}
        drawn.update_xaxes(**axis, row=1, col=column)
    one = table[(table["metric"] == names[0]) & (table["arm"] == next(iter(figure.arms)))]
    ticks = data.rows_of(one, figure)
    deep = max(len(data.in_lines(tick, LINE)) for tick in ticks)
    drawn.update_yaxes(tickvals=np.arange(len(ticks)), range=[len(ticks) - 0.4, -0.6], zeroline=False)
    drawn.update_yaxes(ticktext=[_wrapped(tick) for tick in ticks], row=1, col=1)
    return _finish(drawn, _meta(figure, members), height=120 + (18 + 16 * deep) * len(ticks))


def curves(history: pd.DataFrame, members: pd.DataFrame, figure: Curves, chosen: Sequence[int] = ()) -> go.Figure:
    """A panel per metric, a line per chosen member."""
    names = [name for name in figure.metrics if name in history]
    if not names:
        raise UserError(f"the history has none of {', '.join(figure.metrics)}")
    drawn = make_subplots(rows=len(names), cols=1, shared_xaxes=True, vertical_spacing=0.06)
    for i, row in enumerate(chosen or members.index[:6]):
        member = members.at[row, "member"]
        points = history[history["member"] == member]
        for panel, name in enumerate(names, 1):
            drawn.add_scatter(
                x=points["step"].to_numpy(),
                y=points[name].to_numpy(np.float32),
                mode="lines",
                line={"width": 1.8, "color": swatch(i)},
                name=_text(f"member {member}"),
                legendgroup=str(member),
                showlegend=panel == 1,
                hovertemplate="%{y:.3g}",
                row=panel,
                col=1,
            )
    for panel, name in enumerate(names, 1):
        values = history[name].to_numpy(float)
        values = values[np.isfinite(values) & (values > 0)]
        log = values.size and values.max() > data.WIDE * np.quantile(values, 0.01)
        axis = _log(name, values) if log else {"title": _text(label(name)), "rangemode": "tozero"}
        drawn.update_yaxes(row=panel, col=1, **axis)
    drawn.update_xaxes(title="step", row=len(names), col=1)
    return _finish(drawn, _meta(figure, members), height=70 + 210 * len(names), hovermode="x unified")


def firing_rates(
    rates: Mapping[Any, np.ndarray], members: pd.DataFrame, figure: FiringRates, chosen: Sequence[int] = ()
) -> go.Figure:
    """A histogram per chosen member, drawn as steps; dead latents stand at the left edge."""
    edges = data.firing_edges(rates.values())
    at = np.array([edges[0] - 0.5, *(edges[:-1] + edges[1:]) / 2])
    drawn = go.Figure()
    for i, row in enumerate(chosen or members.index[:6]):
        member = members.at[row, "member"]
        if member not in rates:
            continue
        drawn.add_scatter(
            x=at,
            y=data.firing_histogram(rates[member], edges),
            mode="lines",
            line={"shape": "hvh", "width": 1.8, "color": swatch(i)},
            name=_text(f"member {member}"),
            hovertemplate="%{y:.1%}",
        )
    decades = np.arange(np.ceil(edges[0]), 1)
    xaxis = {"title": "firing rate", "tickvals": [at[0], *decades], "zeroline": False, "range": [edges[0] - 0.8, 0.15]}
    xaxis |= {"ticktext": ["dead", *(f"{10.0**d:g}" for d in decades)]}
    yaxis = {"title": "share of latents", "tickformat": ".0%", "rangemode": "tozero"}
    return _finish(drawn, _meta(figure, members), xaxis=xaxis, yaxis=yaxis, height=360, hovermode="x unified")


def recovery(found: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> go.Figure:
    """Histograms of the best cosine with each true feature, drawn as steps.

    found: name -> (the cosines of a dictionary [n_features], those of a random dictionary [n_features]).
    """
    edges = np.linspace(0, 1, 26)
    drawn = go.Figure()
    for i, (name, (cosines, chance)) in enumerate(found.items()):
        for values, dash in ((cosines, "solid"), (chance, "dot")):
            shares = np.histogram(np.clip(values, 0, 1), bins=edges)[0] / len(values)
            drawn.add_scatter(
                x=(edges[:-1] + edges[1:]) / 2,
                y=shares,
                mode="lines",
                line={"shape": "hvh", "width": 1.8 if dash == "solid" else 1.2, "dash": dash, "color": swatch(i)},
                name=_text(name),
                legendgroup=name,
                showlegend=dash == "solid",
                hovertemplate="%{y:.1%}",
            )
    meta = {
        "title": "How well the true features are found",
        "caption": "The share of true features by their best cosine with a decoder row. Dotted lines show a random "
        "dictionary of the same shape: what chance gives.",
    }
    yaxis = {"title": "share of features", "tickformat": ".0%", "rangemode": "tozero"}
    xaxis = {"title": "best cosine with a decoder row", "range": [0, 1.02]}
    return _finish(drawn, meta, xaxis=xaxis, yaxis=yaxis, height=380, hovermode="x unified")


def _lines(drawn_lines: Sequence[Line], x: str, y: str) -> go.Figure:
    drawn = go.Figure()
    for line in drawn_lines:
        means, solid = line.means(x, y), rgba(line.colour, line.strength)
        mark = {} if line.mark is None else {"symbol": MARKS[line.mark % len(MARKS)], "size": 7, "color": solid}
        common = {"legendgroup": line.name, "name": _wrapped(line.name)}
        band = means.dropna()
        if len(band) > 1:
            drawn.add_scatter(
                x=np.concatenate([band["x"], band["x"][::-1]]),
                y=np.concatenate([band["high"], band["low"][::-1]]),
                fill="toself",
                fillcolor=rgba(line.colour, 0.16 * line.strength),
                line={"width": 0},
                mode="lines",
                hoverinfo="skip",
                showlegend=False,
                **common,
            )
        drawn.add_scatter(
            x=means["x"].to_numpy(),
            y=means["y"].to_numpy(),
            mode="lines+markers" if mark else "lines",
            line={"color": solid, "width": 2},
            marker=mark,
            hoverinfo="skip",
            **common,
        )
        drawn.add_scatter(
            x=line.members[x].to_numpy(float),
            y=line.members[y].to_numpy(float),
            mode="markers",
            marker={"color": solid, "size": 4 if mark else 6},
            customdata=line.members.index.to_numpy(np.int32),
            text=_hover(line.members),
            hovertemplate="%{text}<extra></extra>",
            showlegend=False,
            **common,
        )
    return drawn


def _hover(members: pd.DataFrame) -> list[str]:
    """A few lines for each member: its number, what sets it apart, and its main numbers."""
    names = [*data.hyper(members)[:8], *(f"eval/{name}" for name in ("fvu", "l0", "dead_fraction", "mmcs"))]
    columns = [[_text(f"{label(n)} {number(value)}") for value in members[n]] for n in names if n in members]
    heads = [f"<b>{_text(f'member {member}')}</b>" for member in members["member"]]
    return ["<br>".join(words) for words in zip(heads, *columns, strict=True)]


def _reached(row: Mapping[Any, Any]) -> str:
    """What an arm reaches at a matched value: a row of `AtMatched.compare` in words."""
    mean = f"{number(row['mean'])}{data.interval(row['low'], row['high'])}"
    return f"{row['arm']}: {row['metric']} {mean}, {row['seeds']} of {row['of_seeds']} seeds"


def _dimension(column: pd.Series, name: str, each: bool) -> dict[str, Any]:
    """An axis of parallel coordinates: words, or numbers, on a log scale where they span much. `each`: a tick each."""
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        named = column.map(number)  # a member that lacks the field has "–"
        words = list(dict.fromkeys(named))
        values = named.map(words.index).to_numpy(float)
        short = abbreviated(words, TICK)
        ticktext = [_text(short[word]) for word in words]
        return {"label": _text(name), "values": values, "tickvals": list(range(len(words))), "ticktext": ticktext}
    values = column.to_numpy(float, na_value=np.nan)
    unique = np.unique(values[np.isfinite(values)])
    positive = unique[unique > 0]
    place: Callable[[np.ndarray], np.ndarray] = np.asarray
    ticks = unique if each and len(unique) <= 12 else np.linspace(unique[0], unique[-1], 5)
    if positive.size and positive.max() > 4 * positive.min():
        # 0 stands a step below the least positive value
        least = positive.min() / (positive[1] / positive[0] if each and len(unique) <= 12 else 2)
        place = lambda v: np.log10(np.maximum(v, least))
        if not each or len(unique) > 12:
            ticks = np.geomspace(positive.min(), positive.max(), 5)
    values, at, text = place(values), place(ticks), [number(v) for v in ticks]
    if np.isnan(values).any():  # members without this field have a place of their own, at the bottom
        nowhere = at.min() - 0.2 * max(np.ptp(at), 0.1)
        values, at, text = np.nan_to_num(values, nan=nowhere), np.append(at, nowhere), [*text, "none"]
    return {"label": _text(name), "values": values, "tickvals": at, "ticktext": text}


def _log(name: str, values: np.ndarray | pd.Series) -> dict[str, Any]:
    """A logarithmic axis whose ticks are written out in full."""
    ticks = data.log_ticks(values)
    return {"title": _text(label(name)), "type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _meta(figure: Figure, members: pd.DataFrame) -> dict[str, str]:
    return {"title": captions.title(figure), "caption": captions.caption(figure, members)}


def _finish(drawn: go.Figure, meta: dict[str, str], **layout: Any) -> go.Figure:
    """Add the title and the caption. The template, which is slow to set, is left to the page and the notebook."""
    # a legend above the plot makes the figure higher; about 110 characters fit side by side
    names = [trace.name for trace in drawn.data if trace.name and trace.showlegend is not False]
    across = max(1, 110 // (8 + max((len(line) for name in names for line in name.split("<br>")), default=0)))
    layout["height"] += 19 * (sum(name.count("<br>") + 1 for name in names) // across)
    lines_of_caption = textwrap.wrap(meta["caption"], 120)
    top = 70 + 15 * len(lines_of_caption)
    layout.setdefault("margin", {"t": 30, "l": 60, "r": 20, "b": 50})
    layout["margin"] = layout["margin"] | {"t": layout["margin"]["t"] + top - 20}
    drawn.update_layout(
        title={
            "text": _text(meta["title"]),
            "subtitle": {"text": "<br>".join(map(_text, lines_of_caption))},
            "yref": "container",
            "y": 0.98,
        },
        meta=meta | {"head": top - 20},
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        **layout | {"height": layout["height"] + top - 20},
    )
    return drawn


def _text(text: str) -> str:
    """A text without tags and mathematics, as plotly shows it: plotly turns the entities back into characters."""
    return html.escape(text, quote=False).replace("$", "&#36;")


def _wrapped(text: str) -> str:
    """A text in short lines."""
    return "<br>".join(map(_text, data.in_lines(text, LINE)))

"""Figures in plotly, for the page and for notebooks: each function takes tables and a definition, and gives a figure.

A figure's title and caption are in `layout.meta` too, where the page finds them. Points carry their row of the members
table (its index) as `customdata`, by which the page goes from a point to its member.
"""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sae.report import captions, data
from sae.report.data import WIDE, Line, hover, label, lines, number, rgba
from sae.study.answers import AtMatched
from sae.study.figures import Curves, Figure, FiringRates, Frontier, Heatmap, Parallel, Profile

COLOURS = "Viridis"
MARKS = ("circle", "square", "diamond", "triangle-down", "triangle-up", "cross")  # one per group of an arm


def draw(
    figure: Figure,
    members: pd.DataFrame,
    history: pd.DataFrame | None = None,
    rates: Mapping[object, np.ndarray] | None = None,
    chosen: Sequence[int] = (),
) -> go.Figure:
    """Any figure but Dictionaries. `chosen`: rows of members, for the figures that show a few."""
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
            return firing_rates(rates, members, figure, chosen)
    raise TypeError(f"no drawing of {type(figure).__name__}")


def frontier(members: pd.DataFrame, figure: Frontier) -> go.Figure:
    """A line of means per arm and group with its band over seeds, and a point per member."""
    shown = members[(members[[figure.x, figure.y]] > 0).all(axis=1)]  # on log axes
    drawn = _lines(lines(shown, figure.along, figure.group), figure.x, figure.y)
    return _finish(
        drawn,
        _meta(figure, members),
        xaxis=_log(figure.x, shown[figure.x]),
        yaxis=_log(figure.y, shown[figure.y]),
        height=520,
    )


def profile(members: pd.DataFrame, figure: Profile) -> go.Figure:
    """A line of means per group with its band over seeds, and a point per member."""
    shown, log = data.along(members, figure)
    drawn = _lines(lines(shown, [figure.x], figure.group), figure.x, figure.metric)
    xaxis = _log(figure.x, shown[figure.x].astype(float)) if log else {"title": label(figure.x)}
    return _finish(drawn, _meta(figure, members), xaxis=xaxis, yaxis={"title": label(figure.metric)}, height=460)


def heatmap(members: pd.DataFrame, figure: Heatmap) -> go.Figure:
    """A panel per arm, one colour scale for all."""
    panels = list(data.grids(members, figure.metric, figure.along, figure.y, figure.group))
    values = np.concatenate([grid.to_numpy(float).ravel() for _, _, grid in panels])
    values = values[np.isfinite(values)]
    log = bool(values.size and values.min() > 0 and values.max() > WIDE * values.min())
    scale = np.log10 if log else lambda z: z
    written = max(grid.shape[1] for _, _, grid in panels) <= 14  # else there is no room in the cells
    rows, gap = [34 * len(grid) for _, _, grid in panels], 84  # pixels
    area = sum(rows) + gap * (len(panels) - 1)
    drawn = make_subplots(
        rows=len(panels),
        cols=1,
        subplot_titles=[title for title, _, _ in panels],
        row_heights=rows,
        vertical_spacing=gap / area if len(panels) > 1 else 0,
    )
    for row, (_, coefficient, grid) in enumerate(panels, 1):
        z = grid.to_numpy(float)
        text = [[number(value, 2) for value in line] for line in z]
        drawn.add_heatmap(
            z=scale(z),
            x=[number(value) for value in grid.columns],
            y=[number(value) for value in grid.index],
            text=text,
            texttemplate="%{text}" if written else None,
            hovertemplate=f"{label(figure.y)} %{{y}}<br>{label(coefficient)} %{{x}}<br>%{{text}}<extra></extra>",
            coloraxis="coloraxis",
            xgap=2,
            ygap=2,
            row=row,
            col=1,
        )
        drawn.update_xaxes(title=label(coefficient), type="category", showgrid=False, row=row, col=1)
        drawn.update_yaxes(title=label(figure.y), type="category", showgrid=False, row=row, col=1)
    name = f"log10 {label(figure.metric)}" if log else label(figure.metric)
    bar = {"thickness": 10, "outlinewidth": 0, "title": name}
    ends = scale(np.array([values.min(), values.max()])) if values.size else (0, 1)
    ends = {"cmin": ends[0], "cmax": ends[1] if ends[1] > ends[0] else ends[0] + 1}
    drawn.update_layout(coloraxis={"colorscale": COLOURS, "showscale": not written, "colorbar": bar, **ends})
    return _finish(drawn, _meta(figure, members), height=area + 80)


def parallel(members: pd.DataFrame, figure: Parallel) -> go.Figure:
    """A line per member, coloured by the first metric; drag along an axis to keep some of them."""
    names = [name for name in (*figure.hyper, *figure.metrics) if members[name].nunique() > 1]
    dimensions = [_dimension(members[name], label(name), name in figure.hyper) for name in names]
    colour = _dimension(members[figure.metrics[0]], "", False)
    line = {"color": colour["values"], "colorscale": COLOURS, "showscale": False}
    drawn = go.Figure(go.Parcoords(dimensions=dimensions, line=line, labelside="top"))
    return _finish(drawn, _meta(figure, members), height=420, margin={"t": 60, "l": 50, "r": 50, "b": 24})


def matched(members: pd.DataFrame, figure: AtMatched) -> go.Figure:
    """A panel per metric: a dot per group, matched value and arm, with its interval over seeds."""
    table = figure.compare(members)
    names = list(dict.fromkeys(table["metric"]))
    drawn = make_subplots(rows=1, cols=len(names), shared_yaxes=True, horizontal_spacing=0.04)
    for column, metric in enumerate(names, 1):
        of_metric = table[table["metric"] == metric]
        for i, arm in enumerate(figure.arms):
            of_arm = of_metric[of_metric["arm"] == arm].reset_index(drop=True)
            place = np.arange(len(of_arm)) + 0.16 * (i - (len(figure.arms) - 1) / 2)
            reached = of_arm["mean"].notna()
            drawn.add_scatter(
                x=of_arm["mean"][reached].to_numpy(),
                y=place[reached],
                error_x={
                    "array": (of_arm["high"] - of_arm["mean"])[reached].to_numpy(),
                    "arrayminus": (of_arm["mean"] - of_arm["low"])[reached].to_numpy(),
                    "thickness": 1.5,
                    "width": 0,
                },
                mode="markers",
                marker={"size": 9, "color": data.ARMS[i % len(data.ARMS)]},
                name=arm,
                legendgroup=arm,
                showlegend=column == 1,
                text=[
                    f"{arm}: {metric} {number(r.mean_)}{data.pairs(r.low, r.high)}, {r.seeds} of {r.of_seeds} seeds"
                    for r in of_arm[reached].rename(columns={"mean": "mean_"}).itertuples()
                ],
                hovertemplate="%{text}<extra></extra>",
                row=1,
                col=column,
            )
        positive = of_metric["mean"].dropna()
        log = bool(len(positive) and positive.min() > 0 and positive.max() > WIDE * positive.min())
        axis = _log(metric, positive) if log else {"title": metric, "rangemode": "tozero"}
        drawn.update_xaxes(**axis, row=1, col=column)
    one = table[(table["metric"] == names[0]) & (table["arm"] == next(iter(figure.arms)))]
    rows = [", ".join(f"{label(n)} {number(r[n])}" for n in figure.groups) for r in one.to_dict("records")]
    rows = [f"{row}  ·  {label(figure.matched)} = {value:g}" for row, value in zip(rows, one["value"], strict=True)]
    drawn.update_yaxes(tickvals=np.arange(len(rows)), range=[len(rows) - 0.4, -0.6], zeroline=False)
    drawn.update_yaxes(ticktext=rows, row=1, col=1)
    return _finish(drawn, _meta(figure, members), height=120 + 34 * len(rows))


def curves(history: pd.DataFrame, members: pd.DataFrame, figure: Curves, chosen: Sequence[int] = ()) -> go.Figure:
    """A panel per metric, a line per chosen member."""
    names = [name for name in figure.metrics if name in history]
    drawn = make_subplots(rows=len(names), cols=1, shared_xaxes=True, vertical_spacing=0.06)
    for i, row in enumerate(chosen or members.index[:6]):
        member = members.at[row, "member"]
        of_member = history[history["member"] == member]
        for panel, name in enumerate(names, 1):
            drawn.add_scatter(
                x=of_member["step"].to_numpy(),
                y=of_member[name].to_numpy(np.float32),
                mode="lines",
                line={"width": 1.8, "color": swatch(i)},
                name=f"member {member}",
                legendgroup=str(member),
                showlegend=panel == 1,
                hovertemplate="%{y:.3g}",
                row=panel,
                col=1,
            )
    for panel, name in enumerate(names, 1):
        values = history[name].to_numpy(float)
        values = values[np.isfinite(values) & (values > 0)]
        log = values.size and values.max() > WIDE * np.quantile(values, 0.01)
        drawn.update_yaxes(
            row=panel, col=1, **(_log(name, values) if log else {"title": label(name), "rangemode": "tozero"})
        )
    drawn.update_xaxes(title="step", row=len(names), col=1)
    return _finish(drawn, _meta(figure, members), height=70 + 210 * len(names), hovermode="x unified")


def firing_rates(
    rates: Mapping[object, np.ndarray], members: pd.DataFrame, figure: FiringRates, chosen: Sequence[int] = ()
) -> go.Figure:
    """A histogram per chosen member, drawn as steps; the dead stand at the left edge."""
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
            name=f"member {member}",
            hovertemplate="%{y:.1%}",
        )
    decades = np.arange(np.ceil(edges[0]), 1)
    xaxis = {"title": "firing rate", "tickvals": [at[0], *decades], "zeroline": False, "range": [edges[0] - 0.8, 0.15]}
    xaxis |= {"ticktext": ["dead", *(f"{10.0**d:g}" for d in decades)]}
    yaxis = {"title": "share of latents", "tickformat": ".0%", "rangemode": "tozero"}
    return _finish(drawn, _meta(figure, members), xaxis=xaxis, yaxis=yaxis, height=360, hovermode="x unified")


def recovery(found: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> go.Figure:
    """{name: (best cosine of each true feature, the same of a random dictionary)}: histograms, as steps."""
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
                name=name,
                legendgroup=name,
                showlegend=dash == "solid",
                hovertemplate="%{y:.1%}",
            )
    meta = {
        "title": "How well the true features are found",
        "caption": "The share of true features by their best cosine with a decoder row; dotted: the same of a random "
        "dictionary of that shape, the floor that chance gives.",
    }
    yaxis = {"title": "share of features", "tickformat": ".0%", "rangemode": "tozero"}
    xaxis = {"title": "best cosine with a decoder row", "range": [0, 1.02]}
    return _finish(drawn, meta, xaxis=xaxis, yaxis=yaxis, height=380, hovermode="x unified")


def swatch(i: int) -> str:
    """The colour of the i-th chosen member."""
    return (*data.ARMS, *data.GROUPS)[i % 12]


def _lines(drawn_lines: Sequence[Line], x: str, y: str) -> go.Figure:
    drawn = go.Figure()
    for line in drawn_lines:
        means, solid = line.means(x, y), rgba(line.colour, line.strength)
        mark = {} if line.mark is None else {"symbol": MARKS[line.mark % len(MARKS)], "size": 7, "color": solid}
        common = {"legendgroup": line.name, "name": line.name}
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
            text=hover(line.members),
            hovertemplate="%{text}<extra></extra>",
            showlegend=False,
            **common,
        )
    return drawn


def _dimension(column: pd.Series, name: str, each: bool) -> dict:
    """An axis of parallel coordinates: words, or numbers, on a log scale where they span much. `each`: a tick each."""
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        words = list(dict.fromkeys(column.astype(str)))
        values = column.astype(str).map(words.index).to_numpy(float)
        return {"label": name, "values": values, "tickvals": list(range(len(words))), "ticktext": words}
    values = column.to_numpy(float, na_value=np.nan)
    unique = np.unique(values[np.isfinite(values)])
    positive, place = unique[unique > 0], lambda v: v
    ticks = unique if each and len(unique) <= 12 else np.linspace(unique[0], unique[-1], 5)
    if positive.size and positive.max() > 4 * positive.min():
        # 0 stands a step below the least of the others
        least = positive.min() / (positive[1] / positive[0] if each and len(unique) <= 12 else 2)
        place = lambda v: np.log10(np.maximum(v, least))
        if not each or len(unique) > 12:
            ticks = np.geomspace(positive.min(), positive.max(), 5)
    values, at, text = place(values), place(ticks), [number(v) for v in ticks]
    if np.isnan(values).any():  # not a field of that member: a place of its own, at the bottom
        nowhere = at.min() - 0.2 * max(np.ptp(at), 0.1)
        values, at, text = np.nan_to_num(values, nan=nowhere), np.append(at, nowhere), [*text, "none"]
    return {"label": name, "values": values, "tickvals": at, "ticktext": text}


def _log(name: str, values) -> dict:
    """A logarithmic axis whose ticks are written out."""
    ticks = data.log_ticks(values)
    return {"title": label(name), "type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _meta(figure: Figure, members: pd.DataFrame) -> dict[str, str]:
    return {"title": captions.title(figure), "caption": captions.caption(figure, members)}


def _finish(drawn: go.Figure, meta: dict[str, str], **layout) -> go.Figure:
    """Titles and a caption. The template, which is slow to set, is left to the page and the notebook."""
    lines_of_caption = textwrap.wrap(meta["caption"], 120)
    top = 70 + 15 * len(lines_of_caption)
    layout.setdefault("margin", {"t": 30, "l": 60, "r": 20, "b": 50})
    layout["margin"] = layout["margin"] | {"t": layout["margin"]["t"] + top - 20}
    drawn.update_layout(
        title={
            "text": meta["title"],
            "subtitle": {"text": "<br>".join(lines_of_caption)},
            "yref": "container",
            "y": 0.98,
        },
        meta=meta | {"head": top - 20},
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        **layout | {"height": layout["height"] + top - 20},
    )
    return drawn

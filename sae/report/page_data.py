"""The data that page.js reads: figures, members, their curves and firing rates, and dictionaries as images."""

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from PIL import Image

from sae.core.metrics import EVALUATED, METRICS, OF_A_STEP, metric
from sae.core.text import unquoted
from sae.report import captions, data, images
from sae.report.data import hyper, label, metrics
from sae.report.dictionaries import Dictionary
from sae.report.runs import Runs
from sae.study.figures import Curves, Figure, FiringRates

SHEET = 12  # columns of a sheet of images
BRIEF = tuple(f"eval/{name}" for name in ("fvu", "l0", "dead_fraction", "mmcs"))  # shown of a chosen member


def everything(
    name: str,
    drawn: Sequence[tuple[Figure, go.Figure]],
    recovery: go.Figure | None,
    runs: Runs,
    chosen: Sequence[int],
    history: pd.DataFrame,
    dictionaries: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """All of the data, as JSON can hold it. `dictionaries` come from the function below."""
    figures = {captions.slug(figure): _plotly(plot) for figure, plot in drawn}
    if recovery:
        figures["recovery"] = _plotly(recovery)
    curves: list[str] = []
    for figure, _ in drawn:
        if isinstance(figure, Curves):
            known = [metric for metric in figure.metrics if metric in history]
            figures[captions.slug(figure)]["layout"]["meta"]["metrics"] = known
            curves += known
    named = [*METRICS, *OF_A_STEP, *(name for name in EVALUATED if f"eval/{name}" in runs.members)]
    firing = any(isinstance(figure, FiringRates) for figure, _ in drawn) and runs.rates
    return {
        "name": name,
        "figures": figures,
        "members": _members(runs.members),
        "chosen": list(chosen),
        "swatches": data.SWATCHES,
        "meanings": {name: unquoted(known.caption) for name in named if (known := metric(name))}
        | {label(column): line for column, line in runs.members.attrs.get("meanings", {}).items()},
        "history": _history(runs.members, history, list(dict.fromkeys(curves))) if curves else None,
        "firing": _firing(runs) if firing else None,
        "dictionaries": dictionaries,
    }


def dictionaries(shown: Iterable[Dictionary]) -> tuple[str, list[dict[str, Any]]]:
    """(the style rules that hold the images, an entry per dictionary): one sheet per member and kind of image."""
    rules: list[str] = []
    entries: list[dict[str, Any]] = []
    for dictionary in shown:
        entry: dict[str, Any] = {"row": dictionary.row}
        if dictionary.image_shape is not None:
            for kind, tiles in _tiles(dictionary, dictionary.image_shape).items():
                name = f"{kind}-{dictionary.row}"
                rules.append(f".{name}{{background-image:url({_png(images.sheet(tiles, SHEET))})}}")
                entry[kind] = {"class": name, "height": tiles.shape[1], "width": tiles.shape[2], "columns": SHEET}
            place = {number: i for i, number in enumerate(dictionary.inputs)}
            strongest = [
                [(number, value) for number, value in zip(numbers, values, strict=True) if number >= 0]
                for numbers, values in zip(dictionary.strongest.tolist(), dictionary.values.tolist(), strict=True)
            ]
            entry |= {
                "latents": dictionary.latents.tolist(),
                "rates": [None if rate != rate else float(f"{rate:.4g}") for rate in dictionary.rates.tolist()],
                "top": [[[place[n], n, float(f"{value:.4g}")] for n, value in pairs] for pairs in strongest],
            }
        entries.append(entry)
    return "".join(rules), entries


def _tiles(dictionary: Dictionary, image_shape: Sequence[int]) -> dict[str, np.ndarray]:
    """{kind: [n, height, width(, 3)]}. An example and its reconstruction share one scale, that of the example."""
    nothing = np.zeros((1, dictionary.directions.shape[1]))
    inputs = np.array([*dictionary.inputs.values()] or nothing)
    outputs = np.array([dictionary.outputs[number] for number in dictionary.inputs] or nothing)
    low, high = inputs.min(axis=1), inputs.max(axis=1)
    return {
        "directions": images.directions(dictionary.directions, image_shape),
        "inputs": images.tiles(inputs, image_shape, low, high),
        "outputs": images.tiles(outputs, image_shape, low, high),
    }


def _plotly(drawn: go.Figure) -> dict[str, Any]:
    """A figure as plotly.js takes it, without its template: the page has one of its own."""
    figure = json.loads(drawn.to_json())
    figure["layout"].pop("template", None)
    return figure


def _members(members: pd.DataFrame) -> dict[str, Any]:
    """The members table: its columns, its rows, and the numbers of the columns that are shown of a chosen member."""
    varied = hyper(members)
    names = list(dict.fromkeys(["member", *varied, *metrics(members), "status"]))
    short = data.brief(members)
    columns = [{"name": name, "label": label(name), "short": _short(members[name], short[name])} for name in names]
    rows = [[_cell(value) for value in row] for row in members[names].astype(object).to_numpy()]
    brief = [i for i, name in enumerate(names) if name in ("member", *varied, *BRIEF)]
    return {"columns": columns, "rows": rows, "brief": brief}


def _short(whole: pd.Series, short: pd.Series) -> dict[str, str]:
    """{a long word of a column: how the page shows it}."""
    return {str(a): str(b) for a, b in zip(whole, short, strict=True) if isinstance(b, str) and str(a) != b}


def _history(members: pd.DataFrame, history: pd.DataFrame, names: Sequence[str]) -> dict[str, Any]:
    """All members' curves end to end, in the order of the members table, as 32-bit numbers in base64."""
    row_of = pd.Series(members.index, index=members["member"])
    rows = history["member"].map(row_of)
    ordered = history.assign(row=rows).dropna(subset=["row"]).sort_values(["row", "step"])
    counts = ordered["row"].value_counts().reindex(members.index, fill_value=0)
    return {
        "starts": [0, *counts.cumsum().tolist()],
        "steps": _base64(ordered["step"].to_numpy(np.uint32)),
        "values": {name: _base64(ordered[name].to_numpy(np.float32)) for name in names},
    }


def _firing(runs: Runs) -> dict[str, Any]:
    """The histograms of all members that have firing rates, end to end."""
    edges = data.firing_edges(runs.rates.values())
    known = {int(row): member for row, member in runs.members["member"].items() if member in runs.rates}
    shares = [data.firing_histogram(runs.rates[member], edges) for member in known.values()]
    return {"bins": len(edges), "rows": list(known), "shares": _base64(np.array(shares, np.float32))}


def _cell(value: Any) -> Any:
    """A cell of a table as JSON: numbers with six digits, None for what is missing."""
    if value is None or value is pd.NA or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if np.isfinite(value) else str(value)
    return value.item() if isinstance(value, np.generic) else value if isinstance(value, int | bool) else str(value)


def _png(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _base64(values: np.ndarray) -> str:
    """The bytes of an array, little-endian, in base64."""
    return base64.b64encode(values.astype(values.dtype.newbyteorder("<")).tobytes()).decode()

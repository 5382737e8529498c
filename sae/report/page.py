"""One HTML file that opens anywhere: text, tables, and a block of data from which the browser draws the figures."""

import base64
import dataclasses
import html
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.offline
from PIL import Image

from sae.core.metrics import METRICS
from sae.report import captions, data, dictionaries, draw
from sae.report.data import hyper, label, metrics, number
from sae.report.dictionaries import FEATURES, Dictionary
from sae.report.runs import Runs
from sae.study.claims import named
from sae.study.figures import Curves, Dictionaries, Figure, FiringRates

HERE = Path(__file__).parent
SHEET = 12  # images in a row of a sheet
BRIEF = tuple(f"eval/{name}" for name in ("fvu", "l0", "dead_fraction", "mmcs"))


@dataclasses.dataclass(frozen=True)
class Table:
    """A table with a title and sentences."""

    title: str
    frame: pd.DataFrame
    sentences: Sequence[str] = ()
    others: Sequence[str] = ()  # folded away
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Page:
    """What the page says, in its order."""

    title: str
    question: str
    summary: str
    answers: Sequence[Table]
    claims: Sequence[dict[str, Any]]
    warnings: Sequence[str]
    drawn: Sequence[tuple[Figure, go.Figure]]
    dictionaries: Sequence[Dictionary]
    recovery: go.Figure | None  # where there are true features
    dictionaries_note: str  # which are shown, or why none are
    facts: Sequence[tuple[str, str]]  # name, HTML
    folder: str  # of the files for a paper, as a link


def render(page: Page, runs: Runs, chosen: Sequence[int], history: pd.DataFrame) -> str:
    """The file's text."""
    of_members = [f for f, _ in page.drawn if isinstance(f, Curves | FiringRates)]
    kind = lambda figure: type(figure).__name__.lower()
    plots = {captions.slug(f): _figure(captions.slug(f), drawn, page.folder, kind(f)) for f, drawn in page.drawn}
    results = "".join(plots[captions.slug(f)] for f, _ in page.drawn if f not in of_members)
    members = "".join(plots[captions.slug(f)] for f in of_members)
    sheets, shown = _dictionaries(page.dictionaries)
    block = _block(page, runs, chosen, history, shown)
    title = _text(page.title)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="sparsity-lab">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{_file("page.css")}{sheets}</style>
</head>
<body>
<nav><div><b>{title}</b><a href="#answer">Answer</a><a href="#run">Run</a><a href="#figures">Figures</a>
<a href="#members">Members</a>{'<a href="#dictionaries">Dictionaries</a>' if page.dictionaries_note else ""}</div></nav>
<main>
<h1>{_text(page.question or page.title)}</h1>
<p class="lead">{_text(page.summary)}</p>
<section id="answer">{_answers(page)}</section>
{_warnings(page.warnings)}
<section id="run"><h3>How it was run</h3>
<dl>{"".join(f"<dt>{_text(name)}</dt><dd>{value}</dd>" for name, value in page.facts)}</dl></section>
<section id="figures"><h2>Figures</h2>{results}</section>
<section id="members"><h2>Members</h2>
<p class="lead">Click a point in a figure, or a row below, to add a member here.</p>
<div id="chosen" class="scroll"></div>
{members}
<h3>All members</h3>
<div class="bar"><input id="filter" type="search" placeholder="filter: d_sae=64 l0&lt;20" aria-label="filter members">
<span id="count"></span><button id="copy">copy</button><button id="csv">download CSV</button></div>
<div id="table" tabindex="0"><table><thead></thead><tbody></tbody></table></div>
<p class="lead">Held-out numbers. A click on a head sorts, on a row chooses; copied and downloaded is what is shown.</p>
</section>
{_section_of_dictionaries(page)}
<footer>Made by Sparsity Lab. Nothing on this page is fetched from anywhere.</footer>
</main>
<script id="data" type="application/json">{block}</script>
<script>{plotly.offline.get_plotlyjs()}</script>
<script>{_file("page.js")}</script>
</body>
</html>
"""


def as_html(frame: pd.DataFrame, classes: str = "") -> str:
    """A table whose index names its rows; equal labels side by side are one cell."""
    names = [name or "" for name in frame.index.names]
    levels = [frame.columns.get_level_values(k) for k in range(frame.columns.nlevels)]
    heads = []
    for k, level in enumerate(levels):
        last = k == len(levels) - 1
        cells = [f'<th class="words">{_text(label(name)) if last else ""}</th>' for name in names]
        spans: list[list] = []
        for value in level:
            if not last and spans and spans[-1][0] == value:
                spans[-1][1] += 1
            else:
                spans.append([value, 1])
        cells += [f"<th{f' colspan={n}' if n > 1 else ''}>{_text(label(str(value)))}</th>" for value, n in spans]
        heads.append(f"<tr>{''.join(cells)}</tr>")
    rows, before = [], ()
    for index, values in zip(frame.index, frame.itertuples(index=False), strict=True):
        index = index if isinstance(index, tuple) else (index,)
        same = [i < len(index) - 1 and index[: i + 1] == before[: i + 1] for i in range(len(index))]
        cells = [f"<th>{'' if s else _text(number(v))}</th>" for v, s in zip(index, same, strict=True)]
        cells += [f"<td>{_cell(value)}</td>" for value in values]
        rows.append(f"<tr>{''.join(cells)}</tr>")
        before = index
    table = f'<table class="{classes}"><thead>{"".join(heads)}</thead><tbody>{"".join(rows)}</tbody></table>'
    return f'<div class="scroll" tabindex="0">{table}</div>'


def _cell(value: Any) -> str:
    """A number, its interval under it in small."""
    mean, bracket, interval = _text(number(value)).partition(" [")
    return f"{mean}<small>[{interval}</small>" if bracket else mean


def _answers(page: Page) -> str:
    parts = [_claims(page.claims)]
    for answer in page.answers:
        parts += [f"<h3>{_text(answer.title)}</h3>", _list(answer.sentences)]
        if answer.others:
            parts += [f"<details><summary>At the other values</summary>{_list(answer.others)}</details>"]
        parts += [as_html(answer.frame)]
        parts += [f"<figcaption>{_text(answer.caption)}</figcaption>" if answer.caption else ""]
    return "".join(parts)


def _list(sentences: Sequence[str]) -> str:
    items = "".join(f"<li>{_text(sentence)}</li>" for sentence in sentences)
    return f"<ul>{items}</ul>" if items else ""


def _claims(decided: Sequence[dict[str, Any]]) -> str:
    """A row per clause: what was claimed, and what came of it."""
    if not decided:
        return ""
    rows = []
    for claim in decided:
        for i, clause in enumerate(claim["clauses"]):
            head = f"{_text(named(claim))} <span class=lead>{_text(claim.get('source') or '')}</span>" if i == 0 else ""
            measured = number(clause["measured"]) if clause["measured"] is not None else "–"
            bounds = [clause.get(end) for end in ("low", "high")]
            interval = data.pairs(*bounds) if None not in bounds else ""
            reason = f"<small>{_text(clause['reason'])}</small>" if clause.get("reason") else ""
            rows.append(
                f"<tr><td class=text>{head}</td><td class=text>{_text(clause['text'])}</td>"
                f"<td>{_text(measured + interval)}</td><td>{_text(number(clause['threshold']))}</td>"
                f'<td class="{_text(clause["verdict"])}">{_text(clause["verdict"])}{reason}</td></tr>'
            )
    head = "".join(f"<th class=words>{name}</th>" for name in ("claim", "clause", "measured", "threshold", "verdict"))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    of = [claim.get("verdict", "undecided") for claim in decided]
    counts = ", ".join(f"{of.count(verdict)} {verdict}" for verdict in ("holds", "fails", "undecided"))
    return f'<h3>Claims</h3><p>{len(of)}: {counts}.</p><div class="scroll" tabindex="0">{table}</div>'


def _warnings(sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    return f'<aside class="warnings"><h3>Before you believe it</h3>{_list(sentences)}</aside>'


def _figure(name: str, drawn: go.Figure, folder: str, kind: str = "") -> str:
    wide = "wide" if kind in ("parallel", "atmatched") else ""
    files = " ".join(f'<a href="{folder}/{name}.{suffix}">{suffix.upper()}</a>' for suffix in ("png", "svg"))
    return (
        f"<figure><h3>{_text(drawn.layout.meta['title'])}</h3>"
        f'<div class="scroll"><div class="plot {wide}" id="{name}" data-kind="{kind}"></div></div>'
        f"<figcaption>{_text(drawn.layout.meta['caption'])} {files if kind else ''}</figcaption></figure>"
    )


def _section_of_dictionaries(page: Page) -> str:
    if not page.dictionaries_note:
        return ""
    note = captions.caption(Dictionaries(), None) if any(d.image_shape for d in page.dictionaries) else ""
    shown = "".join(_dictionary(d) for d in page.dictionaries)
    if page.recovery:
        shown = _figure("recovery", page.recovery, page.folder) + shown
    return (
        f'<section id="dictionaries"><h2>Dictionaries</h2><p class="lead">{_text(page.dictionaries_note)} {_text(note)}'
        f"</p>{shown}</section>"
    )


def _dictionary(shown: Dictionary) -> str:
    """A head, and what is no image; images are the browser's work."""
    body = ""
    if shown.features is not None:
        found = shown.features.rename(columns={"latent": "best latent", "chance": "cosine by chance"})
        found = found.set_index("feature").head(FEATURES)
        more = len(shown.features) - len(found)
        body = as_html(found) + (f"<p class=lead>{more} more features are found less well.</p>" if more > 0 else "")
        body = f"<details><summary>True features, the best found first</summary>{body}</details>"
    elif shown.image_shape is None:
        table = pd.DataFrame(
            {
                "firing rate": shown.rates,
                **{
                    f"example {k + 1} (value)": [
                        "–" if at < 0 else f"{at} ({number(value)})"
                        for at, value in zip(shown.strongest[:, k], shown.values[:, k], strict=True)
                    ]
                    for k in range(shown.strongest.shape[1])
                },
            },
            index=pd.Index(shown.latents, name="latent"),
        )
        body = f"<details><summary>Latents and their strongest held-out examples</summary>{as_html(table)}</details>"
    return f'<figure id="dictionary-{shown.row}"><h3>{_text(shown.name)}</h3>{body}</figure>'


def _dictionaries(shown: Iterable[Dictionary]) -> tuple[str, list[dict[str, Any]]]:
    """(style rules that hold the pictures, what the script reads): one sheet of images per member and kind."""
    rules, block = [], []
    for d in shown:
        entry: dict[str, Any] = {"row": d.row}
        if d.image_shape is not None:
            numbers = list(d.inputs)
            place = {at: i for i, at in enumerate(numbers)}
            # an example and its reconstruction on one scale, that of the example
            inputs = np.array([d.inputs[at] for at in numbers] or np.zeros((1, d.directions.shape[1])))
            outputs = np.array([d.outputs[at] for at in numbers] or np.zeros((1, d.directions.shape[1])))
            low, high = inputs.min(axis=1), inputs.max(axis=1)
            images = {
                "directions": dictionaries.directions_as_tiles(d),
                "inputs": dictionaries.tiles(inputs, d.image_shape, low, high),
                "outputs": dictionaries.tiles(outputs, d.image_shape, low, high),
            }
            for kind, of_kind in images.items():
                name = f"{kind}-{d.row}"
                rules.append(f".{name}{{background-image:url({_png(dictionaries.sheet(of_kind, SHEET))})}}")
                entry[kind] = {"class": name, "height": of_kind.shape[1], "width": of_kind.shape[2], "columns": SHEET}
            entry |= {
                "latents": d.latents.tolist(),
                "rates": [None if rate != rate else float(f"{rate:.4g}") for rate in d.rates.tolist()],
                "top": [
                    [
                        [place[at], at, float(f"{v:.4g}")]
                        for at, v in zip(row.tolist(), of.tolist(), strict=True)
                        if at >= 0
                    ]
                    for row, of in zip(d.strongest, d.values, strict=True)
                ],
            }
        block.append(entry)
    return "".join(rules), block


def _block(page: Page, runs: Runs, chosen: Sequence[int], history: pd.DataFrame, shown: list[dict]) -> str:
    """The data that the script reads, as JSON that can stand inside HTML."""
    figures = {captions.slug(figure): _plotly(drawn) for figure, drawn in page.drawn}
    if page.recovery:
        figures["recovery"] = _plotly(page.recovery)
    for figure, _ in page.drawn:
        if isinstance(figure, Curves):
            metrics_drawn = [name for name in figure.metrics if name in history]
            figures[captions.slug(figure)]["layout"]["meta"]["metrics"] = metrics_drawn
    kinds = [figure for figure, _ in page.drawn]
    of_curves = dict.fromkeys(n for f in kinds if isinstance(f, Curves) for n in f.metrics if n in history)
    block = {
        "name": page.title,
        "figures": figures,
        "members": _members(runs.members),
        "chosen": list(chosen),
        "swatches": [draw.swatch(i) for i in range(12)],
        "meanings": {name: metric.caption for name, metric in METRICS.items()}
        | {label(n): line for n, line in runs.members.attrs.get("meanings", {}).items()},
        "history": _history(runs.members, history, list(of_curves)) if of_curves else None,
        "firing": _firing(runs) if any(isinstance(f, FiringRates) for f in kinds) and runs.rates else None,
        "dictionaries": shown,
    }
    return json.dumps(block, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")


def _plotly(drawn: go.Figure) -> dict[str, Any]:
    plain = json.loads(drawn.to_json())
    plain["layout"].pop("template", None)  # the page has its own
    return plain


def _members(members: pd.DataFrame) -> dict[str, Any]:
    varied = hyper(members)
    names = list(dict.fromkeys(["member", *varied, *metrics(members), "status"]))
    columns = [{"name": name, "label": label(name)} for name in names]
    rows = [[_plain(value) for value in row] for row in members[names].astype(object).to_numpy()]
    brief = [i for i, name in enumerate(names) if name in ("member", *varied, *BRIEF)]
    return {"columns": columns, "rows": rows, "brief": brief}


def _history(members: pd.DataFrame, history: pd.DataFrame, names: Sequence[str]) -> dict[str, Any]:
    """Every member's curves end to end, in the order of the members table, as 32-bit numbers in base64."""
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
    edges = data.firing_edges(runs.rates.values())
    rows = [int(row) for row, member in runs.members["member"].items() if member in runs.rates]
    shares = [data.firing_histogram(runs.rates[runs.members.at[row, "member"]], edges) for row in rows]
    return {"bins": len(edges), "rows": rows, "shares": _base64(np.array(shares, np.float32))}


def _plain(value: Any) -> Any:
    """A cell as JSON, numbers with six digits."""
    if value is None or value is pd.NA or value != value:
        return None
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if np.isfinite(value) else str(value)
    return value.item() if isinstance(value, np.generic) else value


def _png(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"))).decode()


def _text(value: Any) -> str:
    return html.escape(str(value))


def _file(name: str) -> str:
    return (HERE / name).read_text()

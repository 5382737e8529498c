"""The report as one HTML file that opens anywhere: its text and tables, its style and script, and the script's data.

Everything that comes from a run passes through `_text`, so that nothing in a run folder becomes markup.
"""

import dataclasses
import html
import re
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go
import plotly.offline

from sae.core.text import unquoted
from sae.report import captions, data, page_data
from sae.report.data import label, number
from sae.report.dictionaries import FEATURES, Dictionary
from sae.report.runs import Runs
from sae.study.claims import named
from sae.study.figures import Curves, Figure, FiringRates

ROOM = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Table:
    """A table with a title and sentences."""

    title: str
    frame: pd.DataFrame
    sentences: Sequence[str] = ()
    others: Sequence[str] = ()  # sentences that are folded away
    caption: str = ""


class Fact(NamedTuple):
    """A fact about how a run was made: its name, its text, and the HTML element that the text stands in."""

    name: str
    text: str
    element: str = "span"


@dataclasses.dataclass(frozen=True)
class Page:
    """The contents of the page, in their order."""

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
    facts: Sequence[Fact]
    folder: str  # name of the folder beside the page that holds the files for a paper


def render(page: Page, runs: Runs, chosen: Sequence[int], history: pd.DataFrame) -> str:
    """The text of the HTML file. chosen: rows of the members shown at first; history: the curves' log points."""
    plot = lambda figure, drawn: _figure(captions.slug(figure), drawn, page.folder, type(figure).__name__.lower())
    plots = [(isinstance(figure, Curves | FiringRates), plot(figure, drawn)) for figure, drawn in page.drawn]
    results = "".join(markup for of_members, markup in plots if not of_members)
    members = "".join(markup for of_members, markup in plots if of_members)
    sheets, shown = page_data.dictionaries(page.dictionaries)
    block = page_data.block(page.title, page.drawn, page.recovery, runs, chosen, history, shown)
    title = _text(unquoted(page.title))
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
<h1>{_code(page.question or page.title)}</h1>
<p class="lead">{_text(page.summary)}</p>
<section id="answer">{_answers(page)}</section>
{_warnings(page.warnings)}
<section id="run"><h3>How it was run</h3>
<dl>{"".join(map(_fact, page.facts))}</dl></section>
<section id="figures"><h2>Figures</h2>{results}</section>
<section id="members"><h2>Members</h2>
<p class="lead">Click a point in a figure, or a row below, to add a member here.</p>
<div id="chosen" class="scroll"></div>
{members}
<h3>All members</h3>
<div class="bar"><input id="filter" type="search" placeholder="filter: d_sae=64 l0&lt;20" aria-label="filter members">
<span id="count"></span><button id="copy">copy</button><button id="csv">download CSV</button></div>
<div id="table" tabindex="0"><table><thead></thead><tbody></tbody></table></div>
<p class="lead">Held-out numbers. Click a column's head to sort by it, a row to choose its member.
Copies and downloads hold the rows that are shown.</p>
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


def as_html(frame: pd.DataFrame) -> str:
    """A data frame whose index names its rows, as an HTML table; equal labels side by side are one cell."""
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
    rows: list[str] = []
    before: tuple = ()
    for index, values in zip(frame.index, frame.itertuples(index=False), strict=True):
        index = index if isinstance(index, tuple) else (index,)
        same = [i < len(index) - 1 and index[: i + 1] == before[: i + 1] for i in range(len(index))]
        cells = [f"<th>{'' if s else _text(number(v))}</th>" for v, s in zip(index, same, strict=True)]
        cells += [f"<td>{_cell(value)}</td>" for value in values]
        rows.append(f"<tr>{''.join(cells)}</tr>")
        before = index
    table = f"<table><thead>{''.join(heads)}</thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="scroll" tabindex="0">{table}</div>'


def _cell(value: Any) -> str:
    """A number, with its interval in small type below it."""
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
    """The table of claims, a row per clause: what was claimed, what was measured, the verdict."""
    if not decided:
        return ""
    rows = []
    for claim in decided:
        for i, clause in enumerate(claim["clauses"]):
            head = f"{_text(named(claim))} <span class=lead>{_text(claim.get('source') or '')}</span>" if i == 0 else ""
            measured = number(clause["measured"]) if clause["measured"] is not None else "–"
            bounds = [clause.get(end) for end in ("low", "high")]
            interval = data.interval(*bounds) if None not in bounds else ""
            reason = f"<small>{_text(clause['reason'])}</small>" if clause.get("reason") else ""
            rows.append(
                f"<tr><td class=text>{head}</td><td class=text>{_text(clause['text'])}</td>"
                f"<td>{_text(measured + interval)}</td><td>{_text(number(clause['threshold']))}</td>"
                f'<td class="{_text(clause["verdict"])}">{_text(clause["verdict"])}{reason}</td></tr>'
            )
    head = "".join(f"<th class=words>{name}</th>" for name in ("claim", "clause", "measured", "threshold", "verdict"))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    verdicts = [claim.get("verdict", "undecided") for claim in decided]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in ("holds", "fails", "undecided"))
    return f'<h3>Claims</h3><p>{len(verdicts)}: {counts}.</p><div class="scroll" tabindex="0">{table}</div>'


def _fact(fact: Fact) -> str:
    return f"<dt>{_text(fact.name)}</dt><dd><{fact.element}>{_text(fact.text)}</{fact.element}></dd>"


def _warnings(sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    return f'<aside class="warnings"><h3>Before you believe it</h3>{_list(sentences)}</aside>'


def _figure(name: str, drawn: go.Figure, folder: str, kind: str = "") -> str:
    wide = "wide" if kind in ("parallel", "atmatched") else ""
    place = urllib.parse.quote(folder)
    files = " ".join(f'<a href="{place}/{name}.{suffix}">{suffix.upper()}</a>' for suffix in ("png", "svg"))
    return (
        f"<figure><h3>{_text(drawn.layout.meta['title'])}</h3>"
        f'<div class="scroll"><div class="plot {wide}" id="{name}" data-kind="{kind}"></div></div>'
        f"<figcaption>{_text(drawn.layout.meta['caption'])} {files if kind else ''}</figcaption></figure>"
    )


def _section_of_dictionaries(page: Page) -> str:
    if not page.dictionaries_note:
        return ""
    note = captions.DICTIONARIES if any(d.image_shape for d in page.dictionaries) else ""
    shown = "".join(_dictionary(d) for d in page.dictionaries)
    if page.recovery:
        shown = _figure("recovery", page.recovery, page.folder) + shown
    return (
        f'<section id="dictionaries"><h2>Dictionaries</h2><p class="lead">{_text(page.dictionaries_note)} {_text(note)}'
        f"</p>{shown}</section>"
    )


def _dictionary(shown: Dictionary) -> str:
    """The title of a dictionary, and its table where it is not drawn as images; page.js adds the images."""
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


def _text(value: Any) -> str:
    return html.escape(str(value))


def _code(text: str) -> str:
    """A text whose parts between backticks are code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", _text(text))


def _file(name: str) -> str:
    return (ROOM / name).read_text(encoding="utf-8")

"""The report as one HTML file that opens anywhere: its text and tables, its style and script, and the script's data.

A run's folder is data from anyone. `page.html` escapes every value that it is given, the script's data is JSON without
"<", and the page's policy lets a browser run the page's own scripts and nothing else.
"""

import base64
import dataclasses
import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jinja2
import pandas as pd
import plotly.graph_objects as go
import plotly.offline
from markupsafe import Markup

from sae.core.text import unquoted
from sae.report import captions, data, page_data
from sae.report.data import label, number
from sae.report.dictionaries import FEATURES, Dictionary
from sae.report.runs import Runs
from sae.study.claims import named
from sae.study.figures import Curves, Figure, FiringRates

ROOM = Path(__file__).parent
# plotly would add the style of its maps; it does not where there is an element with this id
OTHER_STYLES = re.compile(r'getElementById\("([0-9a-f]{64})"\)')
ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(ROOM),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}


@dataclasses.dataclass(frozen=True)
class Table:
    """A table with a title and sentences."""

    title: str
    frame: pd.DataFrame
    sentences: Sequence[str] = ()
    others: Sequence[str] = ()  # sentences that are folded away
    caption: str = ""


class Fact(NamedTuple):
    """A fact about how a run was made: its name and its text, which may be a command or the head of those below."""

    name: str
    text: str
    kind: Literal["text", "command", "head"] = "text"


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
    missing: Sequence[str]  # figures that are not shown, and why
    facts: Sequence[Fact]
    folder: str  # name of the folder beside the page that holds the files for a paper
    features: str = ""  # name of the page of features beside this one, where there is one


class Plot(NamedTuple):
    """The place of a figure that page.js draws."""

    name: str
    kind: str
    title: str
    caption: str
    wide: bool


class Head(NamedTuple):
    """A line of a table's head: the names of what names the rows, and (label, columns that it spans)."""

    names: Sequence[str]
    columns: Sequence[tuple[str, int]]


class Grid(NamedTuple):
    """A table in words. A row is what names it, and its cells: (number, interval)."""

    heads: Sequence[Head]
    rows: Sequence[tuple[Sequence[str], Sequence[tuple[str, str]]]]


class Clause(NamedTuple):
    """A row of the table of claims; only the first clause of a claim has the claim and its source."""

    claim: str
    source: str
    text: str
    measured: str
    threshold: str
    verdict: str
    reason: str


class Sheet(NamedTuple):
    """The title of a dictionary, and its table where it has one; page.js adds the images."""

    row: int
    name: str
    summary: str = ""
    grid: Grid | None = None
    more: int = 0  # rows that the table lacks


def render(page: Page, runs: Runs, chosen: Sequence[int], history: pd.DataFrame) -> str:
    """The text of the HTML file. chosen: rows of the members shown at first; history: the curves' log points."""
    plots = [(isinstance(figure, Curves | FiringRates), _plot(figure, drawn)) for figure, drawn in page.drawn]
    rules, shown = page_data.dictionaries(page.dictionaries)
    plotly_js = plotly.offline.get_plotlyjs()
    scripts, style, left_out = (
        [plotly_js, contents("page.js")],
        contents("page.css") + rules,
        OTHER_STYLES.findall(plotly_js),
    )
    has_images = any(dictionary.image_shape for dictionary in page.dictionaries)
    return ENVIRONMENT.get_template("page.html").render(
        page=page,
        policy=policy(scripts, [style, *([""] if left_out else [])], attributes=True),
        title=unquoted(page.title),
        style=Markup(style),
        left_out=dict.fromkeys(left_out),
        scripts=[Markup(script) for script in scripts],
        data=page_data.everything(page.title, page.drawn, page.recovery, runs, chosen, history, shown),
        folder=page.folder,
        verdicts=_verdicts(page.claims),
        clauses=[clause for claim in page.claims for clause in _clauses(claim)],
        answers=[{"table": answer, "grid": grid(answer.frame)} for answer in page.answers],
        results=[plot for of_members, plot in plots if not of_members],
        members=[plot for of_members, plot in plots if of_members],
        about_images=captions.DICTIONARIES if has_images else "",
        recovery=page.recovery and _place("recovery", page.recovery),
        dictionaries=[_sheet(dictionary) for dictionary in page.dictionaries],
    )


def policy(scripts: Iterable[str], styles: Iterable[str], attributes: bool = False) -> str:
    """What a browser may do with a page: run these scripts, use these styles, show images that are in it.

    `attributes`: style attributes too. Plotly writes some, which run and fetch nothing.
    """
    digest = lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    allowed = lambda texts: " ".join(f"'sha256-{digest(text)}'" for text in texts)
    attribute = "style-src-attr 'unsafe-inline'; " if attributes else ""
    return (
        f"default-src 'none'; script-src {allowed(scripts)}; style-src {allowed(styles)}; "
        f"{attribute}img-src data:; base-uri 'none'; form-action 'none'"
    )


def grid(frame: pd.DataFrame) -> Grid:
    """A data frame, whose index names its rows, in words; equal labels side by side are one cell."""
    names = [name or "" for name in frame.index.names]
    heads: list[Head] = []
    for k in range(frame.columns.nlevels):
        last = k == frame.columns.nlevels - 1
        spans: list[tuple[Any, int]] = []
        for value in frame.columns.get_level_values(k):
            if not last and spans and spans[-1][0] == value:
                spans[-1] = (value, spans[-1][1] + 1)
            else:
                spans.append((value, 1))
        columns = [(label(str(value)), n) for value, n in spans]
        heads.append(Head([label(str(name)) if last else "" for name in names], columns))
    rows = []
    before: tuple = ()
    for index, values in zip(frame.index, frame.itertuples(index=False), strict=True):
        index = index if isinstance(index, tuple) else (index,)
        same = [i < len(index) - 1 and index[: i + 1] == before[: i + 1] for i in range(len(index))]
        rows.append(
            (["" if s else number(v) for v, s in zip(index, same, strict=True)], [_cell(value) for value in values])
        )
        before = index
    return Grid(heads, rows)


def _cell(value: Any) -> tuple[str, str]:
    """A number, and its interval."""
    mean, bracket, interval = number(value).partition(" [")
    return mean, f"[{interval}" if bracket else ""


def _verdicts(decided: Sequence[dict[str, Any]]) -> str:
    verdicts = [claim.get("verdict", "undecided") for claim in decided]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in ("holds", "fails", "undecided"))
    return f"{len(verdicts)}: {counts}."


def _clauses(claim: dict[str, Any]) -> list[Clause]:
    """The rows of a claim: what was claimed, what was measured, the verdict."""
    rows = []
    for i, clause in enumerate(claim["clauses"]):
        bounds = [clause.get(end) for end in ("low", "high")]
        measured = number(clause["measured"]) + (data.interval(*bounds) if None not in bounds else "")
        head = (named(claim), claim.get("source") or "") if i == 0 else ("", "")
        threshold, reason = number(clause["threshold"]), clause.get("reason") or ""
        rows.append(Clause(*head, clause["text"], measured, threshold, clause["verdict"], reason))
    return rows


def _plot(figure: Figure, drawn: go.Figure) -> Plot:
    return _place(captions.slug(figure), drawn, type(figure).__name__.lower())


def _place(name: str, drawn: go.Figure, kind: str = "") -> Plot:
    meta = drawn.layout.meta
    return Plot(name, kind, meta["title"], meta["caption"], kind in ("parallel", "atmatched"))


def _sheet(shown: Dictionary) -> Sheet:
    if shown.features is not None:
        found = shown.features.rename(columns={"latent": "best latent", "chance": "cosine by chance"})
        found = found.set_index("feature").head(FEATURES)
        more = len(shown.features) - len(found)
        return Sheet(shown.row, shown.name, "True features, the best found first", grid(found), more)
    if shown.image_shape is not None:
        return Sheet(shown.row, shown.name)
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
    return Sheet(shown.row, shown.name, "Latents and their strongest held-out examples", grid(table))


def contents(name: str) -> str:
    """The text of a file of this room."""
    return (ROOM / name).read_text(encoding="utf-8")

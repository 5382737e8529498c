"""The report of one or several runs: their tables, figures and dictionaries, as a page and as files for a paper."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from sae import claims
from sae.answers import Answer, AtMatched, Best
from sae.figures import Dictionaries, coefficients
from sae.files import write_atomically
from sae.report import NAME, captions, data, dictionaries, draw, matched, paper
from sae.report.data import label, metrics
from sae.report.dictionaries import Dictionary
from sae.report.page import Page, Table, render
from sae.report.runs import Runs, gather
from sae.report.warnings import warnings
from sae.results import Results
from sae.sweep import Sweep
from sae.types import UserError, count

MOST_ROWS = 40  # of a table in the answer


def build(
    results: Sequence[Results], out: Path | None = None, *, sweep: Sweep | None = None, say: Callable = print
) -> Path:
    """Write the page to `out` (report.html in the first run's folder), the files for a paper to a folder beside it.

    `sweep`: the definition, where it is at hand, for its sources of data. What cannot be shown (data that are not
    there any more, say) is told in the page. Raises UserError where no member is finished or a table is damaged.
    """
    out = out or results[0].folder / NAME
    runs = gather(results)
    flats = [flat for one in results for flat in one.definition["members"]]
    sound, history = runs.sound, data.thin(runs.history)
    along, others = coefficients(flats)
    group = tuple(name for name in ("run", "d_sae", *others) if name in sound)
    group = tuple(dict.fromkeys(group))
    chosen = data.typical(sound, along, group)

    figures = [figure for figure in runs.figures if not isinstance(figure, Dictionaries)] if len(sound) else []
    drawn, kept = [], []
    for figure in figures:
        try:
            drawn.append((figure, draw.draw(figure, sound, history, runs.rates, chosen)))
            kept.append(figure)
        except (UserError, KeyError) as error:  # an arm that is no frontier, a column that an older run lacks
            say(f"report: no {captions.title(figure)!r}: {error}")
    asked = next((figure for figure in runs.figures if isinstance(figure, Dictionaries)), None)
    shown, note = _dictionaries(runs, sound, asked, sweep) if asked and len(sound) else ([], "")

    files = out.with_suffix("")
    page = Page(
        title=" and ".join(runs.names) if len(results) > 1 else results[0].definition["name"],
        question=" / ".join(dict.fromkeys(one.definition.get("question") or "" for one in results)),
        summary=_summary(runs),
        answers=_answers(runs, sound, along, group) if len(sound) else [],
        claims=[claim for one in results for claim in claims.read(one.folder)],
        warnings=[*_unfinished(results), *warnings(runs.members, runs.history, along, group)],
        drawn=drawn,
        dictionaries=shown,
        dictionaries_note=note,
        facts=_facts(runs),
        folder=files.name,
    )
    text = render(page, runs, chosen, history)
    write_atomically(out, lambda file: file.write(text.encode()))
    files.mkdir(exist_ok=True)
    for figure in kept:
        paper.save(paper.paint(figure, sound, history, runs.rates, chosen), files / captions.slug(figure))
    for one in shown:
        if one.image_shape is not None:
            member = str(runs.members.at[one.row, "member"]).replace("/", "-")
            paper.save(paper.dictionary(one), files / f"dictionary-{member}")
    return out


def _dictionaries(
    runs: Runs, members: pd.DataFrame, figure: Dictionaries, sweep: Sweep | None
) -> tuple[list[Dictionary], str]:
    """Dictionaries and the rule by which they are chosen; or none, and why."""
    rows, found, missing = dictionaries.choose(members, figure), [], []
    for results, run in zip(runs.results, runs.names, strict=True):
        of_run = [row for row in rows if len(runs.results) == 1 or members.at[row, "run"] == run]
        try:
            found += dictionaries.look(results, members, of_run, figure, sweep) if of_run else []
        except Exception as error:  # whatever a source of the user's own, or its missing files, may raise
            reason = " ".join(str(error).split()) or type(error).__name__
            missing.append(f"The dictionaries of {results.folder.name} are not shown: {reason}.")
    note = dictionaries.rule(figure) if found else ""
    if found and len(found[0].latents) < members.at[found[0].row, "d_sae"]:
        note += f" At most {figure.latents} latents of each, evenly through their order by firing rate."
    return found, " ".join([note, *missing]).strip()


def _answers(runs: Runs, members: pd.DataFrame, along: Sequence[str], group: Sequence[str]) -> list[Table]:
    """The sweep's own answer, then what is reached at matched values; or means over seeds where nothing is asked."""
    tables, asked = [], [figure for figure in runs.figures if isinstance(figure, AtMatched)]
    for answer in [runs.answer, *asked] if runs.answer else asked:
        try:
            tables.append(_answer(answer, members))
        except UserError:
            continue  # said where the figure is drawn
    if not tables:
        columns = [name for name in metrics(members) if label(name) in ("fvu", "l0", "dead_fraction", "mmcs")]
        axes = [name for name in (*group, *along) if members[name].nunique(dropna=False) > 1]
        means = members.groupby(axes, dropna=False)[columns].mean() if axes else members.set_index("member")[columns]
        tables.append(Table(title="Held out, means over seeds", frame=means.head(MOST_ROWS)))
    return tables


def _answer(answer: Answer, members: pd.DataFrame) -> Table:
    if isinstance(answer, Best):
        return Table(answer.title, answer.table(members), caption=captions.meaning([answer.metric, *answer.also]))
    compared = answer.compare(members)
    if compared.empty:
        raise UserError("no value that the frontiers share")
    interval = "Means over seeds [bootstrap 95 % interval]; –: not reached."
    caption = f"{interval} {captions.meaning([*answer.metrics, answer.matched])}"
    return Table(answer.title, matched.table(compared, answer), matched.statements(compared, answer), caption)


def _unfinished(results: Sequence[Results]) -> list[str]:
    part = lambda one: f"{sum(c.finished for c in one.cohorts)} of {count(len(one.cohorts), 'cohort')}"
    return [f"{one.folder.name} is not finished: {part(one)}." for one in results if not one.finished]


def _summary(runs: Runs) -> str:
    """What was done, in a line."""
    states = [cohort.state for one in runs.results for cohort in one.cohorts]
    seconds = _duration(sum(state.get("seconds", 0) for state in states))
    sources = ", ".join(dict.fromkeys(flat["data"] for one in runs.results for flat in one.definition["members"]))
    n = sum(len(one.definition["members"]) for one in runs.results)
    return f"{count(n, 'sparse autoencoder')} on {sources}, trained in {count(len(states), 'program')}, {seconds}."


def _facts(runs: Runs) -> list[tuple[str, str]]:
    """What was run, where, with what, and how to run it again; values are HTML."""
    facts: list[tuple[str, str]] = []
    for one, run in zip(runs.results, runs.names, strict=True):
        definition = one.definition
        flats, device = definition["members"], definition["device"]
        states = [cohort.state for cohort in one.cohorts]
        training = sum(state.get("seconds", 0) for state in states)
        compiling = sum(state.get("compile_seconds", 0) for state in states)
        of_run = runs.members if len(runs.results) == 1 else runs.members[runs.members["run"] == run]
        diverged = int((of_run["status"] == "diverged").sum())
        packages = [f"{name} {version}" for name, version in definition["packages"].items() if version]
        steps = sorted({flat["n_steps"] for flat in flats})
        batches = sorted({flat["batch_size"] for flat in flats})
        text = lambda words: "".join(c if c not in "<&" else {"<": "&lt;", "&": "&amp;"}[c] for c in words)
        facts += [("run", f"<b>{text(run)}</b>")] if len(runs.results) > 1 else []
        facts += [
            ("members", f"{len(flats)}" + (f", {diverged} diverged" if diverged else "")),
            ("cohorts", f"{len(states)}, each one compiled program"),
            ("training", f"{' or '.join(map(str, steps))} steps of {' or '.join(map(str, batches))} examples"),
            ("data", text(", ".join(dict.fromkeys(str(flat["data"]) for flat in flats)))),
            ("wall time", f"{_duration(training)} of training and evaluation, {_duration(compiling)} of compiling"),
            ("device", text(f"{device['count']} × {device['kind']} ({device['platform']}), host {definition['host']}")),
            ("started", definition["started"]),
            ("versions", text(", ".join([f"Python {definition['python']}", *packages]))),
            ("commit", definition.get("git_commit") or "none"),
        ]
        if command := definition.get("command"):
            facts.append(("repeat", f"<pre>{text(shlex.join(command))}</pre>"))
    return facts


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"

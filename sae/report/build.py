"""The report of one or several runs: their tables, figures and dictionaries, as a page and as files for a paper."""

import dataclasses
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from sae.core import console
from sae.core.files import remove_leftovers, write_atomically
from sae.core.text import count
from sae.core.types import UserError
from sae.report import FEATURES, NAME, captions, data, dictionaries, draw, features_page, made, matched, paper
from sae.report.agreements import Agreements, look
from sae.report.data import brief, held_out, label, metrics
from sae.report.dictionaries import Dictionary
from sae.report.page import Fact, Page, Table, render
from sae.report.runs import Runs, gather
from sae.report.warnings import warnings
from sae.store.results import Results
from sae.study import claims
from sae.study.answers import Answer, AtMatched, Best
from sae.study.figures import AgreementMatrix, Dictionaries, Figure, complete
from sae.study.replicates import over_seeds
from sae.study.sweep import Sweep

MOST_ROWS = 40  # rows of a table in the answer, at most
Say = Callable[[str], object]


def build(
    results: Sequence[Results], out: Path | None = None, *, sweep: Sweep | None = None, say: Say = console.say
) -> Path:
    """Write the page to `out` and the files for a paper to a folder beside it; return the page's path.

    `out` is by default report.html in the first run's folder. `sweep` is the definition, where the caller has it, for
    its sources of data. The page says what it cannot show, such as data that are no longer there. Raises UserError
    where no member is finished or a table is damaged.
    """
    out = out or results[0].folder / NAME
    shown = collect(results, sweep, say)
    write_page(shown, out, _features(shown, out, say))
    write_figures(shown, out.with_suffix(""))
    if len(results) == 1 and out == results[0].folder / NAME:
        made.note(results[0])
    return out


@dataclasses.dataclass(frozen=True)
class Shown:
    """The contents of a report: the runs, their figures, and the few members that some figures show."""

    runs: Runs
    history: pd.DataFrame  # with fewer log points
    chosen: Sequence[int]  # rows of the members shown at first
    drawn: Sequence[tuple[Figure, go.Figure]]  # completed: see `figures.complete`
    agreements: Mapping[AgreementMatrix, Agreements]  # what those figures show
    dictionaries: Sequence[Dictionary]
    note: str  # which dictionaries are shown, or why none are
    missing: Sequence[str]  # figures that could not be drawn, and why


def collect(results: Sequence[Results], sweep: Sweep | None = None, say: Say = console.say) -> Shown:
    """Read tables, draw figures, look at dictionaries. `say` gets a line for each figure that cannot be drawn."""
    runs = gather(results)
    members, history = brief(runs.sound), data.thin(runs.history)
    chosen = data.typical(members, runs.along, runs.group)
    drawn: list[tuple[Figure, go.Figure]] = []
    looked_at, note = [], ""
    agreements: dict[AgreementMatrix, Agreements] = {}
    missing: list[str] = []
    for figure in runs.figures if len(members) else ():
        try:
            if isinstance(figure, Dictionaries):
                looked_at, note = _dictionaries(runs, members, figure, sweep)
            elif isinstance(figure, AgreementMatrix):
                agreements[figure] = look(results[0], figure)
                drawn.append((figure, draw.agreement(agreements[figure], figure, members)))
            else:
                figure = complete(figure, members)
                shown = draw.draw(figure, members, history, runs.rates, chosen)
                if draw.is_empty(shown):
                    raise UserError("no member has the numbers")
                drawn.append((figure, shown))
        except Exception as error:  # members that form no frontier, tables of another program that lack anything
            missing.append(f"{captions.title(figure)}: {_reason(error)}")
            say(f"report: no figure {missing[-1]}")
    return Shown(runs, history, chosen, drawn, agreements, looked_at, note, missing)


def write_page(shown: Shown, out: Path, features: Path | None = None) -> None:
    """Write the HTML file. It links to the files that `write_figures` writes to a folder of the same name.

    features: the page of features beside it.
    """
    runs, results = shown.runs, shown.runs.results
    page = Page(
        title=" and ".join(runs.names) if len(results) > 1 else results[0].definition["name"],
        question=" / ".join(dict.fromkeys(one.definition.get("question") or "" for one in results)),
        summary=_summary(runs),
        answers=_answers(runs) if len(runs.sound) else [],
        claims=[claim for one in results for claim in claims.read(one.folder)],
        warnings=[*_unfinished(results), *warnings(brief(runs.members), runs.history, runs.along, runs.group)],
        drawn=shown.drawn,
        dictionaries=shown.dictionaries,
        recovery=_recovery(shown.dictionaries),
        dictionaries_note=shown.note,
        missing=shown.missing,
        facts=_facts(runs),
        folder=out.stem,
        features="" if features is None else features.name,
    )
    text = render(page, runs, shown.chosen, shown.history)
    write_atomically(out, lambda file: file.write(text.encode(errors="replace")))


def write_figures(shown: Shown, folder: Path) -> None:
    """Write a PNG and an SVG of every figure and every dictionary of images."""
    runs = shown.runs
    folder.mkdir(exist_ok=True)
    remove_leftovers(folder)
    for figure, _ in shown.drawn:
        if isinstance(figure, AgreementMatrix):
            painted = paper.agreement(shown.agreements[figure])
        else:
            painted = paper.paint(figure, runs.sound, shown.history, runs.rates, shown.chosen)
        paper.save(painted, folder / captions.slug(figure))
    for one in shown.dictionaries:
        if one.image_shape is not None:
            paper.save(paper.dictionary(one, one.image_shape), folder / one.member.replace(" ", "-").replace("/", "-"))


def _features(shown: Shown, out: Path, say: Say) -> Path | None:
    """Write the page of features of a run on activations of a language model; a failure costs a line."""
    runs = shown.runs
    if len(runs.results) > 1 or not len(runs.sound):
        return None
    name = FEATURES if out.name == NAME else f"{out.stem}-{FEATURES}"
    try:
        return features_page.write(runs.results[0], runs, out.with_name(name), out.name, say)
    except Exception as error:  # data that are gone, weights that are damaged, a full disk
        say(f"report: no page of features: {_reason(error)}")
        return None


def _dictionaries(
    runs: Runs, members: pd.DataFrame, figure: Dictionaries, sweep: Sweep | None
) -> tuple[list[Dictionary], str]:
    """(dictionaries, the rule by which they were chosen), or ([], the reason why there are none)."""
    rows = dictionaries.choose(members, figure)
    found: list[Dictionary] = []
    missing: list[str] = []
    for results, run in zip(runs.results, runs.names, strict=True):
        wanted = [row for row in rows if len(runs.results) == 1 or members.at[row, "run"] == run]
        try:
            found += dictionaries.look(results, members, wanted, figure, sweep) if wanted else []
        except Exception as error:  # a user's own source, or missing files, may raise anything
            missing.append(f"The dictionaries of {results.folder.name} are not shown: {_reason(error)}.")
    note = dictionaries.rule(figure) if found else ""
    if found and len(found[0].latents) < members.at[found[0].row, "d_sae"]:
        note += f" At most {figure.latents} latents of each are shown, evenly spaced in the order of firing rates."
    return found, " ".join([note, *missing]).strip()


def _reason(error: Exception) -> str:
    """Why something is not shown, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return f"there is no {text}" if isinstance(error, KeyError) else text


def _recovery(shown: Sequence[Dictionary]) -> go.Figure | None:
    """Histograms of cosines with the true features, where these are known."""
    known = {one.member: one.features for one in shown if one.features is not None}
    found = {name: (table["cosine"].to_numpy(), table["chance"].to_numpy()) for name, table in known.items()}
    return draw.recovery(found) if found else None


def _answers(runs: Runs) -> list[Table]:
    """The sweep's own answer, then what is reached at matched values; without either, means over seeds."""
    members = brief(runs.sound)
    asked: list[Answer] = [figure for figure in runs.figures if isinstance(figure, AtMatched)]
    tables: list[Table] = []
    for answer in [runs.answer, *asked] if runs.answer else asked:
        try:
            tables.append(_answer(answer, members))
        except Exception:
            continue  # `collect` has said why
    columns = [name for name in metrics(members) if label(name) in ("fvu", "l0", "dead_fraction", "mmcs")]
    if not tables and columns:
        means, frame = held_out(members, columns)
        tables.append(Table(title=f"Held out, {means}", frame=frame.head(MOST_ROWS)))
    return tables


def _answer(answer: Answer, members: pd.DataFrame) -> Table:
    means = captions.sentence(over_seeds(members))
    if isinstance(answer, Best):
        caption = f"{means} {captions.meaning([answer.metric, *answer.also], members)}"
        return Table(answer.title, answer.table(members), caption=caption)
    answer = answer.complete(members)
    compared = answer.compare(members)
    interval = "Means over the seeds that reach it [bootstrap 95 % interval]." if compared["seeds"].max() > 1 else means
    interval += " –: not reached."
    caption = f"{interval} {captions.meaning([*answer.metrics, answer.matched], members)}"
    by_value = matched.statements(compared, answer)
    middle = by_value.pop(list(by_value)[len(by_value) // 2])
    others = [sentence for sentences in by_value.values() for sentence in sentences]
    return Table(answer.title, matched.table(compared, answer), middle, others, caption)


def _unfinished(results: Sequence[Results]) -> list[str]:
    part = lambda one: f"{sum(c.finished for c in one.cohorts)} of {count(len(one.cohorts), 'cohort')}"
    return [f"{one.folder.name} is not finished: {part(one)}." for one in results if not one.finished]


def _summary(runs: Runs) -> str:
    """One line that says what was done."""
    flats = [flat for one in runs.results for flat in one.definition["members"]]
    states = [cohort.state for one in runs.results for cohort in one.cohorts]
    seconds, sources = sum(state.get("seconds", 0) for state in states), _values(flats, "data", ", ")
    on = f" on {sources}" if sources else ""
    took = f", {_duration(seconds)}" if seconds else ""
    if all(one.definition.get("evaluated") for one in runs.results):
        return f"{count(len(flats), 'sparse autoencoder')}{on}, evaluated{took}."
    return f"{count(len(flats), 'sparse autoencoder')}{on}, trained in {count(len(states), 'program')}{took}."


def _facts(runs: Runs) -> list[Fact]:
    """What was run, where, with which versions, and the command that repeats it; what is not known is left out."""
    facts: list[Fact] = []
    for one, run in zip(runs.results, runs.names, strict=True):
        definition = one.definition
        flats, device = definition["members"], {"kind": "unknown"} | definition.get("device", {})
        states = [cohort.state for cohort in one.cohorts]
        training = sum(state.get("seconds", 0) for state in states)
        compiling = sum(state.get("compile_seconds", 0) for state in states)
        members = runs.members if len(runs.results) == 1 else runs.members[runs.members["run"] == run]
        diverged = int((members["status"] == "diverged").sum())
        packages = [f"{name} {version}" for name, version in definition.get("packages", {}).items() if version]
        steps, batches = _values(flats, "n_steps"), _values(flats, "batch_size")
        machine = "" if device["kind"] == "unknown" else f"{device.get('count', 1)} × {device['kind']}"
        machine += f" ({device['platform']})" if machine and "platform" in device else ""
        python = [f"Python {python}"] if (python := definition.get("python")) not in (None, "unknown") else []
        times = f"{_duration(training)} of training and evaluation, {_duration(compiling)} of compiling"
        facts += [Fact("run", run, "head")] if len(runs.results) > 1 else []
        known = {
            "members": f"{len(flats)}" + (f", {diverged} diverged" if diverged else ""),
            "cohorts": "" if definition.get("evaluated") else f"{len(states)}, each one compiled program",
            "training": f"{steps} steps of {batches} examples" if steps and batches else "",
            "data": _values(flats, "data", ", "),
            "wall time": times if training and not definition.get("evaluated") else "",
            "device": ", ".join(filter(None, [machine, f"host {host}" if (host := definition.get("host")) else ""])),
            "started": definition.get("started"),
            "versions": ", ".join([*python, *packages]),
            "commit": definition.get("git_commit") or "none",
        }
        facts += [Fact(name, text) for name, text in known.items() if text]
        if command := definition.get("command"):
            facts.append(Fact("repeat", shlex.join(command), "command"))
    return facts


def _values(flats: Sequence[Mapping[str, Any]], name: str, between: str = " or ") -> str:
    """The values that members have of a name, in their order; "" where none has one."""
    found = dict.fromkeys(flat[name] for flat in flats if flat.get(name) is not None)
    return between.join(map(str, sorted(found) if name != "data" else found))


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"

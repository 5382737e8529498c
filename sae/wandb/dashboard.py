"""A sweep's figures as W&B's: `sae dashboard DIR` saves a workspace and a report with the same panels.

Both are made of the definitions in `figures.py`, of which the local report is made too: `sections` says what each
figure is in W&B. W&B draws members from their runs, and has no heatmap; those are tables of the sweep's own run.
"""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sae.core.files import write_json
from sae.core.types import UserError
from sae.store.results import Results
from sae.study import claims
from sae.study.answers import AtMatched, short
from sae.study.figures import Curves, Dictionaries, FiringRates, Frontier, Heatmap, Parallel, Profile
from sae.wandb.server import Server, connect, one_line
from sae.wandb.sink import heatmap_key, pivot
from sae.wandb.sync import place

COLUMNS = 24  # of a report's grid
WORKSPACE, REPORT = "wandb-workspace.json", "wandb-report.json"


@dataclasses.dataclass(frozen=True)
class Options:
    """Where to save, in W&B."""

    entity: str | None = None
    """The W&B entity, a person or a team; the key's own if not given."""
    project: str | None = None
    """The W&B project; that of the run if not given."""
    dry_run: bool = False
    """Write the specs as JSON into the folder instead."""


@dataclasses.dataclass(frozen=True)
class Section:
    """Panels under one heading: over the runs of members, or over the run of the sweep itself."""

    title: str
    caption: str
    panels: list
    of_sweep: bool = False
    text: str = ""  # Markdown, for the report


def dashboard(folder: Path, options: Options, say: Callable[[str], None] = print) -> None:
    """Save a workspace and a report of a run's folder, or write their specs. Raises UserError."""
    try:
        import wandb_workspaces.reports.v2  # noqa: F401
    except ImportError:
        raise UserError("dashboard needs wandb-workspaces; pip install -e '.[dashboard]'") from None
    results = Results(folder)
    entity, project = place(results, options)
    if options.dry_run:
        server = Server(entity or "", project, "", None)
        for name, made in ((WORKSPACE, workspace(results, server)), (REPORT, report(results, server, saved=False))):
            write_json(results.folder / name, spec(made))
            say(f"wrote {results.folder / name}")
        return
    server = connect(entity, project, write=True)
    if not server.runs({"group": results.definition["name"]}):
        raise UserError(
            f"{server.path} has no runs of {results.definition['name']!r} to show; upload them: sae sync {folder}"
        )
    for what, make in (("workspace", workspace), ("report", report)):
        try:
            say(f"{what}: {make(results, server).save().url}")
        except Exception as error:  # wandb's own, requests', pydantic's
            raise UserError(f"W&B at {server.host} did not take the {what}: {one_line(error)}") from None


def spec(made: Any) -> dict:
    """The JSON of which W&B makes a workspace or a report."""
    return json.loads(made._to_model().model_dump_json(by_alias=True, exclude_none=True))


def workspace(results: Results, server: Server) -> Any:
    """A W&B workspace of a run."""
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr

    made = [section for section in sections(results) if section.panels]
    return ws.Workspace(
        entity=server.entity,
        project=server.project,
        name=results.definition["name"],
        sections=[ws.Section(name=s.title, panels=s.panels, is_open=True) for s in made],
        settings=ws.WorkspaceSettings(x_axis="train/step", max_runs=100),
        runset_settings=ws.RunsetSettings(filters=expr.And(expr.Metric("Group") == results.definition["name"])),
    )


def report(results: Results, server: Server, saved: bool = True) -> Any:
    """A W&B report of a run; not `saved`, it is of no project yet, for which a server would have to be asked."""
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces import expr

    group, question = results.definition["name"], results.definition.get("question") or ""
    where = {"entity": server.entity, "project": server.project} if saved else {}

    def grid(section: Section) -> Any:
        job = expr.Metric("JobType") == ("sweep" if section.of_sweep else "train")
        runs = wr.Runset(name=group, filters=expr.And(expr.Metric("Group") == group, job), **where)
        for i, panel in enumerate(section.panels):
            half = COLUMNS if len(section.panels) == 1 else COLUMNS // 2
            panel.layout = wr.Layout(x=half * i % COLUMNS, y=10 * (half * i // COLUMNS), w=half, h=10)
        return wr.PanelGrid(runsets=[runs], panels=section.panels)

    blocks = [wr.P(question)] if question else []
    for section in sections(results):
        blocks += [wr.H2(section.title), wr.P(section.caption)]
        blocks += [wr.MarkdownBlock(section.text)] if section.text else []
        blocks += [grid(section)] if section.panels else []
    blocks += [wr.H2("Again"), wr.P(f"Local report and tables: {results.folder.name}. W&B group: {group}.")]
    return wr.Report(
        entity=server.entity,
        project=server.project,
        title=group[:128],
        description=question,
        blocks=blocks,
        width="fluid",
    )


def sections(results: Results) -> list[Section]:
    """What a run's figures are in W&B."""
    made, figures = [], results.figures
    heatmaps = [figure for figure in figures if isinstance(figure, Heatmap)]
    members = results.members if any(cohort.finished for cohort in results.cohorts) else pd.DataFrame()
    if answer := _answer(results, members):
        made.append(answer)
    if section := _claims(results.folder):
        made.append(section)
    for figure in figures:
        if isinstance(figure, Heatmap):
            made += [_heatmaps(heatmaps, members)] if figure is heatmaps[0] else []
        elif section := _section(figure, results):
            made.append(section)
    table = _panels().WeavePanelSummaryTable(table_name="results")
    made.append(Section("Members", "Every member: hyper-parameters and held-out numbers.", [table], of_sweep=True))
    return made


def _section(figure: Any, results: Results) -> Section | None:
    wr, (scatter_plot, parallel_plot) = _panels(), _plots()
    match figure:
        case Frontier():
            title, colour = f"{short(figure.y)} against {short(figure.x)}", figure.group[0]
            caption = f"A point is a member, on held-out examples; its colour is {colour}. Both axes are logarithmic."
            scatter = scatter_plot(
                title=title, x=_metric(figure.x), y=_metric(figure.y), z=_config(colour), log_x=True, log_y=True
            )
            return Section("Frontier", caption, [scatter])
        case Profile():
            title = f"{short(figure.metric)} along {figure.x}"
            scatter = scatter_plot(
                title=title,
                x=_config(figure.x),
                y=_metric(figure.metric),
                z=_config(figure.group[0]),
                log_x=_spans(results, figure.x),
            )
            return Section("Profile", f"A point is a member; its colour is {figure.group[0]}.", [scatter])
        case Parallel():
            hyper = [
                wr.ParallelCoordinatesPlotColumn(_config(name), display_name=name, log=_spans(results, name))
                for name in figure.hyper
            ]
            metrics = [
                wr.ParallelCoordinatesPlotColumn(_metric(name), display_name=short(name)) for name in figure.metrics
            ]
            plot = parallel_plot(title="members", columns=[*hyper, *metrics])
            return Section(
                "Parallel coordinates", "A line is a member: hyper-parameters, then held-out numbers.", [plot]
            )
        case Curves():
            plots = [
                wr.LinePlot(
                    title=name, x="train/step", y=[name], groupby="d_sae.value", log_y=name in ("train/fvu", "train/l0")
                )
                for name in figure.metrics
            ]
            caption = (
                "Over training, each point over the steps since the one before; a line per width, over its members."
            )
            return Section("Curves", caption, plots)
        case FiringRates():
            bars = wr.MediaBrowser(title="log10 firing rate", media_keys=["eval/log10_firing_rate"])
            caption = "How many latents fire how often on held-out examples; those that never do are in the first bin."
            return Section("Firing rates", caption, [bars])
        case Dictionaries():
            if not any(cohort.state.get("image_shape") for cohort in results.cohorts):
                return None
            images = wr.MediaBrowser(title="dictionaries", media_keys=["eval/dictionary", "train/dictionary"])
            caption = (
                "Decoder rows, the most active first, the dead faded; during training in the order of the latents."
            )
            return Section("Dictionaries", caption, [images])
    return None  # a table that stands above, or one that W&B cannot show


def _heatmaps(heatmaps: Sequence[Heatmap], members: pd.DataFrame) -> Section:
    panels, text = [], []
    for heatmap in heatmaps:
        for arm in heatmap.along:
            key = heatmap_key(heatmap, arm)
            panels.append(_panels().WeavePanelSummaryTable(table_name=key))
            if len(members):
                text.append(
                    f"**{short(heatmap.metric)}** over {heatmap.y} and {arm}\n\n"
                    + _markdown(pivot(members, heatmap, arm))
                )
    return Section(
        "Heatmaps", "Means over members that differ in nothing else but the seed.", panels, True, "\n\n".join(text)
    )


def _answer(results: Results, members: pd.DataFrame) -> Section | None:
    answer = results.answer
    if answer is None or not len(members) or (isinstance(answer, AtMatched) and not answer.at):
        return None
    table = answer.table(members[members["status"] == "finished"]).reset_index()
    return Section("Answer", f"{answer.title}, held out.", [], text=_markdown(table))


def _claims(folder: Path) -> Section | None:
    decided = claims.read(folder)
    if not decided:
        return None
    known = all(claim.get("later") is not None for claim in decided)
    what = "Fixed before the first run, but for those that are said to be later." if known else ""
    return Section("Claims", what, [], text=_markdown(claims.table(decided)))


def _markdown(table: pd.DataFrame) -> str:
    """A data frame as a table in Markdown."""
    cell = lambda v: f"{v:.3g}" if isinstance(v, float) else " ".join(map(str, v)) if isinstance(v, tuple) else str(v)
    line = lambda cells: "| " + " | ".join(cell(c).replace("|", "\\|").replace("\n", " ") for c in cells) + " |"
    rows = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "\n".join(map(line, rows))


def _spans(results: Results, name: str) -> bool:
    """Whether a hyper-parameter's values are worth a log axis."""
    values = [member.get(name) for member in results.definition["members"]]
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)]
    return len(numbers) == len(values) and min(numbers) > 0 and max(numbers) / min(numbers) >= 10


def _metric(name: str) -> Any:
    return _panels().SummaryMetric(name)


def _config(name: str) -> Any:
    return _panels().Config(name)


def _panels() -> Any:
    import wandb_workspaces.reports.v2 as wr

    return wr


@functools.cache
def _plots() -> tuple[type, type]:
    """(ScatterPlot, ParallelCoordinatesPlot) for configs like ours, in which "penalty.l1" is one name with a dot.

    wandb-workspaces takes a dot for a step into a nested config, "penalty.value.l1"; ours is at "penalty.l1.value".
    """
    wr = _panels()

    class Scatter(wr.ScatterPlot):
        def _to_model(self):
            model = super()._to_model()
            for axis in ("x_axis", "y_axis", "z_axis"):
                setattr(model.config, axis, _one_name(getattr(model.config, axis)))
            return model

    class ParallelCoordinates(wr.ParallelCoordinatesPlot):
        def _to_model(self):
            model = super()._to_model()
            for column in model.config.columns:
                column.accessor = _one_name(column.accessor)
            return model

    return Scatter, ParallelCoordinates


def _one_name(accessor: str | None) -> str | None:
    """ "config:penalty.value.l1" -> "config:penalty.l1.value"."""
    return re.sub(r"^config:([^.]+)\.value\.(.+)$", r"config:\1.\2.value", accessor) if accessor else accessor

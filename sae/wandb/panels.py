"""What a sweep's figures are in W&B: sections of panels, for workspaces and reports.

`sections` translates the definitions in `sae/study/figures.py`, which the local report draws too. W&B draws members
from their runs. It has no heatmap, so heatmaps are tables of the sweep's own run.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sae.core.text import in_markdown
from sae.store.results import Results
from sae.study import claims
from sae.study.answers import AtMatched
from sae.study.figures import Curves, Dictionaries, FiringRates, Frontier, Heatmap, Parallel, Profile
from sae.study.frontiers import short
from sae.wandb.sink import heatmap_key, pivot


@dataclasses.dataclass(frozen=True)
class Section:
    """Panels under one heading: over the runs of members or, with `of_sweep`, over the sweep's own run."""

    title: str
    caption: str
    panels: list[Any]
    of_sweep: bool = False
    text: str = ""  # Markdown, for the report


def sections(results: Results) -> list[Section]:
    """The sections of a run: answer, claims, figures, and a table of the members."""
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
                "Over training, each point over the steps since the one before (loss and grad_norm: of its last step); "
                "a line per width, over its members."
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
    return None  # W&B cannot show it, or it is a table of another section


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
    """A data frame as a Markdown table."""
    cell = lambda v: f"{v:.3g}" if isinstance(v, float) else " ".join(map(str, v)) if isinstance(v, tuple) else str(v)
    line = lambda cells: "| " + " | ".join(in_markdown(cell(c)) for c in cells) + " |"
    rows = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "\n".join(map(line, rows))


def _spans(results: Results, name: str) -> bool:
    """Whether a hyper-parameter deserves a log axis: positive numbers that span a factor of 10."""
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
    """(ScatterPlot, ParallelCoordinatesPlot) that take "penalty.l1" for one name with a dot, as in our configs.

    wandb-workspaces takes the dot for a step into a nested config and asks for "penalty.value.l1". Ours is at
    "penalty.l1.value".
    """
    wr = _panels()

    class Scatter(wr.ScatterPlot):
        def _to_model(self) -> Any:
            model = super()._to_model()
            for axis in ("x_axis", "y_axis", "z_axis"):
                setattr(model.config, axis, _one_name(getattr(model.config, axis)))
            return model

    class ParallelCoordinates(wr.ParallelCoordinatesPlot):
        def _to_model(self) -> Any:
            model = super()._to_model()
            for column in model.config.columns:
                column.accessor = _one_name(column.accessor)
            return model

    return Scatter, ParallelCoordinates


def _one_name(accessor: str | None) -> str | None:
    """ "config:penalty.value.l1" -> "config:penalty.l1.value"."""
    return re.sub(r"^config:([^.]+)\.value\.(.+)$", r"config:\1.\2.value", accessor) if accessor else accessor

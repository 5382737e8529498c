"""A run's figures in W&B: `sae dashboard DIR` saves a workspace and a report with the same panels."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae.core import console
from sae.core.files import write_json
from sae.core.types import UserError
from sae.store.results import Results
from sae.wandb.panels import Section, sections
from sae.wandb.server import Server, connect, one_line
from sae.wandb.sync import place

COLUMNS = 24  # the width of a report's grid
WORKSPACE, REPORT = "wandb-workspace.json", "wandb-report.json"


@dataclasses.dataclass(frozen=True)
class Options:
    """Where in W&B to save."""

    entity: str | None = None
    """The W&B entity, a person or a team; by default the one of the API key."""
    project: str | None = None
    """The W&B project; by default the one of the run."""
    dry_run: bool = False
    """Write the specs as JSON into the folder, and save nothing in W&B."""


def dashboard(folder: Path, options: Options, say: Callable[[str], None] = console.say) -> None:
    """Save a workspace and a report of a run's folder in W&B, or write their specs. Raises UserError."""
    try:
        import wandb_workspaces.reports.v2  # noqa: F401
    except ImportError:
        raise UserError("dashboard needs wandb-workspaces; pip install -e '.[dashboard]'") from None
    results = Results(folder)
    entity, project = place(results, options.entity, options.project)
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
        except Exception as error:  # wandb's own, requests' or pydantic's
            raise UserError(f"W&B at {server.host} did not take the {what}: {one_line(error)}") from None


def spec(made: Any) -> dict[str, Any]:
    """The JSON from which W&B makes a workspace or a report."""
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
    """A W&B report of a run. Without `saved` its runs name no project, as that would take a server."""
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces import expr

    group, question = results.definition["name"], results.definition.get("question") or ""
    where: dict[str, Any] = {"entity": server.entity, "project": server.project} if saved else {}

    def grid(section: Section) -> Any:
        job = expr.Metric("JobType") == ("sweep" if section.of_sweep else "train")
        runs = wr.Runset(name=group, filters=expr.And(expr.Metric("Group") == group, job), **where)
        for i, panel in enumerate(section.panels):
            half = COLUMNS if len(section.panels) == 1 else COLUMNS // 2
            panel.layout = wr.Layout(x=half * i % COLUMNS, y=10 * (half * i // COLUMNS), w=half, h=10)
        return wr.PanelGrid(runsets=[runs], panels=section.panels)

    blocks: list[Any] = [wr.P(question)] if question else []
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

"""`sae agent-run`: the one run that a `wandb agent` asks for."""

from pathlib import Path

from sae.cli import run
from sae.cli.command import Command
from sae.core.console import Console
from sae.core.types import UserError
from sae.report.plan import describe_plan
from sae.wandb import sweeps


def main(argv: list[str]) -> int:
    """Run the member that the agent's flags and environment name, as a run of the agent's sweep."""
    if not argv or argv[0].startswith("-"):
        return run.without_file(argv, COMMAND)
    path = Path(argv[0])
    definition, tokens, trial = sweeps.read_trial(run.load(path), argv[1:])
    sweep, options = run.read(path, definition, tokens)
    options = options.replace(
        wandb="online" if options.wandb == "auto" else options.wandb,
        out=options.out or sweeps.folder(sweep.name, trial),
        report=False,
    )
    console = Console()
    if options.dry_run:
        describe_plan(sweep, console, options.lanes, options.pieces)
        return 0
    if options.launcher != "none":
        raise UserError(f"launcher: got {options.launcher} with a W&B agent's run, allowed: none")
    if options.coordinator:
        raise UserError("coordinator: got it with a W&B agent's run, allowed: alone")
    return run.carry_out(path, argv, sweep, options, console, trial)


COMMAND = Command("agent-run FILE [--FIELD=VALUE ...]", "Train the one run that a `wandb agent` asks for.", main)

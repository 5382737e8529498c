"""`sae claims`: decide runs' claims again, without training."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

import sae
from sae.analysis import ask
from sae.cli.command import Command, read
from sae.core.console import Console, show
from sae.core.types import UserError
from sae.report.printing import print_claims
from sae.study import claims
from sae.study import definition_files as loading
from sae.study.sweep import as_sweep


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The runs, and how their claims are shown."""

    paths: Annotated[Positional[tuple[Path, ...]], arg(metavar="DIR... [FILE]")]
    """The folders of runs, or one folder and the definition file whose claims count; the run's own if not given."""
    check: bool = False
    """Exit with 2 where a claim fails."""
    markdown: bool = False
    """Print tables in Markdown, for a page or a paper."""


def main(argv: list[str]) -> int:
    """Decide and print claims -> exit code: 2 where --check was given and one fails."""
    options = read(Options, argv, COMMAND)
    files = [path for path in options.paths if path.suffix == ".py"]
    folders = [path for path in options.paths if path.suffix != ".py"]
    if not folders or len(files) > 1 or (files and len(folders) > 1):
        got = " ".join(map(str, options.paths)) or "no folder of a run"
        raise UserError(f"claims: got {got}, allowed: folders of runs, or one folder and a definition file")
    decided = {folder: _decided(folder, *files) for folder in folders}
    if options.markdown:
        show("\n\n".join(claims.markdown(of_run) for of_run in decided.values()))
        fails = any(claim["verdict"] == "fails" for of_run in decided.values() for claim in of_run)
        return 2 if options.check and fails else 0
    heads = [sae.load(folder).definition["name"] for folder in folders] if len(folders) > 1 else [""]
    return print_claims(dict(zip(heads, decided.values(), strict=True)), Console(), options.check)


def _decided(folder: Path, path: Path | None = None) -> list[dict[str, Any]]:
    """The claims of a run's definition file, or of another, in the form of claims.json."""
    results = sae.load(folder)
    if path is None:
        command = results.definition.get("command", [])
        path = Path(command[2]) if len(command) > 2 else None
        if path is None or not path.exists():
            raise UserError(f"{folder}: its definition file {path or ''} is not here; name it: sae claims DIR FILE")
        if results.folder.resolve() in path.resolve().parents:  # a folder is data: what lies in it is not run
            raise UserError(f"{folder}: its definition file {path} lies inside it; name it: sae claims DIR FILE")
    sweep = as_sweep(loading.load_file(path))
    if not sweep.claims:
        raise UserError(f"{path} makes no claims; allowed: a sweep with claims=(Claim(...), ...)")
    if results.finished:
        ask.settle(sweep.measures, results)
    return claims.settle(sweep.claims, results)


COMMAND = Command("claims DIR... [FILE] [--check]", "Decide runs' claims again, without training.", main)

"""`sae claims`: decide runs' claims again, without training."""

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

import sae
from sae.analysis import ask
from sae.cli.command import Command, read
from sae.core.console import Console, show
from sae.core.files import sha256
from sae.core.text import one_line
from sae.core.types import UserError
from sae.report import data
from sae.report.printing import print_claims
from sae.store.folder import held
from sae.study import claims
from sae.study import definition_files as loading
from sae.study.sweep import as_sweep


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The runs, and how their claims are shown."""

    paths: Annotated[Positional[tuple[Path, ...]], arg(metavar="DIR... [FILE...]")]
    """The folders of runs, and definition files. The claims of a run are those of the file that it began with, known by
    its checksum, or for one folder and one file of that file; a file of the checkout need not be named."""
    check: bool = False
    """Exit with 2 where a claim fails."""
    markdown: bool = False
    """Print tables in Markdown, for a page or a paper."""


def main(argv: list[str]) -> int:
    """Decide and print claims -> exit code: 2 where --check was given and one fails."""
    options = read(Options, argv, COMMAND)
    files = [path for path in options.paths if path.suffix == ".py"]
    folders = [path for path in options.paths if path.suffix != ".py"]
    if not folders:
        got = " ".join(map(str, options.paths)) or "no folder of a run"
        raise UserError(f"claims: got {got}, allowed: folders of runs, and the definition files of their claims")
    runs = [sae.load(folder) for folder in folders]
    paths = files if len(files) == len(runs) == 1 else [_file(results, files) for results in runs]
    decided = [_decided(results, path) for results, path in zip(runs, paths, strict=True)]
    if options.markdown:
        show("\n\n".join(claims.markdown(of_run) for of_run in decided))
        fails = any(claim["verdict"] == "fails" for of_run in decided for claim in of_run)
        return 2 if options.check and fails else 0
    heads = data.unique([results.definition["name"] for results in runs]) if len(runs) > 1 else [""]
    return print_claims(dict(zip(heads, decided, strict=True)), Console(), options.check)


def _file(results: sae.Results, named: list[Path]) -> Path:
    """The file that a run began with, by its checksum, among those that are named and those of the checkout.

    A run's folder is data, so it cannot name the code that decides its claims. Raises UserError.
    """
    wanted = results.definition.get("file_sha256")
    found = [path for path in [*named, *loading.shipped()] if path.is_file() and sha256(path) == wanted]
    if found:
        return found[0]
    words = results.definition.get("command", [])[2:3]
    fits = lambda word: word.endswith(".py") and one_line(word) == word
    inside = lambda word: results.folder.resolve() in Path(word).resolve().parents
    path = next((word for word in words if fits(word) and not inside(word)), "FILE.py")
    fix = f"sae claims {shlex.quote(str(results.folder))} {shlex.quote(path)}"
    raise UserError(f"{results.folder}: its definition file is not one of this checkout, as it was; name it: {fix}")


def _decided(results: sae.Results, path: Path) -> list[dict[str, Any]]:
    """The claims of a definition file, decided on a run, in the form of claims.json."""
    sweep = as_sweep(loading.load_file(path))
    if not sweep.claims:
        raise UserError(f"{path} makes no claims; allowed: a sweep with claims=(Claim(...), ...)")
    with held(results.folder):
        if results.finished:
            ask.settle(sweep.measures, results)
        return claims.settle(sweep.claims, results)


COMMAND = Command("claims DIR... [FILE...] [--check]", "Decide runs' claims again, without training.", main)

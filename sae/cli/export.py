"""`sae export`: trained autoencoders as folders that other libraries open."""

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from tyro.conf import Positional, arg

import sae
from sae import interop
from sae.cli.command import Command, read
from sae.core.console import say
from sae.core.text import ranges
from sae.core.types import UserError
from sae.study.sweep import member_names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Which autoencoders, and how they are written."""

    folder: Annotated[Positional[Path], arg(metavar="DIR")]
    """The folder of a run."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """A new or empty folder. Several members get a folder each in it, named by their numbers."""
    member: Annotated[tuple[int, ...], arg(metavar="ID...")] = ()
    """The numbers of the members; a run of one member needs none."""
    format: str = "saelens"
    """saelens, dictionary_learning or sparsify."""
    metadata: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE...")] = ()
    """What the data are, for the library that opens it: model_name=gpt2 hook_name=blocks.8.hook_resid_pre"""


def main(argv: list[str]) -> int:
    """Write the folders, with a card each, and say where they are."""
    options = read(Options, ordered(argv), COMMAND)
    results = sae.load(options.folder)
    members = chosen(results, options.member)
    out = options.out.expanduser()
    if len(members) > 1 and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: got a path that holds something, allowed: a new or empty folder")
    for member in members:
        path = out if len(members) == 1 else out / str(member)
        export(results, member, path, options.format, pairs(options.metadata))
        say(f"wrote member {member} to {path} ({', '.join(sorted(file.name for file in path.iterdir()))})")
    return 0


def ordered(argv: list[str]) -> list[str]:
    """The arguments with those that have no flag first, wherever they stand: "DIR --member 0 1 OUT" is meant so."""
    of_many = {"--member": re.compile(r"-?\d+"), "--metadata": re.compile(r"[^-].*=.*|=.*")}
    first, rest, i = [], [], 0
    while i < len(argv):
        token, i = argv[i], i + 1
        if token in of_many:
            rest.append(token)
            while i < len(argv) and of_many[token].fullmatch(argv[i]):
                rest, i = [*rest, argv[i]], i + 1
        elif token in ("--format", "--name", "--revision"):
            rest, i = [*rest, *argv[i - 1 : i + 1]], i + 1
        else:
            (rest if token.startswith("-") else first).append(token)
    return first + rest


def chosen(results: sae.Results, members: tuple[int, ...]) -> list[int]:
    """The members that are named, or the only one. Raises UserError."""
    n = len(results.definition["members"])
    if not members and n > 1:
        raise UserError(f"{results.folder}: member: got none, allowed: one or more of {ranges(range(n))}")
    return list(dict.fromkeys(members or (0,)))


def pairs(texts: tuple[str, ...]) -> dict[str, str]:
    """NAME=VALUE texts as a mapping. Raises UserError."""
    for text in texts:
        if not text.partition("=")[0].isidentifier() or "=" not in text:
            raise UserError(f"metadata: got {text!r}, allowed: NAME=VALUE, such as model_name=gpt2")
    return {text.partition("=")[0]: text.partition("=")[2] for text in texts}


def export(results: sae.Results, member: int, path: Path, format: str, metadata: dict[str, str]) -> Path:
    """Write one member of a run in a format -> the folder. Raises UserError."""
    one = results.sae(member)
    table = results.members
    row: dict[str, Any] = table[table["member"] == member].iloc[0].to_dict()
    metrics = {name: float(value) for name, value in row.items() if _is_metric(name, value)}
    rates: dict[int, np.ndarray] = {}
    for cohort in results.cohorts:
        rates |= cohort.firing_rates() if cohort.finished else {}
    names = member_names(results.definition["members"], results.definition["name"])
    name = results.definition["name"]
    return interop.save(
        one,
        path,
        format,
        name=name if names[member] == name else f"{name}, member {member}: {names[member]}",
        experiment=results.definition["members"][member],
        metrics=metrics,
        firing_rates=rates.get(member),
        metadata={"trained_with": "sparsity-lab", "run": name, "member": member, **metadata},
    )


def _is_metric(name: str, value: Any) -> bool:
    return name.startswith(("eval/", "analysis/")) and isinstance(value, int | float | np.number) and not pd.isna(value)


COMMAND = Command(
    "export DIR [--member ID...] [--format NAME] OUT",
    "Write members as folders that SAELens, dictionary_learning or sparsify open.",
    main,
)

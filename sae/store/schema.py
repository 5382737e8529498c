"""What a run's folder must look like. It is data from anyone, so it is checked when it is opened."""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_origin, get_type_hints

from sae.core.definitions import is_kind
from sae.core.files import DamagedError, read_checked
from sae.core.shapes import fault
from sae.core.types import UserError
from sae.experiment import Experiment
from sae.study import figures

Leaf = str | int | float | bool | None
Text = str | None
Value = Leaf | list[Leaf] | list[list[Leaf]]  # of a field of an experiment
DEFINITION: dict[str, Any] = {
    "name": str,
    "question": Text,
    "command": list[str],
    "file_sha256": Text,
    "token": str,
    "cohorts": list[list[int]],
    "members": list[dict[str, Value]],
    "beside": Text,
    "own": dict[str, str],
    "answer": dict[str, Any] | None,
    "figures": list[dict[str, Any]] | None,
    "arms": list[str] | None,
    "claims": list[dict[str, str]],
    "packages": dict[str, Text],
    "python": Text,
    "device": {"kind": str, "platform": str, "count": int},
    "host": Text,
    "git_commit": Text,
    "started": Text,
    "data": list[dict[str, Any]],
    "pulled": dict[str, Any],
    "evaluated": bool,
}
REQUIRED = ("name", "cohorts", "members")
STATE: dict[str, Any] = {
    "status": str,
    "members": list[int],
    "step": int,
    "n_steps": int,
    "lanes": int | None,
    "compile_seconds": float,
    "seconds": float,
    "peak_bytes": int | None,
    "image_shape": list[int] | None,
    "checksums": dict[str, str],
    "kept": dict[str, str],
}
FILES = re.compile(r"[\w-]+\.(parquet|safetensors)")  # what a cohort's checksums may name: files beside it
OF_WANDB = re.compile(r"latest-run|debug[\w.-]*\.log")  # links that wandb makes


def read(path: Path) -> dict[str, Any]:
    """The contents of a run's definition.json. Raises UserError where they, or links in its folder, are not sound."""
    definition = read_checked(path)
    if found := unsound(definition):
        raise DamagedError(f"{path} is damaged, or was edited by hand: {found}")
    for place in ("wandb", ".wandb"):  # they could send an API key to another server
        if (settings := path.parent / place / "settings").exists():
            raise UserError(f"{settings}: got W&B's settings in a run's folder, allowed: none; delete the file")
    for link in _links(path.parent):
        raise UserError(f"{link}: got a link that leads out of the run's folder, allowed: links to places inside it")
    return definition


def state(values: Any) -> dict[str, Any]:
    """The contents of a cohort.json. Raises ValueError where they are not sound."""
    found = fault(values, STATE, "")
    names, steps = values.get("checksums", {}) if not found else (), values.get("kept", {}) if not found else ()
    if found or not all(map(FILES.fullmatch, names)) or not all(re.fullmatch(r"\d{1,12}", step) for step in steps):
        raise ValueError(found or "a name of a file or a step")
    return values


def unsound(definition: Any) -> str | None:
    """What is wrong with a definition, in words."""
    if found := fault(definition, DEFINITION, ""):
        return found
    if missing := [name for name in REQUIRED if name not in definition]:
        return f"{missing[0]}: got nothing, allowed: what `sae run` writes"
    members, cohorts = definition["members"], definition["cohorts"]
    numbers = sorted(member for cohort in cohorts for member in cohort)
    if not members or numbers != list(range(len(members))) or not all(cohorts):
        return f"cohorts: got {str(cohorts)[:40]}, allowed: each of the {len(members)} members in one of them"
    if not re.fullmatch(r"[\w-]{1,64}", definition.get("token", "none")):
        return f"token: got {definition['token'][:40]!r}, allowed: letters and digits"
    for i, member in enumerate(members):
        if found := misfit(member, f"members[{i}]"):
            return found
    for i, entry in enumerate(definition.get("data", [])):
        wanted = {"member": int, "fingerprint": dict[str, str]}
        if found := fault(entry, wanted, f"data[{i}]"):
            return found
        if set(wanted) - set(entry) or entry["member"] not in range(len(members)):
            return f"data[{i}]: got {str(entry)[:40]}, allowed: a member and its fingerprint"
    for i, claim in enumerate(definition.get("claims", [])):
        if {"text", "threshold", "clause"} - set(claim):
            return f"claims[{i}]: got {str(claim)[:40]}, allowed: a text, a threshold and a clause"
    shown: list[tuple[str, dict[str, Any], Callable[[Mapping[str, Any]], Any]]]
    shown = [(f"figures[{i}]", one, figures.read) for i, one in enumerate(definition.get("figures") or ())]
    if definition.get("answer") is not None:
        shown.append(("answer", definition["answer"], figures.read_answer))
    return next((found for entry in shown if (found := _of_figure(*entry))), None)


def _of_figure(where: str, values: Mapping[str, Any], reader: Callable[[Mapping[str, Any]], Any]) -> str | None:
    try:
        made = reader(values)
    except UserError as error:
        return str(error)
    except (TypeError, KeyError, ValueError) as error:
        return f"{where}: got {str(values)[:40]}: {' '.join(str(error).split())}"
    hints = get_type_hints(type(made))
    names = [field.name for field in dataclasses.fields(made)]
    return next((found for n in names if (found := fault(getattr(made, n), hints[n], f"{where}.{n}"))), None)


def _fields() -> dict[str, Any]:
    """The types of an experiment's fields; a choice, and a word among several, may be one of another version."""
    is_word = lambda hint: is_kind(hint) or get_origin(hint) is Literal
    hints = {name: str if is_word(hint) else hint for name, hint in get_type_hints(Experiment).items()}
    return hints | {"dead_after": int | None, "dead_windows": list[int]}  # a text for either stands in no folder


FIELDS = _fields()  # of an experiment, which a member may have
_LEAST = {f.name: low for f in dataclasses.fields(Experiment) if (low := f.metadata.get("min")) is not None}


def misfit(member: Mapping[str, Any], where: str) -> str | None:
    """The first value of a flattened experiment that its fields cannot have, in words."""
    if found := fault(member, FIELDS, where) or fault(member, dict[str, Value], where):
        return found
    small = [name for name, low in _LEAST.items() if member.get(name) is not None and member[name] < low]
    name = next(iter(small), None)
    return name and f"{where}.{name}: got {member[name]}, allowed: at least {_LEAST[name]}"


def _links(folder: Path) -> list[str]:
    """The links in a folder that lead out of it, where something may be written."""
    root, found = os.path.realpath(folder), []
    for place, folders, files in os.walk(root):
        of_wandb = place != root and os.path.basename(place) in ("wandb", ".wandb")
        for name in [*folders, *files]:
            path = os.path.join(place, name)
            if os.path.islink(path) and not (of_wandb and OF_WANDB.fullmatch(name)):
                if not os.path.realpath(path).startswith(root + os.sep):
                    found.append(path)
        if of_wandb:
            folders.clear()  # wandb's own files
    return found

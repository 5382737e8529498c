"""Definition files: from a path to the `experiment` or `sweep` that it defines, and to its question."""

import ast
import dataclasses
import importlib.util
import os
import sys
import traceback
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

from sae.core.definitions import written_in
from sae.core.files import Written
from sae.core.text import nearest
from sae.core.types import UserError
from sae.data.source import Source
from sae.experiment import Experiment
from sae.study.sweep import Sweep

FOLDERS = ("experiments", "sweeps")
CHECKOUT = Path(__file__).parents[2]  # the folder that the package lies in, where it is a checkout


def load_file(path: Path) -> Experiment | Sweep:
    """The `sweep`, or else the `experiment`, that a file defines. Raises UserError with the fault in one line.

    Relative paths of its data, weights and `others` are looked for beside the file first, then from the working
    directory.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; give one of its files: {', '.join(sorted(map(str, path.glob('*.py'))))}")
    if not path.is_file():
        # do not search below its own folder, which may be somebody's home
        known = [*path.parent.glob("*.py"), *(p for folder in FOLDERS for p in Path(folder).rglob("*.py"))]
        raise UserError(f"{path}: no such file; {nearest(str(path), sorted(set(map(str, known))))}")
    module = _execute(path)
    found = [value for name in ("sweep", "experiment") if (value := getattr(module, name, None)) is not None]
    if not found:
        raise UserError(f"{path} defines neither `experiment` nor `sweep`; a definition file ends in one of the two")
    if not isinstance(found[0], (Experiment, Sweep)):
        raise UserError(f"{path}: got a {type(found[0]).__name__}, allowed: an Experiment or a Sweep")
    return _beside(path.resolve().parent, found[0])


def _beside(folder: Path, found: Any) -> Any:
    """An experiment or a sweep whose paths are looked for beside its file first; another value as it is."""
    if isinstance(found, Sweep):
        members = [_beside(folder, member) for member in found.members]
        others = [Written(path, folder) if isinstance(path, str) else path for path in found.others]
        return dataclasses.replace(found, members=members, others=others)
    if isinstance(found, Experiment) and isinstance(found.data, Source):
        located = {name: written_in(folder, getattr(found, name)) for name in ("data", "initialization")}
        return dataclasses.replace(found, **located)
    return found


def shipped() -> list[Path]:
    """The definition files of the checkout that the package lies in; they are as trusted as the package."""
    return sorted(path for folder in FOLDERS for path in (CHECKOUT / folder).rglob("*.py"))


def question(path: Path) -> str:
    """The first line of a definition file's docstring; "" if it has none or is no Python."""
    try:
        docstring = ast.get_docstring(ast.parse(path.read_bytes()))
    except (SyntaxError, UnicodeDecodeError):
        return ""
    return (docstring or "").split("\n")[0]


def checkout() -> Path:
    """The folder with `experiments` and `sweeps`: the working directory, or the one that the package lies in."""
    current = Path.cwd()
    return current if any((current / folder).is_dir() for folder in FOLDERS) else CHECKOUT


def _execute(path: Path) -> ModuleType:
    """Run a file as a module that can import its neighbours and the definitions of its checkout."""
    beside, *above = path.resolve().parents
    # the file's own checkout goes before the current one, so that it imports the base experiments beside it
    own = [folder for folder in above[:2] if any((folder / name).is_dir() for name in FOLDERS)][:1]
    for folder in reversed([*own, beside, checkout()]):
        sys.path[:] = [str(folder), *(other for other in sys.path if other != str(folder))]
    for name in [name for name in sys.modules if name.split(".")[0] in FOLDERS]:
        del sys.modules[name]  # imported for an earlier file, perhaps from another checkout
    # two files of one name in two folders are two modules
    name = f"definition_{path.stem}_{zlib.crc32(os.fsencode(path.resolve())):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path}: got a file of another kind, allowed: a Python file, {path.stem}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and tyro look there for the file's own classes
    try:
        spec.loader.exec_module(module)
    except UserError as error:
        raise UserError(f"{_where(error, path)}: {error}") from None
    except Exception as error:  # whatever a user's file may raise
        message = " ".join(str(error).split())
        raise UserError(
            f"{_where(error, path)}: {type(error).__name__}: {message}{_suggestion(error, vars(module))}"
        ) from None
    return module


def _where(error: BaseException, path: Path) -> str:
    if isinstance(error, SyntaxError):
        return f"{path}, line {error.lineno}"
    lines = [
        f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).resolve() == path.resolve()
    ]
    return f"{path}, line {lines[-1]}" if lines else str(path)


def _suggestion(error: Exception, names: dict[str, object]) -> str:
    """The end of an error about an unknown field: the close names among the fields that the class has."""
    text = str(error)
    if not isinstance(error, TypeError) or "unexpected keyword argument" not in text:
        return ""
    name, field = text.split(".__init__")[0].split()[-1], text.split("'")[1]
    fields: dict[str, object] = getattr(names.get(name), "__dataclass_fields__", {})  # the file imports what it calls
    return f"; {nearest(field, fields)}" if fields else ""

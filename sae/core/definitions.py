"""Tools for definitions: their names, dotted paths, types and values.

A definition is a frozen dataclass made with `sae.definition`. A *choice* is a definition that is a field of another,
as `activation` is of an experiment; it is called by its kind (`TopK` is "top-k").
"""

import dataclasses
import functools
import inspect
import re
import reprlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import jax
import numpy as np
from beartype import BeartypeConf
from beartype.door import is_bearable
from jax.core import Tracer

from sae.core.files import Written
from sae.core.text import nearest
from sae.core.types import UserError, definition

T = TypeVar("T")
LARGEST = float(np.finfo(np.float32).max)  # of a float field, as training has 32 bits


class Choice:
    """The base of every kind of choice. A class derived from it directly is a kind (`Activation`, `Penalty`, ...)."""

    def check(self, experiment: Any) -> str | None:
        """The fault that this choice has in an experiment ("k: got 9, allowed: at most d_sae = 8"), or None."""
        return None

    def resolved(self: T) -> T:
        """The choice with what it knows only by looking, such as a file's checksum. Raises UserError."""
        return self

    def tied_to_length(self) -> str | None:
        """Why it acts otherwise in a run of another length ("decay_steps = 20 end with the run"), or None."""
        return None


def kind(choice: Any) -> str:
    """The name of a choice, given as a class or an instance: TopK -> "top-k"."""
    name = choice.__name__ if isinstance(choice, type) else type(choice).__name__
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()


def fields(value: Any) -> list[dataclasses.Field]:
    """The fields of a definition, those that its class writes itself before those that it inherits."""
    cls: Any = value if isinstance(value, type) else type(value)
    written = list(inspect.get_annotations(cls))
    return sorted(dataclasses.fields(cls), key=lambda f: written.index(f.name) if f.name in written else len(written))


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """A definition as {dotted name: value}. A choice is written as its kind, and its fields follow it."""
    flat = {}
    for field in fields(value):
        name, inner = prefix + field.name, getattr(value, field.name)
        if dataclasses.is_dataclass(inner):
            flat[name] = kind(inner)
            flat |= flatten(inner, f"{name}.")
        else:
            flat[name] = inner
    return flat


def unflatten(cls: type, field: str, flat: Mapping[str, Any], files: Mapping[str, str] | None = None) -> Any:
    """The choice that `flatten` wrote under a field of a definition class.

    A name that is missing has its default: the definition is older than the field. A user's class is found where its
    code has run; `files` names the file of each, {"activation shift": "my.py"}. Raises UserError for a kind that no
    known class has.
    """
    wanted, file = flat[field], (files or {}).get(f"{field} {flat[field]}")
    known = [choice for choice in choices(get_type_hints(cls)[field]) if is_own(choice) == bool(file)]
    named = [choice for choice in known if kind(choice) == wanted]
    if not named and file:
        missing = f"{wanted!r} is a class of {file}, which is not loaded"
        raise UserError(f"{field}: {missing}; import it first, or name it after the folder")
    if not named:
        raise UserError(f"{field}: got {wanted!r}, {nearest(str(wanted), map(kind, known))}")
    named.sort(key=lambda choice: file_of(choice) == file)  # the newest of that file, or of any, comes last
    values = {f.name: flat[name] for f in fields(named[-1]) if (name := f"{field}.{f.name}") in flat}
    # JSON has no tuples, and a static value must be hashable
    try:
        made = named[-1](**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
    except TypeError as error:  # a field without a default is missing
        raise UserError(f"{field}: {' '.join(str(error).split())}") from None
    for problem in problems(made, f"{field}."):
        raise UserError(problem)
    return made


def replace(value: T, changes: Mapping[str, Any]) -> T:
    """A definition with some dotted names changed. Raises UserError for an unknown name."""
    for name, new in changes.items():
        value = _replace_one(value, name, name.split("."), plain(new))
    return value


def plain(value: Any) -> Any:
    """A scalar of numpy or JAX, or such an array with no axes, as Python's own; other values as they are.

    A float of 32 bits becomes the number that it was written as: float32(0.1) is 0.1, not 0.10000000149.
    """
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    if not isinstance(value, np.generic | np.ndarray | jax.Array) or value.ndim or isinstance(value, Tracer):
        return value
    scalar = np.asarray(value)[()]
    return float(str(scalar)) if isinstance(scalar, np.floating) else scalar.item()


def _replace_one(value: Any, name: str, path: list[str], new: Any) -> Any:
    head, *rest = path
    names = [field.name for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    if isinstance(value, Choice) and not is_definition(type(value)):
        raise UserError(f"{type(value).__name__} is not a definition; decorate the class with sae.definition")
    if head not in names:
        is_one = dataclasses.is_dataclass(value)
        raise UserError(f"{kind(value) if is_one else repr(value)} has no field '{name}'; {_other(value, name, path)}")
    inner = _replace_one(getattr(value, head), name, rest, new) if rest else new
    return dataclasses.replace(value, **{head: inner})


def _other(value: Any, name: str, path: list[str]) -> str:
    """The end of an error about a field that a value lacks: the choices that have it, or its close names."""
    prefix = name.removesuffix(".".join(path))
    if found := having(type(value), path[0]):
        has, example = "has" if len(found) == 1 else "have", f"{found[0].__name__}({path[0]}=...)"
        return f"{' and '.join(map(kind, found))} {has} it: {prefix.removesuffix('.')}={example}"
    names = [prefix + field.name for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    return nearest(name, names) if names else "it has no fields"


def having(cls: type, field: str) -> list[type]:
    """The choices of a choice's kind that have a field of this name, each kind once; [] for a class that is none."""
    kinds = [base for base in cls.__mro__ if is_kind(base)]
    known = choices(kinds[0]) if kinds else []
    found = [one for one in known if field in one.__dataclass_fields__]  # ty: ignore[missing-attribute]
    return list({kind(one): one for one in found}.values())  # a notebook's cell defines its class again and again


def written_in(folder: Path, value: T) -> T:
    """A definition whose fields that are paths are looked for in this folder first."""
    marked = [field.name for field in dataclasses.fields(value) if field.metadata.get("path")]  # ty: ignore[invalid-argument-type]
    written = lambda path: tuple(map(written, path)) if isinstance(path, tuple) else Written(path, folder)
    paths = {name: written(path) for name in marked if isinstance(path := getattr(value, name), str | tuple)}
    return dataclasses.replace(value, **paths)  # ty: ignore[invalid-argument-type]


def choices(hint: Any) -> list[type]:
    """The definitions that a field of this type may hold: the project's own by name, then those of a user, by age.

    They are the subclasses of a kind of choice; [] for another type.
    """
    if not is_kind(hint):
        return []
    room = hint.__module__.rpartition(".")[0] + "."
    known = [cls for cls in _subclasses(hint) if is_definition(cls)]
    ours = sorted((cls for cls in known if cls.__module__.startswith(room)), key=lambda cls: cls.__name__)
    return ours + [cls for cls in known if is_own(cls)]


def adopted(value: T, base: type, needs: str, body: Callable[[type], dict[str, Any]] = lambda cls: {}) -> T:
    """A definition without a base class, made a choice of a kind; other values are returned as they are.

    The result has the name, the fields and the methods of its class, and beside them what `body` makes of the class.
    `needs` is the method without which a definition stays as it is.
    """
    cls = type(value)
    bare = dataclasses.is_dataclass(cls) and cls.__bases__ == (object,) and callable(getattr(cls, needs, None))
    frozen = bare and cls.__dataclass_params__.frozen  # ty: ignore[missing-attribute]
    return _adopted(cls, base, body)(**vars(value)) if frozen else value


@functools.cache
def _adopted(cls: type, base: type, body: Callable[[type], dict[str, Any]]) -> Any:
    named = {"__doc__": cls.__doc__, "__module__": cls.__module__}
    return definition(type(cls.__name__, (cls, base), named | body(cls)))


def is_kind(hint: Any) -> bool:
    """Whether a type is a kind of choice."""
    return Choice in getattr(hint, "__bases__", ())


def is_definition(cls: type) -> bool:
    """Whether a class was made with `sae.definition` itself, and not only a class that it derives from."""
    return vars(cls).get("__sae_definition__") is cls


def is_own(cls: type) -> bool:
    """Whether a class is a user's own."""
    return not cls.__module__.startswith("sae.")


def file_of(cls: type) -> str:
    """The name of the file that defines a class, for people; "a notebook" where it stands in none."""
    path = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return path or "a notebook"


def _subclasses(base: type) -> Iterator[type]:
    for cls in base.__subclasses__():
        yield cls
        yield from _subclasses(cls)


def numbers(value: T) -> T:
    """A definition with Python's numbers in place of numpy's and JAX's, and floats wherever floats are annotated."""
    hints, changes = get_type_hints(type(value)), {}
    for field in dataclasses.fields(value):  # ty: ignore[invalid-argument-type]  # a definition is a dataclass
        old = getattr(value, field.name)
        new = plain(old)
        if dataclasses.is_dataclass(old) and not isinstance(old, type):
            new = numbers(old)
        elif isinstance(new, int) and not isinstance(new, bool) and hints[field.name] in (float, float | None):
            new = float(new)
        if new is not old:
            changes[field.name] = new
    return dataclasses.replace(value, **changes) if changes else value  # ty: ignore[invalid-argument-type]


def problems(value: Any, prefix: str = "") -> Iterator[str]:
    """What is wrong with the types and ranges of a definition's fields, a line each."""
    hints = get_type_hints(type(value))
    for field in dataclasses.fields(value):
        name, got, hint = prefix + field.name, getattr(value, field.name), hints[field.name]
        if isinstance(got, int) and abs(got) >= 2**31:
            yield f"{name}: got {got}, allowed: 32-bit integers"
        elif (wrong := _wrong_type(got, hint)) is not None:
            yield f"{name}: got {reprlib.repr(got)}, allowed: {wrong}"
        elif dataclasses.is_dataclass(got):
            yield from problems(got, f"{name}.")
        elif any(isinstance(one, float) and not abs(one) <= LARGEST for one in (got, *_parts(got))):
            yield f"{name}: got {got}, allowed: finite 32-bit numbers"
        elif (low := field.metadata.get("min")) is not None and isinstance(got, int | float) and got < low:
            yield f"{name}: got {got}, allowed: at least {low}"
        elif (high := field.metadata.get("max")) is not None and isinstance(got, int | float) and got > high:
            yield f"{name}: got {got}, allowed: at most {high}"


def _parts(value: Any) -> tuple:
    return value if isinstance(value, tuple) else ()


def _wrong_type(got: Any, hint: Any) -> str | None:
    """The values that are allowed, where a value is not one of them."""
    if not is_kind(hint):
        sound = is_bearable(got, hint, conf=BeartypeConf(is_pep484_tower=True))
        return None if sound and not (isinstance(got, bool) and hint in (int, float)) else describe(hint)
    if isinstance(got, hint) and is_definition(type(got)):
        return None
    if isinstance(got, type):
        wanted = f"an instance, {got.__name__}()"
    elif isinstance(got, hint):
        wanted = f"{type(got).__name__} decorated with sae.definition"
    else:
        wanted = f"a class of your own made with sae.definition and derived from sae.{hint.__name__}"
    ours = [choice.__name__ for choice in choices(hint) if not is_own(choice)]
    return f"{', '.join(ours)}, or {wanted}"


def describe(hint: Any) -> str:
    """A type as a person would say it."""
    options = get_args(hint)
    if get_origin(hint) is Literal:
        return ", ".join(map(str, options))
    if options and get_origin(hint) is not tuple:
        return " or ".join(describe(option) for option in options)
    if hint is type(None):
        return "None"
    return getattr(hint, "__name__", str(hint))

"""Flags to values: a definition's fields by their dotted names, with a command's options beside them."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro

from sae.cli.command import parse
from sae.core.console import say
from sae.core.definitions import choices, flatten, having, kind, numbers, replace
from sae.core.text import nearest
from sae.core.types import UserError
from sae.experiment import Experiment
from sae.study.sweep import Sweep

T = TypeVar("T")


def kinds() -> str:
    """A line for --help: the choices, each with its kinds."""
    named = {name: "|".join(map(kind, choices(hint))) for name, hint in get_type_hints(Experiment).items()}
    flags = [f"--{name} {known}" for name, known in named.items() if known]
    return f"A choice is replaced by its kind: {', '.join(flags)}. The fields listed are those of the present kinds."


def override(
    definition: Experiment | Sweep, tokens: Sequence[str], *, prog: str, options: T, description: str = ""
) -> tuple[Experiment | Sweep, T]:
    """Apply `--dotted.name value` flags to every member -> (definition, options).

    A choice is replaced by its kind (`--activation top-k`), and a field of it by its value (`--activation.k 8`).
    Members that an override makes equal are kept once, so `--seed 0` runs a sweep at one seed. Raises UserError.
    """
    members = [*map(numbers, definition.members if isinstance(definition, Sweep) else [definition])]
    members, tokens = _replace_choices(members, tokens)
    parsed: dict[tuple, Any] = {}  # by the member's choices, which are all that its flags follow from
    given = _given(members, tokens, options)
    chosen = options
    for i, member in enumerate(members):
        present = tuple(
            (name, value) for name, value in flatten(member).items() if "." not in name and isinstance(value, str)
        )
        if present not in parsed:
            both = _both(type(options))
            parsed[present] = parse(both, tokens, prog, description, both(member, options))
        values, chosen = parsed[present].experiment, parsed[present].options
        members[i] = replace(member, {name: _get(values, name) for name in given})
    if not isinstance(definition, Sweep):
        return members[0], chosen
    unique = {repr(replace(member, {"name": ""})): member for member in members}
    if len(unique) < len(members):
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        say(f"{flags}: {len(unique)} of {len(members)} members are left, as the others became equal to these")
    name = members[0].name if "name" in given else definition.name
    return dataclasses.replace(definition, name=name, members=tuple(unique.values())), chosen


def _replace_choices(members: list[Experiment], tokens: Sequence[str]) -> tuple[list[Experiment], list[str]]:
    """Replace choices, as `--activation top-k` says -> (members, the tokens that are left)."""
    plain = lambda text: text.lower().replace("-", "").replace("_", "")
    hints = get_type_hints(Experiment)
    rest, tokens = [], [part for token in tokens for part in _split(token)]
    while tokens:
        token = tokens.pop(0)
        name = _name(token)
        known = {kind(choice): choice for choice in choices(hints.get(name))}
        if not known or not token.startswith("--"):
            rest.append(token)
            continue
        wanted = tokens.pop(0) if tokens else ""
        wanted = next((k for k in known if plain(k) == plain(wanted)), wanted)
        if wanted not in known:
            own = "or a class of your own that the definition file defines or imports"
            raise UserError(f"--{name}: got {wanted!r}; {nearest(wanted, known)}, {own}")
        try:
            members = [m if kind(getattr(m, name)) == wanted else replace(m, {name: known[wanted]()}) for m in members]
        except TypeError as error:  # this kind has a field without a default
            raise UserError(f"--{name} {wanted}: {error}; write it in a definition file") from None
    return members, rest


def _both(options: type) -> type:
    """A dataclass of an experiment's fields and a command's options, side by side."""
    flat = tyro.conf.arg(name="")
    options_field = Annotated[options, flat]  # ty: ignore[invalid-type-form]: the class is known at run time only
    fields = [("experiment", Annotated[Experiment, flat]), ("options", options_field)]
    return dataclasses.make_dataclass("Both", fields, frozen=True)


def _given(members: list[Experiment], tokens: list[str], command_options: Any) -> list[str]:
    """The dotted names of fields that the tokens set. Raises UserError for a flag that does not exist."""
    fields = set.intersection(*(set(flatten(member)) for member in members))
    options = {field.name for field in dataclasses.fields(command_options)}
    given = []
    for token in tokens:
        if not token.startswith("--") or token == "--help":
            continue
        name = _name(token)
        head, _, last = name.rpartition(".")
        positive = f"{head}.{last.removeprefix('no_')}".lstrip(".") if last.startswith("no_") else name
        if positive in fields:
            given.append(positive)
        elif positive not in options:
            flags = ["--" + known.replace("_", "-") for known in [*sorted(fields), *sorted(options)]]
            inner = [flag for flag in flags if flag.endswith("." + token.removeprefix("--"))]
            close = f"close names: {', '.join(inner)}" if inner else nearest(token, flags)
            if head and (found := having(type(getattr(members[0], head, None)), last)):
                has = "has" if len(found) == 1 else "have"
                close = f"{' and '.join(map(kind, found))} {has} it: --{head} {kind(found[0])}"
            raise UserError(f"{members[0].name!r} has no field or option '{token}'; {close}")
    return list(dict.fromkeys(given))


def _split(token: str) -> list[str]:
    return token.split("=", 1) if token.startswith("--") else [token]


def _name(token: str) -> str:
    return token.removeprefix("--").split("=", 1)[0].replace("-", "_")


def _get(value: Any, name: str) -> Any:
    for field in name.split("."):
        value = getattr(value, field)
    return value

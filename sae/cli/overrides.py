"""Flags to values: a definition's fields by their dotted names, and options beside them."""

import contextlib
import dataclasses
import io
import re
import warnings
from typing import Annotated, Any, get_type_hints

import tyro

from sae.core.definitions import choices, flatten, kind, replace
from sae.core.text import nearest
from sae.core.types import UserError
from sae.experiment import Experiment
from sae.study.sweep import Sweep


def kinds() -> str:
    """For --help: the choices, each with its kinds."""
    named = {name: map(kind, choices(hint)) for name, hint in get_type_hints(Experiment).items()}
    flags = [f"--{name} {kinds}" for name, of in named.items() if (kinds := "|".join(of))]
    return f"A choice is replaced by its kind: {', '.join(flags)}. The fields listed are those of the present kinds."


def override(
    definition: Experiment | Sweep, tokens: list[str], *, prog: str, options: Any, description: str = ""
) -> tuple[Experiment | Sweep, Any]:
    """Apply `--dotted.name value` flags to every member -> (definition, options).

    A choice is replaced by its kind (`--activation top-k`), its fields by theirs (`--activation.k 8`). Members that
    an override makes equal are kept once, so `--seed 0` runs a sweep at one seed. Raises UserError.
    """
    members = list(definition.members) if isinstance(definition, Sweep) else [definition]
    members, tokens = _replace_choices(members, tokens)
    parsed: dict = {}
    given = _given(members, tokens, options)
    for i, member in enumerate(members):
        present = tuple(
            (name, value) for name, value in flatten(member).items() if "." not in name and isinstance(value, str)
        )
        if present not in parsed:
            parsed[present] = parse(_parsed(type(options))(member, options), tokens, prog, description)
        values, chosen = parsed[present].experiment, parsed[present].options
        members[i] = replace(member, {name: _get(values, name) for name in given})
    if not isinstance(definition, Sweep):
        return members[0], chosen
    unique = {repr(replace(member, {"name": ""})): member for member in members}
    if len(unique) < len(members):
        print(
            f"{len(members)} members, {len(unique)} of them different after {', '.join(f'--{name}' for name in given)}"
        )
    name = members[0].name if "name" in given else definition.name
    return dataclasses.replace(definition, name=name, members=tuple(unique.values())), chosen


def only_options(default: Any, argv: list[str], command: str, about: str) -> Any:
    """The options of a command that takes nothing else."""
    flags = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(default)]
    for token in argv:
        if token.startswith("--") and token != "--help" and token.split("=", 1)[0].replace("_", "-") not in flags:
            raise UserError(f"{command.split()[0]} has no option '{token}'; {nearest(token, flags)}")
    return parse(default, argv, f"sae {command}", about)


def _replace_choices(members: list[Experiment], tokens: list[str]) -> tuple[list[Experiment], list[str]]:
    """Take `--activation top-k` and its like out of the tokens, and do what they say."""
    hints = get_type_hints(Experiment)
    rest, tokens = [], [part for token in tokens for part in _split(token)]
    while tokens:
        token = tokens.pop(0)
        name = _name(token)
        hint = hints.get(name)
        known = {kind(choice): choice for choice in choices(hint)}
        if not known or not token.startswith("--"):
            rest.append(token)
            continue
        wanted = tokens.pop(0) if tokens else ""
        plain = lambda text: text.lower().replace("-", "").replace("_", "")
        wanted = next((k for k in known if plain(k) == plain(wanted)), wanted)
        if wanted not in known:
            raise UserError(f"--{name}: got {wanted!r}; {nearest(wanted, known)}")
        try:
            members = [m if kind(getattr(m, name)) == wanted else replace(m, {name: known[wanted]()}) for m in members]
        except TypeError as error:  # a source with a field that has no default
            raise UserError(f"--{name} {wanted}: {error}; write it in a definition file") from None
    return members, rest


def _parsed(options: type) -> type:
    """What the command line gives: an experiment's fields and the options, side by side."""
    flat = tyro.conf.arg(name="")
    return dataclasses.make_dataclass(
        "Parsed", [("experiment", Annotated[Experiment, flat]), ("options", Annotated[options, flat])], frozen=True
    )


def _given(members: list[Experiment], tokens: list[str], of: Any) -> list[str]:
    """The dotted names of fields that the tokens set. Raises UserError for a flag that does not exist."""
    fields = set.intersection(*(set(flatten(member)) for member in members))
    options = {field.name for field in dataclasses.fields(of)}
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
            raise UserError(f"{members[0].name!r} has no field or option '{token}'; {close}")
    return list(dict.fromkeys(given))


def parse(default: Any, tokens: list[str], prog: str, description: str) -> Any:
    """The default, changed by the tokens."""
    text = io.StringIO()
    try:
        with contextlib.redirect_stderr(text), contextlib.redirect_stdout(text), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about choices of one's own, which are not among the annotated ones
            return tyro.cli(
                type(default),
                args=tokens,
                prog=prog,
                description=description,
                default=default,
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as stop:
        if stop.code == 0:  # --help
            print(text.getvalue(), end="")
            raise
        raise UserError(_one_line(text.getvalue())) from None


def _one_line(box: str) -> str:
    """The message inside tyro's box: what stands between the title and the next rule, which help follows."""
    groups: list[list[str]] = [[]]
    for line in box.splitlines():
        if "──" in line or "---" in line:
            groups.append([])
        else:
            groups[-1].append(line.strip(" │|"))
    return re.sub(r"^Error parsing ", "", " ".join(groups[1]))


def _split(token: str) -> list[str]:
    return token.split("=", 1) if token.startswith("--") else [token]


def _name(token: str) -> str:
    return token.removeprefix("--").split("=", 1)[0].replace("-", "_")


def _get(value: Any, name: str) -> Any:
    for field in name.split("."):
        value = getattr(value, field)
    return value

"""Many runs from one: a sweep file is a question, and this is its value."""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from sae.answers import Answer
from sae.experiment import Experiment, flatten, replace, validate
from sae.types import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """A list of experiments, and how to read the answer off the members table."""

    name: str
    members: tuple[Experiment, ...]
    answer: Answer | None = None

    def __post_init__(self):
        if isinstance(self.members, Experiment):
            raise UserError(f"sweep {self.name!r}: members: got one Experiment, allowed: a list of them")
        object.__setattr__(self, "members", tuple(self.members))


def grid(base: Experiment, axes: Mapping[str, Iterable[Any]]) -> list[Experiment]:
    """Every combination of the axes' values, in the axes' order (the last varies fastest).

        grid(base, {"d_sae": (64, 128), "penalty.l1": (0.03, 0.1), "seed": range(3)})

    Axes are dotted names. Raises UserError for an unknown name.
    """
    for name, axis in axes.items():
        if isinstance(axis, str) or not isinstance(axis, Iterable):
            raise UserError(f"grid: {name}: got {axis!r}, allowed: several values; put it in a tuple: ({axis!r},)")
    values = [list(axis) for axis in axes.values()]
    return [replace(base, dict(zip(axes, point, strict=True))) for point in itertools.product(*values)]


def as_sweep(value: Experiment | Sweep) -> Sweep:
    """One experiment is a sweep of one. Checks every member; raises UserError."""
    if isinstance(value, Experiment):
        value = Sweep(name=value.name, members=(value,))
    if not isinstance(value, Sweep):
        raise UserError(f"got {type(value).__name__}, allowed: an Experiment or a Sweep")
    if any(not isinstance(member, Experiment) for member in value.members):
        raise UserError(f"sweep {value.name!r}: members: allowed: Experiments, in a list")
    if not value.members:
        raise UserError(f"sweep {value.name!r} has no members")
    if not isinstance(value.name, str) or not re.fullmatch(r"\w[\w .,=+-]{0,100}", value.name):
        raise UserError(f"name: got {value.name!r}, allowed: letters, digits, '_', '-', '.', as it names a folder")
    value = dataclasses.replace(value, members=[validate(member) for member in value.members])
    if value.answer is not None:
        value.answer.check(flatten(value.members[0]))
    first: dict[tuple, int] = {}
    for i, member in enumerate(value.members):
        twin = first.setdefault(tuple(map(repr, flatten(dataclasses.replace(member, name="")).items())), i)
        if twin != i:
            raise UserError(f"sweep {value.name!r}: members {twin} and {i} are the same experiment; change one field")
    return value


def varying(members: Iterable[Experiment]) -> list[str]:
    """The dotted names that differ between members (a name that only some have counts), in field order."""
    flats = [flatten(member) for member in members]
    names = dict.fromkeys(name for flat in flats for name in flat if name != "name")
    return [name for name in names if len({repr(flat.get(name, "absent")) for flat in flats}) > 1]

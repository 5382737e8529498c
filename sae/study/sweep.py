"""Many runs from one: a sweep file is a question, and this is its value."""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sae.core.definitions import flatten, replace
from sae.core.types import UserError
from sae.experiment import Experiment, validate
from sae.study import figures as figure_definitions
from sae.study import measures as measure_definitions
from sae.study.answers import Answer
from sae.study.claims import Claim
from sae.study.figures import Figure
from sae.study.measures import Measure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """A list of experiments, how to read the answer off the members table, and what to show of it."""

    name: str
    members: tuple[Experiment, ...]
    answer: Answer | None = None
    """The table that is printed at the end."""
    figures: tuple[Figure, ...] = ()
    """What the report shows; none for what `figures.default_figures` finds worth seeing."""
    measures: tuple[Measure, ...] = ()
    """What else is asked of the trained members: more columns of the members table."""
    claims: tuple[Claim, ...] = ()
    """What would count as the answer, with thresholds; decided at the end."""

    def __post_init__(self):
        if isinstance(self.members, Experiment):
            raise UserError(f"sweep {self.name!r}: members: got one Experiment, allowed: a list of them")
        object.__setattr__(self, "members", tuple(self.members))
        object.__setattr__(self, "figures", tuple(self.figures))
        object.__setattr__(self, "measures", tuple(self.measures))
        object.__setattr__(self, "claims", tuple(self.claims))


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
    names = dict.fromkeys(name for member in value.members for name in flatten(member))
    for measure in value.measures:
        measure_definitions.check(measure, f"sweep {value.name!r}: measures")
        if twice := [name for name in measure.columns if name in names]:
            raise UserError(f"sweep {value.name!r}: two measures have the column {twice[0]!r}; allowed: one")
        names |= dict.fromkeys(measure.columns)
    for reader in (value.answer, *value.figures):
        if not isinstance(reader, Figure | Answer | None):
            kinds = ", ".join(kind.__name__ for kind in Figure.__args__)
            raise UserError(f"sweep {value.name!r}: figures: got {reader!r}, allowed: {kinds}")
        if reader is not None:
            reader.check(names)
    for claim in value.claims:
        if not isinstance(claim, Claim):
            raise UserError(f"sweep {value.name!r}: claims: got {claim!r}, allowed: Claim(text, clause)")
        claim.check(names)
    first: dict[tuple, int] = {}
    for i, member in enumerate(value.members):
        twin = first.setdefault(tuple(map(repr, flatten(dataclasses.replace(member, name="")).items())), i)
        if twin != i:
            raise UserError(f"sweep {value.name!r}: members {twin} and {i} are the same experiment; change one field")
    return value


def varying(members: Iterable[Experiment]) -> list[str]:
    """The dotted names that differ between members (a name that only some have counts), in field order."""
    return figure_definitions.varying(map(flatten, members))


def member_names(members: Sequence[Mapping[str, Any]], default: str) -> list[str]:
    """A name for each flattened member, from what varies: "d_sae=128 penalty.l1=0.1 seed=0"."""
    names = figure_definitions.varying(members)
    short = lambda value: f"{value:g}" if isinstance(value, float) else f"{value}"
    return [" ".join(f"{name}={short(flat[name])}" for name in names if name in flat) or default for flat in members]

"""A sweep: the members, how to read the answer from their results, and the claims that would settle the question."""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sae.core.definitions import flatten, kind, replace
from sae.core.text import abbreviated
from sae.core.types import UserError
from sae.experiment import Experiment, method, validate
from sae.study import figures as figure_definitions
from sae.study import measures as measure_definitions
from sae.study.answers import Answer
from sae.study.claims import Claim
from sae.study.figures import Figure
from sae.study.measures import Measure

LONGEST = 128  # characters of a member's name, as many as W&B allows
LONG_VALUE = 40  # characters of a value in a name that would be longer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """A list of experiments with the question that they answer."""

    name: str
    """The sweep's name, and that of its folder under `runs/`."""
    members: Sequence[Experiment]
    """The experiments. Any sequence will do; it is kept as a tuple, as are those below."""
    answer: Answer | None = None
    """The table that is printed at the end."""
    figures: Sequence[Figure] = ()
    """The figures of the report; empty for the choice of `figures.default_figures`."""
    measures: Sequence[Measure] = ()
    """Numbers to take of the trained members, as more columns of the members table."""
    claims: Sequence[Claim] = ()
    """What would count as the answer, with thresholds; decided at the end."""

    others: Sequence[str] = ()
    """Autoencoders to compare with: folders of other libraries or runs, or places on the hub ("hf:OWNER/NAME/FOLDER").
    A folder is looked for beside the definition file first, as data are. They are evaluated at the end on the members'
    held-out examples; figures and claims know them by these texts."""

    def __post_init__(self) -> None:
        if isinstance(self.members, Experiment):
            raise UserError(f"sweep {self.name!r}: members: got one Experiment, allowed: a list of them")
        for field in ("members", "figures", "measures", "claims", "others"):
            value = getattr(self, field)
            if isinstance(value, str) or not isinstance(value, Iterable):
                raise UserError(f"sweep {self.name!r}: {field}: got {value!r}, allowed: a list of them")
            object.__setattr__(self, field, tuple(value))


def grid(base: Experiment, axes: Mapping[str, Iterable[Any]]) -> list[Experiment]:
    """Every combination of the values of some axes, the last axis varying fastest.

        grid(base, {"d_sae": (64, 128), "penalty.l1": (0.03, 0.1), "seed": range(3)})

    Axes are dotted names. Raises UserError for an unknown name, and for an axis that is not several values.
    """
    for name, axis in axes.items():
        if isinstance(axis, str) or not isinstance(axis, Iterable):
            raise UserError(f"grid: {name}: got {axis!r}, allowed: several values; put it in a tuple: ({axis!r},)")
    values = [list(axis) for axis in axes.values()]
    return [replace(base, dict(zip(axes, point, strict=True))) for point in itertools.product(*values)]


def as_sweep(value: Experiment | Sweep) -> Sweep:
    """A sweep whose members, figures, measures and claims are checked; one experiment becomes a sweep of one.

    Raises UserError for the first thing that is wrong.
    """
    if isinstance(value, Experiment):
        value = Sweep(name=value.name, members=(value,))
    if not isinstance(value, Sweep):
        raise UserError(f"got {type(value).__name__}, allowed: an Experiment or a Sweep")
    if others := [member for member in value.members if not isinstance(member, Experiment)]:
        raise UserError(f"sweep {value.name!r}: members: got {others[0]!r}, allowed: Experiments")
    if not value.members:
        raise UserError(f"sweep {value.name!r} has no members")
    if not isinstance(value.name, str) or not re.fullmatch(r"\w[\w .,=+-]{0,100}", value.name):
        raise UserError(
            f"name: got {value.name!r}, allowed: up to 101 letters, digits, spaces and _.,=+-, as it names a folder"
        )
    value = dataclasses.replace(value, members=[validate(member) for member in value.members])
    classes: dict[str, type] = {}
    for member in value.members:
        for field, choice in {"data": member.data, **method(member)}.items():
            if classes.setdefault(f"{field} {kind(choice)}", type(choice)) is not type(choice):
                name = type(choice).__name__
                raise UserError(f"sweep {value.name!r}: {field}: two classes are called {name}; rename one of them")
    names = dict.fromkeys(name for member in value.members for name in flatten(member))
    for measure in value.measures:
        measure_definitions.check(measure, f"sweep {value.name!r}: measures")
        if twice := [name for name in measure.columns if name in names]:
            raise UserError(f"sweep {value.name!r}: two measures have the column {twice[0]!r}; allowed: one")
        names |= dict.fromkeys(measure.columns)
    answers = () if value.answer is None else (value.answer,)
    for field, kinds, readers in (("answer", Answer, answers), ("figures", Figure, value.figures)):
        for reader in readers:
            if not isinstance(reader, kinds):
                allowed = ", ".join(kind.__name__ for kind in kinds.__args__)
                raise UserError(f"sweep {value.name!r}: {field}: got {reader!r}, allowed: {allowed}")
            reader.check(names)
    if wrong := [other for other in value.others if not isinstance(other, str) or not other]:
        raise UserError(f"sweep {value.name!r}: others: got {wrong[0]!r}, allowed: paths, as texts")
    if value.others and len(sources := {member.data for member in value.members}) > 1:
        raise UserError(f"sweep {value.name!r}: others: got members on {len(sources)} sources of data, allowed: one")
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
    """The dotted names that differ between members, in field order; a name that only some have counts."""
    return figure_definitions.varying(map(flatten, members))


def member_names(members: Sequence[Mapping[str, Any]], default: str) -> list[str]:
    """A name for each flattened member, from what varies: "d_sae=128 penalty.l1=0.1 seed=0".

    A name has at most LONGEST characters. Where it is longer, dotted names give way to their last parts ("l1"), then
    long values are abbreviated, and then what is common to all names. Members that differ have different names.
    """
    names = figure_definitions.varying(members)
    words = {name: _words([flat[name] for flat in members if name in flat]) for name in names}
    last = [name.rpartition(".")[2] for name in names]
    brief = {name: end if last.count(end) == 1 else name for name, end in zip(names, last, strict=True)}
    called = dict(zip(names, names, strict=True))
    join = lambda flat: " ".join(f"{called[name]}={words[name][repr(flat[name])]}" for name in names if name in flat)
    whole = [join(flat) or default for flat in members]
    if max(map(len, whole)) > LONGEST:
        called = brief
        whole = [join(flat) or default for flat in members]
    if max(map(len, whole)) > LONGEST:
        for name, of_name in words.items():
            short = abbreviated(of_name.values(), LONG_VALUE)
            words[name] = {value: short[word] for value, word in of_name.items()}
        whole = [join(flat) or default for flat in members]
    short = abbreviated(whole, LONGEST)
    return [short[name] for name in whole]


def _words(values: Sequence[Any]) -> dict[str, str]:
    """{repr of a value: how a name shows it}: numbers with six digits, or all of them where six are not enough."""
    short = lambda value: f"{value:g}" if isinstance(value, float) else f"{value}"
    words = {repr(value): short(value) for value in values}
    return words if len(set(words.values())) == len(words) else {value: value for value in words}

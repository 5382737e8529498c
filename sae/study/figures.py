"""Figures: what a sweep shows, as values. `sae/report` draws them for a page, a notebook or a paper.

A line or a panel stands for an *arm*: the members in which one coefficient is swept while the coefficients of the other
arms are 0 or absent. A member with every coefficient at 0 is an end of each arm. A line joins the means over seeds of
the members that share its group and a coefficient: `complete` adds to the group whatever else differs between them.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from sae.core.text import nearest
from sae.core.types import UserError
from sae.experiment import window_follows
from sae.study.answers import Answer, AtMatched, Best
from sae.study.frontiers import arms_along, hidden, listed, of_arm, require
from sae.study.replicates import is_seed, lurking


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frontier:
    """What sparsity costs: one metric against another on log axes, a line per arm and group with its interval."""

    x: str = "eval/fvu"
    """The metric across."""
    y: str = "eval/l0"
    """The metric upwards."""
    along: tuple[str, ...]
    """The coefficients that are swept, dotted names: one per arm."""
    group: tuple[str, ...] = ("d_sae",)
    """A line for each combination of values of these names."""

    def __post_init__(self) -> None:
        listed(self)

    def check(self, names: Collection[str]) -> None:
        """Check before training that every name it reads exists. Raises UserError."""
        require(names, [*self.along, *self.group], [self.x, self.y], "Frontier")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """One metric along one hyper-parameter, a line per group with its interval."""

    metric: str
    """The metric upwards."""
    x: str
    """The hyper-parameter across, a dotted name."""
    group: tuple[str, ...] = ("d_sae",)
    """A line for each combination of values of these names."""
    others: tuple[str, ...] = ()
    """Coefficients of other arms: only members in which these are 0 are shown."""

    def __post_init__(self) -> None:
        listed(self)

    def check(self, names: Collection[str]) -> None:
        """Check before training that every name it reads exists. Raises UserError."""
        require(names, [self.x, *self.group, *self.others], [self.metric], "Profile")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heatmap:
    """One metric as a colour over two hyper-parameters: a panel per arm and group, all on one scale.

    A cell is the mean over seeds.
    """

    metric: str
    """The metric that is the colour."""
    along: tuple[str, ...]
    """The coefficients across, dotted names: one per arm."""
    y: str = "d_sae"
    """The hyper-parameter upwards."""
    group: tuple[str, ...] = ()
    """A panel for each combination of values of these names."""

    def __post_init__(self) -> None:
        listed(self)

    def check(self, names: Collection[str]) -> None:
        """Check before training that every name it reads exists. Raises UserError."""
        require(names, [*self.along, self.y, *self.group], [self.metric], "Heatmap")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parallel:
    """Every member as a line through parallel axes: hyper-parameters first, then metrics."""

    hyper: tuple[str, ...]
    """The hyper-parameters, dotted names."""
    metrics: tuple[str, ...] = ("eval/fvu", "eval/l0", "eval/dead_fraction")
    """The metrics; the first gives the colour."""

    def __post_init__(self) -> None:
        listed(self)

    def check(self, names: Collection[str]) -> None:
        """Check before training that every name it reads exists. Raises UserError."""
        require(names, self.hyper, self.metrics, "Parallel")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curves:
    """Metrics over training: a panel per metric, a line per chosen member."""

    metrics: tuple[str, ...] = ("train/fvu", "train/l0", "train/dead_fraction", "train/loss", "train/grad_norm")
    """Columns of the history."""

    def __post_init__(self) -> None:
        listed(self)

    def check(self, names: Collection[str]) -> None:
        """Check before training that every name it reads exists. Raises UserError."""
        require(names, (), self.metrics, "Curves", window="train")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FiringRates:
    """How often latents are active on held-out examples: a histogram per chosen member, log axis, dead at the left."""

    def check(self, names: Collection[str]) -> None:
        """Do nothing: it reads no name that could be missing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dictionaries:
    """What the latents of a few members have become: decoder rows, firing rates, top examples, reconstructions."""

    along: tuple[str, ...] = ()
    """The coefficients, dotted names: one per arm. One member is shown for each arm and group."""
    group: tuple[str, ...] = ("d_sae",)
    """A group for each combination of values of these names."""
    metric: str = "eval/fvu"
    """The metric that chooses the member."""
    near: float = 0.2
    """The member whose metric is closest to this value is shown."""
    latents: int = 96
    """The largest number of latents that are shown for a member."""

    def __post_init__(self) -> None:
        listed(self)

    def check(self, names: Collection[str]) -> None:
        """Check before training that every name it reads exists. Raises UserError."""
        require(names, [*self.along, *self.group], [self.metric], "Dictionaries")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgreementMatrix:
    """How far dictionaries agree: the mean MCC of members of every two groups, beside that of random dictionaries.

    On the diagonal, members of one group are compared, which differ in the seed and in what `group` leaves out.
    """

    group: tuple[str, ...]
    """A row and a column for each combination of values of these names."""
    most: int = 4
    """Members of a group that are compared, the first ones; each pair takes milliseconds."""

    def __post_init__(self) -> None:
        listed(self)

    def check(self, names: Collection[str]) -> None:
        """Check before training that every name it reads exists. Raises UserError."""
        require(names, self.group, (), "AgreementMatrix")
        if not self.group or self.most < 1:
            got = f"most {self.most}" if self.group else "no name in group"
            raise UserError(f"AgreementMatrix: got {got}, allowed: one or more")


Figure = Frontier | Profile | Heatmap | Parallel | Curves | FiringRates | Dictionaries | AtMatched | AgreementMatrix


def complete(figure: Figure, members: pd.DataFrame) -> Figure:
    """The figure with its group extended by whatever its means would hide, other than seeds.

    Parallel coordinates lose the axes that members lack: tables of another program, from W&B, may lack any.
    Raises UserError where the members form none of its arms.
    """
    match figure:
        case Frontier():
            found = hidden(members, arms_along(figure.along), figure.group, "Frontier")
        case Heatmap():
            found = hidden(members, arms_along(figure.along), [*figure.group, figure.y], "Heatmap")
        case Profile():
            if not pd.api.types.is_numeric_dtype(members[figure.x]):
                raise UserError(f"Profile: x: got {figure.x}, which holds words; allowed: a number")
            arm = of_arm(members, figure.x, [figure.x, *figure.others])
            found = lurking(arm, [*figure.group, figure.x])
        case AtMatched():
            return figure.complete(members)
        case Parallel():
            here = lambda names: tuple(name for name in names if name in members)
            if not (metrics := here(figure.metrics)):
                raise UserError(f"Parallel: members have none of {', '.join(figure.metrics)}")
            return dataclasses.replace(figure, hyper=here(figure.hyper), metrics=metrics)
        case _:
            return figure
    return dataclasses.replace(figure, group=(*figure.group, *found))


def default_figures(
    members: Sequence[Mapping[str, Any]],
    arms: Collection[str],
    answer: Answer | None = None,
    *,
    true_features: bool = False,
) -> tuple[Figure, ...]:
    """The figures of a sweep that names none, chosen by what varies between its members.

    `members` are flattened experiments, `arms` the names that `study.arms` finds. `true_features`: whether the true
    features are known, so that members have `eval/mmcs`.
    """
    along, others = axes(members, arms)
    # a field that only some members have belongs to a choice, whose name is shown already
    everywhere = lambda name: all(name in member for member in members)
    group = ("d_sae", *(name for name in others if name != "d_sae" and everywhere(name)))
    mmcs = ["mmcs"] * true_features
    figures: list[Figure] = []
    answered = isinstance(answer, AtMatched) and answer.matched == "eval/l0"
    if isinstance(answer, Best) and all(isinstance(m.get(answer.along), int | float | None) for m in members):
        figures += [Profile(metric=answer.metric, x=answer.along, group=tuple(answer.groups))]
    crowded = isinstance(answer, AtMatched) and answer.many  # so many arms that their lines could not be told apart
    if along and not crowded:
        named = {name: coefficient for coefficient, name in arm_names(along, members).items()}
        compared = tuple(f"eval/{metric}" for metric in ("fvu", *mmcs))
        figures += [
            Frontier(along=along, group=group),
            *([] if answered else [AtMatched(arms=named, matched="eval/l0", at=(), metrics=compared, group=group)]),
            *(
                Heatmap(metric=f"eval/{metric}", along=along, group=group[1:])
                for metric in ("fvu", "l0", "dead_fraction", *mmcs)
            ),
        ]
    if len(members) > 1:
        hyper = tuple(name for name in varying(members) if everywhere(name) or name in along)
        figures += [Parallel(hyper=hyper)]
    dictionaries = Dictionaries(along=along, group=group)
    if true_features:
        dictionaries = dataclasses.replace(dictionaries, metric="eval/mmcs", near=1.0)
    return (*figures, Curves(), FiringRates(), dictionaries)


def axes(members: Sequence[Mapping[str, Any]], arms: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(the arms that vary; what else varies inside an arm, other than the seed) between flattened experiments.

    Of the arms that are not 0 in one member, the one with the most values is kept. A number of a choice that follows
    from which choice it is (the held-out examples of two data sources) counts as what varies with the choice's name.
    `arms`: as in `default_figures`.
    """
    along = [name for name in varying(members) if name in arms]
    n_values = lambda name: len({member.get(name) for member in members})
    for name in sorted(reversed(along), key=n_values):  # of as many values, the last is dropped first
        if any(m.get(name) and any(m.get(other) for other in along if other != name) for m in members):
            along.remove(name)
    # what is constant along each arm, such as the kind of activation where only one arm has a k, needs no group
    inside = [varying(m for m in members if c in m and not any(m.get(o) for o in along if o != c)) for c in along]
    constant = [name for name in varying(members) if along and not any(name in names for names in inside)]
    return tuple(along), tuple(
        name
        for name in varying(members)
        if name not in (*along, *constant) and not is_seed(name) and not _follows_from_its_choice(name, members)
    )


def _follows_from_its_choice(name: str, members: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a dotted name has one value for each kind of its choice, and there are several kinds."""
    choice = name.rpartition(".")[0]
    pairs = {(repr(member.get(choice)), repr(member.get(name))) for member in members}
    return len({kind for kind, _ in pairs}) == len(pairs) > 1


def arm_names(along: Iterable[str], members: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """{coefficient: the name of its arm, for a legend}: "penalty.l1" is "L1", "activation.k" of a TopK is "TopK".

    A number of another choice follows the choice's name, as in "Lp p". `members` are flattened experiments, which say
    what the choices are. Names that would be equal are the dotted names instead.
    """
    along, members = list(along), list(members)
    kinds = {name: {m.get(name.rpartition(".")[0]) for m in members if pd.notna(m.get(name))} for name in along}
    named = {name: _arm_name(name, {str(kind) for kind in of_name if kind}) for name, of_name in kinds.items()}
    words = list(named.values())
    return {name: word if words.count(word) == 1 else name for name, word in named.items()}


def _arm_name(coefficient: str, kinds: Collection[str]) -> str:
    last = coefficient.rpartition(".")[2]
    if last in ("l1", "l2"):
        return last.upper()
    if len(kinds) != 1:
        return coefficient
    (kind,) = kinds
    choice = "".join(word[:1].upper() + word[1:] for word in kind.split("-"))
    return choice if kind.endswith(f"-{last}") else f"{choice} {last}"


def varying(members: Iterable[Mapping[str, Any]]) -> list[str]:
    """The dotted names that differ between flattened experiments, in field order; a name that only some have counts.

    `dead_after` does not count where it is what follows from the length of training.
    """
    members = list(members)
    left_out = {"name"} | ({"dead_after"} if all(map(window_follows, members)) else set())
    names = dict.fromkeys(name for flat in members for name in flat if name not in left_out)
    return [name for name in names if len({repr(flat.get(name, "absent")) for flat in members}) > 1]


def plain(definition: Figure | Answer) -> dict[str, Any]:
    """A figure or an answer as JSON can hold it."""
    return {"kind": type(definition).__name__, **dataclasses.asdict(definition)}


def read(values: Mapping[str, Any]) -> Figure:
    """The figure that `plain` wrote. Raises UserError for a kind that this version does not have."""
    return _read(values, "figure", Figure.__args__)


def read_answer(values: Mapping[str, Any]) -> Answer:
    """The answer that `plain` wrote. Raises UserError for a kind that this version does not have."""
    return _read(values, "answer", Answer.__args__)


def _read(values: Mapping[str, Any], what: str, allowed: Iterable[type]) -> Any:
    kinds, kind = {cls.__name__: cls for cls in allowed}, values["kind"]
    if kind not in kinds:
        raise UserError(f"{what}: got {kind!r}, {nearest(kind, kinds)}")
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return kinds[kind](**{name: value for name, value in fields.items() if name != "kind"})

"""Figures: what a sweep shows, as values. `sae/report` draws them, for a page, a notebook or a paper; W&B has its own.

A line or a panel stands for an *arm*: the members in which one coefficient is swept and the other arms' coefficients
are 0, or are not there. Members with every coefficient at 0 are an end of each arm. Lines are means over seeds.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sae.core.text import nearest
from sae.core.types import UserError
from sae.study.answers import Answer, AtMatched, Best, require


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frontier:
    """What sparsity costs: one metric against another on log axes, a line per arm and group, a band over seeds."""

    x: str = "eval/fvu"
    """The metric across."""
    y: str = "eval/l0"
    """The metric upwards."""
    along: tuple[str, ...]
    """The coefficients that are swept, dotted names; one is an arm."""
    group: tuple[str, ...] = ("d_sae",)
    """A line for each combination of values of these names."""

    def check(self, names: Iterable[str]) -> None:
        """Check before training that what it reads is there. Raises UserError."""
        require(names, [*self.along, *self.group], [self.x, self.y], "Frontier")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """One metric along one hyper-parameter, a line per group, a band over seeds."""

    metric: str
    """Upwards."""
    x: str
    """The hyper-parameter across, a dotted name."""
    group: tuple[str, ...] = ("d_sae",)
    """A line for each combination of values of these names."""
    others: tuple[str, ...] = ()
    """Coefficients of other arms: only members where these are 0."""

    def check(self, names: Iterable[str]) -> None:
        """Check before training that what it reads is there. Raises UserError."""
        require(names, [self.x, *self.group, *self.others], [self.metric], "Profile")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heatmap:
    """One metric, a mean over seeds, as a colour over two hyper-parameters: a panel per arm and group, on one scale."""

    metric: str
    """What the colour is."""
    along: tuple[str, ...]
    """The coefficients across, dotted names; one is an arm."""
    y: str = "d_sae"
    """The hyper-parameter upwards."""
    group: tuple[str, ...] = ()
    """A panel for each combination of values of these names."""

    def check(self, names: Iterable[str]) -> None:
        """Check before training that what it reads is there. Raises UserError."""
        require(names, [*self.along, self.y, *self.group], [self.metric], "Heatmap")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parallel:
    """Every member as a line through parallel axes: hyper-parameters first, then metrics."""

    hyper: tuple[str, ...]
    """Dotted names."""
    metrics: tuple[str, ...] = ("eval/fvu", "eval/l0", "eval/dead_fraction")
    """The first gives the colour."""

    def check(self, names: Iterable[str]) -> None:
        """Check before training that what it reads is there. Raises UserError."""
        require(names, self.hyper, self.metrics, "Parallel")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curves:
    """Metrics over training: a line per member chosen, a panel per metric."""

    metrics: tuple[str, ...] = ("train/fvu", "train/l0", "train/dead_fraction")
    """Columns of the history."""

    def check(self, names: Iterable[str]) -> None:
        """Check before training that what it reads is there. Raises UserError."""
        require(names, (), self.metrics, "Curves", window="train")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FiringRates:
    """How often each latent is active on held-out examples: a histogram per member, log axis, dead at the left."""

    def check(self, names: Iterable[str]) -> None:
        """Nothing that could be missing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dictionaries:
    """What the latents of a few members have become: decoder rows, firing rates, top examples, reconstructions."""

    along: tuple[str, ...] = ()
    """Coefficients; one is an arm. One member is shown of each arm and group."""
    group: tuple[str, ...] = ("d_sae",)
    """Groups are the combinations of values of these names."""
    metric: str = "eval/fvu"
    """The member is the one in which this metric ..."""
    near: float = 0.2
    """... is closest to this."""
    latents: int = 96
    """Most latents shown of a member."""

    def check(self, names: Iterable[str]) -> None:
        """Check before training that what it reads is there. Raises UserError."""
        require(names, [*self.along, *self.group], [self.metric], "Dictionaries")


Figure = Frontier | Profile | Heatmap | Parallel | Curves | FiringRates | Dictionaries | AtMatched
KINDS = {kind.__name__: kind for kind in (*Figure.__args__, Best)}


def default_figures(members: Sequence[Mapping[str, Any]], answer: Answer | None = None) -> tuple[Figure, ...]:
    """What is worth seeing of a sweep that names no figures, by what varies. `members` are flattened experiments."""
    arms, others = coefficients(members)
    # a field that only some members have goes with a choice whose own name tells enough
    everywhere = lambda name: all(name in member for member in members)
    group = ("d_sae", *(name for name in others if name != "d_sae" and everywhere(name)))
    truth = members[0].get("data") in ("superposition", "orthonormal")
    figures: list[Figure] = []
    if isinstance(answer, Best):
        figures += [Profile(metric=answer.metric, x=answer.along, group=(answer.group,))]
    if arms:
        named = {arm_name(name): name for name in arms}
        figures += [
            Frontier(along=arms, group=group),
            AtMatched(arms=named, matched="eval/l0", at=(), metrics=("eval/fvu", *["eval/mmcs"] * truth), group=group),
            *(
                Heatmap(metric=f"eval/{m}", along=arms, group=group[1:])
                for m in ("fvu", "l0", "dead_fraction", *["mmcs"] * truth)
            ),
        ]
    if len(members) > 1:
        hyper = tuple(name for name in varying(members) if everywhere(name) or name in arms)
        figures += [Parallel(hyper=hyper)]
    chosen = {"metric": "eval/mmcs", "near": 1.0} if truth else {}
    return (*figures, Curves(), FiringRates(), Dictionaries(along=arms, group=group, **chosen))


def coefficients(members: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(what trades sparsity for error and varies, one arm each; what else varies in an arm, but seeds) of members.

    Coefficients are the numbers of a penalty, but for its warm-up, and k of an activation. Where some member has two
    of them, only that with most values makes an arm.
    """
    number = lambda value: isinstance(value, int | float) and not isinstance(value, bool)
    names = [name for name in varying(members) if name.startswith(("penalty.", "activation."))]
    arms = [n for n in names if not n.endswith("_steps") and all(number(m[n]) for m in members if n in m)]
    if any(sum(bool(member.get(name)) for name in arms) > 1 for member in members):
        arms = [max(arms, key=lambda name: len({member.get(name) for member in members}))]
    # what is one value all along each arm (the kind of activation, where one arm has its k) the arm's name tells
    inside = [varying(m for m in members if c in m and not any(m.get(o) for o in arms if o != c)) for c in arms]
    told = [name for name in varying(members) if arms and not any(name in of_arm for of_arm in inside)]
    return tuple(arms), tuple(name for name in varying(members) if name not in (*arms, *told, "seed"))


def arm_name(coefficient: str) -> str:
    """ "penalty.l1" -> "L1"; "activation.k" -> "k"."""
    last = coefficient.rpartition(".")[2]
    return last.upper() if last in ("l1", "l2") else last


def varying(members: Iterable[Mapping[str, Any]]) -> list[str]:
    """The dotted names that differ between flattened experiments (one that only some have counts), in field order."""
    members = list(members)
    names = dict.fromkeys(name for flat in members for name in flat if name != "name")
    return [name for name in names if len({repr(flat.get(name, "absent")) for flat in members}) > 1]


def plain(definition: Figure | Answer) -> dict[str, Any]:
    """A figure or an answer as JSON can hold it."""
    return {"kind": type(definition).__name__, **dataclasses.asdict(definition)}


def read(values: Mapping[str, Any]) -> Figure | Answer:
    """What `plain` wrote. Raises UserError for a kind that this version does not have."""
    values = dict(values)
    if (kind := values.pop("kind")) not in KINDS:
        raise UserError(f"figure: got {kind!r}, {nearest(kind, KINDS)}")
    return KINDS[kind](**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

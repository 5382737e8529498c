"""Frontiers: which members of a table form an arm, and what is read off them between their points."""

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sae.core.metrics import EVALUATED, OF_A_STEP
from sae.core.text import nearest
from sae.core.types import UserError
from sae.study.measures import PREFIX
from sae.study.replicates import lurking, seeds


def of_arm(members: pd.DataFrame, coefficient: str, coefficients: Iterable[str]) -> pd.DataFrame:
    """The members of an arm: they have this coefficient, and the others are 0 or absent. Sorted by the coefficient."""
    others = [name for name in coefficients if name != coefficient]
    chosen = members[coefficient].notna() & members[others].fillna(0).eq(0).all(axis=1)
    return members[chosen].sort_values(coefficient, kind="stable")


def hidden(members: pd.DataFrame, arms: Mapping[str, "Arm"], names: Sequence[str], what: str) -> tuple[str, ...]:
    """What means over the members of an arm that share `names` and a coefficient would hide: see `lurking`.

    Raises UserError, beginning with `what`, where no arm has members.
    """
    chosen = {arm.along: arm.members(members) for arm in arms.values()}
    if arms and all(one.empty for one in chosen.values()):
        got, allowed = ", ".join(chosen), "one of them" if len(chosen) > 1 else "one that some member has"
        raise UserError(f"{what}: got {got}, but no member has one alone, the others at 0; allowed: {allowed}")
    found: tuple[str, ...] = ()
    for arm in arms.values():
        found += lurking(arm.members(members), [*names, *found, arm.along])
    return found


def arms_along(coefficients: Collection[str]) -> dict[str, "Arm"]:
    """An arm for each coefficient, in which the others are 0."""
    others = lambda name: tuple(other for other in coefficients if other != name)
    return {name: Arm(along=name, others=others(name)) for name in coefficients}


def listed(definition: Any) -> None:
    """Make one name of a definition's fields for several names a tuple, which a user's slip gives as a text."""
    for field in dataclasses.fields(definition):
        value = getattr(definition, field.name)
        if field.type == tuple[str, ...] and isinstance(value, str | list):
            object.__setattr__(definition, field.name, (value,) if isinstance(value, str) else tuple(value))


def groups(table: pd.DataFrame, names: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    """(values of these names, the rows that have them), sorted by the values; a missing value is a value too."""
    for values, rows in table.groupby(list(names), dropna=False):
        yield (values if isinstance(values, tuple) else (values,)), rows


def interpolate(value: float, frontier: pd.DataFrame, x: str, y: str) -> float:
    """y at x = value, log-log between the first two neighbours of a frontier that enclose it; NaN if none do.

    If y is 0 at one of the two (no dead latents, say), y is interpolated linearly in log x instead.
    """
    xs, ys = frontier[x].to_numpy(float), frontier[y].to_numpy(float)
    for (x0, y0), (x1, y1) in zip(zip(xs, ys, strict=True), zip(xs[1:], ys[1:], strict=True), strict=False):
        if not (min(x0, x1) <= value <= max(x0, x1)) or min(x0, x1) <= 0 or x0 == x1:
            continue
        t = np.log(value / x0) / np.log(x1 / x0)
        if min(y0, y1) > 0:
            return float(np.exp((1 - t) * np.log(y0) + t * np.log(y1)))
        return float((1 - t) * y0 + t * y1)
    return float("nan")


def bootstrap(values: np.ndarray, draws: int = 2_000) -> tuple[float, float]:
    """The bootstrap 95 % percentile interval of the mean of values [n]; (NaN, NaN) for fewer than two values."""
    if len(values) < 2:
        return float("nan"), float("nan")
    picks = np.random.default_rng(0).integers(len(values), size=(draws, len(values)))
    low, high = np.quantile(np.asarray(values, float)[picks].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def require(
    names: Collection[str], hyper: Iterable[str], numbers: Iterable[str], what: str, window: str = "eval"
) -> None:
    """Check that hyper-parameters are among `names`, and that metrics exist in a window (eval or train).

    `names` holds the columns of measures too, which count as metrics. Raises UserError, beginning with `what`.
    """
    measured = [name for name in names if name.startswith(PREFIX)]
    names = [name for name in names if not name.startswith(PREFIX)]
    metrics = [f"{window}/{metric}" for metric in EVALUATED] + measured
    metrics += [f"train/{name}" for name in OF_A_STEP if window == "train"]
    for name in hyper:
        if name not in names:
            raise UserError(f"{what}: members have no '{name}'; {nearest(name, names)}")
    for name in numbers:
        if name not in metrics:
            raise UserError(f"{what}: no metric '{name}'; {nearest(name, metrics)}")


def short(name: str) -> str:
    """ "eval/l0" -> "l0"."""
    return name.removeprefix("eval/").removeprefix(PREFIX)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """The members in which one coefficient is swept while the others are 0: a line for each group and seed."""

    along: str
    """The coefficient, a dotted name."""
    others: tuple[str, ...] = ()
    """Coefficients that are 0 in this arm."""
    group: tuple[str, ...] = ("d_sae",)
    """A line for each combination of values of these names."""
    where: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    """{name: values}: only members with one of these values."""

    def __post_init__(self) -> None:
        listed(self)
        if isinstance(self.where, Mapping):
            some = {name: tuple(values) if isinstance(values, list) else values for name, values in self.where.items()}
            object.__setattr__(self, "where", some)
            for name, values in some.items():
                if isinstance(values, str) or not isinstance(values, Iterable):
                    raise UserError(f"Arm: where {name}: got {values!r}, allowed: a tuple of values, ({values!r},)")

    def check(self, names: Collection[str]) -> None:
        """Check before training that members have these hyper-parameters. Raises UserError."""
        require(names, [self.along, *self.others, *self.group, *self.where], (), "claim")

    def members(self, members: pd.DataFrame) -> pd.DataFrame:
        """The members of the arm, in the order of the coefficient."""
        chosen = of_arm(members, self.along, [self.along, *self.others])
        for name, values in self.where.items():
            chosen = chosen[chosen[name].isin(values)]
        return chosen

    def lines(self, members: pd.DataFrame) -> Iterator[tuple[str, Any, pd.DataFrame]]:
        """(label of the group, seed, members in the order of the coefficient) for each line.

        Where several seeds vary, a line has one value of each: its seed is then "seed 0, data_seed 1". Raises
        UserError if no member belongs to the arm, or none has one of the values in `where`.
        """
        alone = of_arm(members, self.along, [self.along, *self.others])
        for name, values in self.where.items():
            if absent := [value for value in values if not alone[name].isin([value]).any()]:
                raise UserError(f"claim: no member with {self.along} alone has {name} {', '.join(map(str, absent))}")
        chosen = self.members(members)
        if chosen.empty:
            raise UserError(f"claim: no member has {self.along} alone{f' and {dict(self.where)}' * bool(self.where)}")
        varied = [name for name in seeds(members) if members[name].nunique() > 1] or ["seed"]
        for key, line in groups(chosen, [*self.group, *varied]):
            values, of_seeds = key[: len(self.group)], key[len(self.group) :]
            pairs = zip(varied, of_seeds, strict=True)
            seed = of_seeds[0] if len(of_seeds) == 1 else ", ".join(f"{name} {value}" for name, value in pairs)
            if line.duplicated(self.along).any():
                raise UserError(
                    f"claim: several members of one line have the same {self.along}; add what else differs to `group`"
                )
            words = [
                f"{short(name)} {value:g}" if isinstance(value, float) else f"{short(name)} {value}"
                for name, value in zip(self.group, values, strict=True)
            ]
            yield ", ".join(words), seed, line.reset_index(drop=True)

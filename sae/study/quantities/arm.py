"""Arms as claims read them: the members of a sweep as lines along one coefficient."""

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

from sae.core.types import UserError
from sae.study.answers import groups, listed, of_arm, require, short
from sae.study.replicates import seeds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """The members in which one coefficient is swept while the others are 0: a line for each group and seed."""

    along: str
    """The coefficient, a dotted name."""
    others: tuple[str, ...] = ()
    """Coefficients that are 0 in this arm."""
    group: tuple[str, ...] = ("d_sae",)
    """A line for each combination of values of these names."""
    where: Mapping[str, tuple] = dataclasses.field(default_factory=dict)
    """{name: values}: only members with one of these values."""

    def __post_init__(self) -> None:
        listed(self)

    def check(self, names: Collection[str]) -> None:
        """Check before training that members have these hyper-parameters. Raises UserError."""
        require(names, [self.along, *self.others, *self.group, *self.where], (), "claim")
        for name, values in self.where.items():
            if isinstance(values, str) or not isinstance(values, Iterable):
                raise UserError(f"claim: where {name}: got {values!r}, allowed: a tuple of values, ({values!r},)")

    def lines(self, members: pd.DataFrame) -> Iterator[tuple[str, Any, pd.DataFrame]]:
        """(label of the group, seed, members in the order of the coefficient) for each line.

        Where several seeds vary, a line has one value of each: its seed is then "seed 0, data_seed 1". Raises
        UserError if no member belongs to the arm, or none has one of the values in `where`.
        """
        chosen = of_arm(members, self.along, [self.along, *self.others])
        for name, values in self.where.items():
            if absent := [value for value in values if not chosen[name].isin([value]).any()]:
                raise UserError(f"claim: no member with {self.along} alone has {name} {', '.join(map(str, absent))}")
            chosen = chosen[chosen[name].isin(values)]
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

"""Arms: the numbers that trade sparsity for error. A sweep along one of them draws one frontier, an *arm*.

A definition marks such a number with `leaf(..., arm=True)`; a run keeps the marked names in its definition.json.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sae.core.definitions import fields
from sae.experiment import Experiment


def marked(members: Iterable[Experiment]) -> tuple[str, ...]:
    """The dotted names of the fields that are marked as arms in any member, whether or not they vary."""
    return tuple(dict.fromkeys(name for member in members for name in _marked(member)))


def recorded(definition: Mapping[str, Any]) -> tuple[str, ...]:
    """The arms that a run's definition.json names.

    The definition of an older run, or of one pulled from W&B, may name none. Then the numbers of a penalty, without its
    warm-up, and those of an activation are arms.
    """
    if (named := definition.get("arms")) is not None:
        return tuple(named)
    members = definition["members"]
    names = dict.fromkeys(name for member in members for name in member)
    return tuple(
        name
        for name in names
        if name.startswith(("penalty.", "activation.")) and not name.endswith("_steps") and _is_number(members, name)
    )


def _is_number(members: Iterable[Mapping[str, Any]], name: str) -> bool:
    values = [member[name] for member in members if name in member]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _marked(value: Any, prefix: str = "") -> Iterator[str]:
    for field in fields(value):
        name, inner = prefix + field.name, getattr(value, field.name)
        if dataclasses.is_dataclass(inner):
            yield from _marked(inner, f"{name}.")
        elif field.metadata.get("arm"):
            yield name

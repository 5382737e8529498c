"""Markers of fields, names for arrays, and the errors that a user meets."""

import dataclasses
import signal
from typing import Any, TypeAlias, TypeVar, dataclass_transform

import jax

T = TypeVar("T")
Array: TypeAlias = jax.Array
Key: TypeAlias = jax.Array  # a typed PRNG key, jax.random.key(...)


class UserError(Exception):
    """Bad input. The message is one line: what was got, what was allowed, the nearest fix."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to stop: its state is saved, and the same command goes on from there."""

    def __init__(self, signal_number: int) -> None:
        self.exit_code = 128 + signal_number
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,))
def definition(cls: type[T]) -> type[T]:
    """Class decorator: a frozen, keyword-only dataclass that is also a pytree.

    Fields made with `leaf` may differ between members of one compiled program; fields made with
    `static` fix shapes or code, so members that differ there train in different programs.
    """
    made: Any = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    made.__sae_definition__ = made  # a class derived from it, or a plain dataclass, has none of its own
    is_leaf = {field.name: field.metadata.get("pytree_node", True) for field in dataclasses.fields(made)}
    leaves = [name for name, is_one in is_leaf.items() if is_one]
    statics = [name for name, is_one in is_leaf.items() if not is_one]
    values = lambda value, names: tuple(getattr(value, name) for name in names)
    keys = [jax.tree_util.GetAttrKey(name) for name in leaves]
    # not jax.tree_util.register_dataclass: tree structures of two such classes can be equal (jax 0.10), so that one
    # class would run the compiled program of another
    jax.tree_util.register_pytree_with_keys(
        made,
        lambda value: (tuple(zip(keys, values(value, leaves), strict=True)), values(value, statics)),
        lambda aux, children: made(**dict(zip(statics, aux, strict=True)), **dict(zip(leaves, children, strict=True))),
        lambda value: (values(value, leaves), values(value, statics)),
    )
    return made


def leaf(
    default: Any = dataclasses.MISSING, *, min: float | None = None, max: float | None = None, arm: bool = False
) -> Any:
    """A number that may vary inside one compiled program. `min` and `max` are inclusive bounds.

    `arm` marks a number that trades sparsity for error (a penalty's coefficient, k): the members of a sweep along it
    are one arm of a frontier.
    """
    return _field(default, pytree_node=True, min=min, max=max, arm=arm)


def static(
    default: Any = dataclasses.MISSING,
    *,
    min: float | None = None,
    max: float | None = None,
    most_of: str | None = None,
    path: bool = False,
) -> Any:
    """A value that fixes shapes or code. It must be hashable. `min` and `max` are inclusive bounds.

    `most_of` names a leaf of the same definition: None then stands for the largest value that this leaf has among the
    members of one compiled program, and is filled in when they are stacked. `path` marks a path, which
    `sae.core.files.located` looks for beside the definition file first.
    """
    return _field(default, pytree_node=False, min=min, max=max, arm=False, most_of=most_of, path=path)


def _field(default: Any, **metadata: Any) -> Any:
    kwargs = {} if default is dataclasses.MISSING else {"default": default}
    return dataclasses.field(metadata=metadata, **kwargs)

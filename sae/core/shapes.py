"""What JSON from a file must look like: types written as Python writes them, and the first place that differs."""

import dataclasses
import re
import reprlib
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sae.core.definitions import describe

MOST = 2**63  # whole numbers are smaller, as tables hold them
_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which no file can hold
_TYPES: dict[type, tuple[type, ...]] = {float: (int, float), str: (str,), bool: (bool,), int: (int,)}


def fault(value: Any, wanted: Any, where: str) -> str | None:
    """The first place at which a value of JSON has another type than is wanted, with what is allowed; None for none.

    `wanted` is Any, None, str, bool, int, float (which whole numbers are too), a Literal, a union, list[X],
    Sequence[X], tuple[X, ...], dict[str, X] or Mapping[str, X], or a dataclass made of it; or {name: wanted}, the
    entries that there may be, among others.
    """
    origin, inner = get_origin(wanted), get_args(wanted)
    if isinstance(wanted, Mapping):
        if not isinstance(value, dict):
            return _fault(value, "an object", where)
        places = [(value[name], of_name, f"{where}.{name}") for name, of_name in wanted.items() if name in value]
    elif origin in (dict, Mapping):
        if not isinstance(value, dict):
            return _fault(value, "an object", where)
        places = [(word, str, f"{where}, a name") for word in value]
        places += [(held, inner[1], f"{where}.{word}") for word, held in value.items()]
    elif origin in (list, tuple, Sequence):
        if not isinstance(value, list | tuple):
            return _fault(value, "a list", where)
        places = [(held, inner[0], f"{where}[{i}]") for i, held in enumerate(value)]
    elif origin in (Union, types.UnionType):
        found = [fault(value, one, where) for one in inner]
        return None if None in found else _fault(value, describe(wanted), where)
    elif dataclasses.is_dataclass(wanted) and isinstance(wanted, type):
        if not isinstance(value, wanted):
            return _fault(value, describe(wanted), where)
        places = [(getattr(value, name), hint, f"{where}.{name}") for name, hint in get_type_hints(wanted).items()]
    else:
        return None if _is(value, wanted) else _fault(value, describe(wanted), where)
    return next((found for place in places if (found := fault(*place))), None)


def _is(value: Any, wanted: Any) -> bool:
    if wanted is Any:
        return True
    if wanted in (None, type(None)):
        return value is None
    if get_origin(wanted) is Literal:
        return isinstance(value, str | int) and value in get_args(wanted)
    if not isinstance(value, _TYPES[wanted]) or (isinstance(value, bool) and wanted is not bool):
        return False
    if isinstance(value, int):
        return abs(value) < MOST
    return not (isinstance(value, str) and _SURROGATE.search(value))


def _fault(value: Any, allowed: str, where: str) -> str:
    return f"{where.lstrip('.')}: got {reprlib.repr(value)}, allowed: {allowed}"

"""The data of a plan: each source is loaded once for all cohorts that share it, and tells what it is."""

from collections.abc import Mapping, Sequence
from typing import Any

from sae.core.definitions import is_own, kind
from sae.core.types import UserError
from sae.data import feed as feeds
from sae.data.sampler import Sampler
from sae.data.source import Examples, Source
from sae.engine.cohort import Cohort

Loaded = dict[Source, Examples]

# JAX compiles programs for a sampler's own function, so a process that runs a definition again takes the sampler that
# it has. A user's own class is loaded again, as what it calls may have been defined anew in a notebook.
_samplers: dict[Source, Sampler] = {}
MOST_SAMPLERS = 16


def load_data(plan: Sequence[Cohort], loaded: Loaded | None = None) -> Loaded:
    """{source: its data} for every source of a plan; `loaded` holds those that are there already, and gets the others.

    Raises UserError, also for what a user's own source does wrong.
    """
    loaded = {} if loaded is None else loaded
    for cohort in plan:
        source = cohort.example.data
        if source not in loaded:
            loaded[source] = load(source)
        feeds.check(loaded[source], cohort.example.batch_size)
    return loaded


def load(source: Source) -> Examples:
    """The data of a source. Raises UserError, also for what a user's own source does wrong."""
    if source in _samplers:
        return _samplers[source]
    data = _asked(source, "load")
    if not isinstance(data, Examples):
        got = type(data).__name__
        raise UserError(f"{kind(source)}: load() gave a {got}, allowed: what sae.rows(...) gives, or sae.Examples")
    if isinstance(data, Sampler) and not is_own(type(source)):
        if len(_samplers) >= MOST_SAMPLERS:
            _samplers.pop(next(iter(_samplers)))
        _samplers[source] = data
    return data


def fingerprint(source: Source, loaded: Loaded) -> dict[str, str]:
    """What tells the data of a source from others; `loaded` gets the data where it takes loading them.

    Raises UserError, also for what a user's own source does wrong.
    """
    found = _asked(source, "fingerprint")
    if found is None:
        if source not in loaded:
            loaded[source] = load(source)
        found = getattr(loaded[source], "fingerprint", {})
    return {str(name): str(value) for name, value in found.items()}


def _asked(source: Source, method: str) -> Any:
    """What a method of a source gives. Raises UserError for whatever a user's own source raises."""
    try:
        return getattr(source, method)()
    except (UserError, MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise UserError(f"{kind(source)}: {method}() raised {type(error).__name__}: {error}") from error


def change(old: Mapping[str, str], new: Mapping[str, str]) -> str | None:
    """The first difference between two fingerprints of one source, in words; None where there is none."""
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            return f"{name}: was {old.get(name, 'not there')}, is {new.get(name, 'not there')}"
    return None

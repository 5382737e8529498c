"""The data of a plan: each source is loaded once for all cohorts that share it, and tells what it is."""

from collections.abc import Mapping, Sequence
from typing import Any

from sae.core.definitions import Choice, is_own, kind
from sae.core.types import UserError
from sae.data import feed as feeds
from sae.data.sampler import Sampler
from sae.data.source import Examples, Source, parts_of
from sae.engine.cohort import Cohort
from sae.experiment import Experiment

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
        _check_shapes(cohort.example, loaded[source])
    return loaded


def _check_shapes(experiment: Experiment, data: Examples) -> None:
    """Raises UserError where the experiment's task cannot use such rows."""
    parts = parts_of(data)
    shapes = _asked(experiment.task, "shapes", parts)
    what = kind(experiment.data)
    if sum(parts) != data.d_in:
        raise UserError(f"{what}: parts: got {' + '.join(map(str, parts))}, allowed: widths that make {data.d_in}")
    if len(parts) > 1 and data.image_shape is not None:
        raise UserError(f"{what}: image_shape: got {data.image_shape}, allowed: None for rows of several parts")
    if data.features is not None and data.features.shape[1] != shapes.d_out:
        width = data.features.shape[1]
        raise UserError(f"{what}: features: got width {width}, allowed: that of what is reconstructed, {shapes.d_out}")


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


def _asked(choice: Choice, method: str, *args: Any) -> Any:
    """What a method of a source, or of another choice, gives. Raises UserError for whatever a user's own raises."""
    try:
        return getattr(choice, method)(*args)
    except (UserError, MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise UserError(f"{kind(choice)}: {method}() raised {type(error).__name__}: {error}") from error


def change(old: Mapping[str, str], new: Mapping[str, str]) -> str | None:
    """The first difference between two fingerprints of one source, in words; None where there is none."""
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            return f"{name}: was {old.get(name, 'not there')}, is {new.get(name, 'not there')}"
    return None

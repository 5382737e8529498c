"""One run: every choice and number that decides its result, as one frozen pytree.

The names of fields are the names everywhere: `penalty.l1` is the attribute path, the command-line flag, the
sweep axis, the W&B config key and the column of the members table.
"""

import dataclasses
import re
import reprlib
from collections.abc import Iterator
from typing import Any, Literal, get_type_hints

import numpy as np
from beartype import BeartypeConf
from beartype.door import is_bearable

from sae.core.text import nearest
from sae.core.types import UserError, definition, leaf, static
from sae.data import Arrays, Digits, ImagePatches, Orthonormal, Superposition, Tfds
from sae.methods.activations import Relu, TopK
from sae.methods.constraints import Free, UnitNorm, UnitNormNoBias
from sae.methods.optimizers import Adam
from sae.methods.penalties import ElasticNet
from sae.methods.revival import Never, Resample


@definition
class Experiment:
    """The definition of one run. The loss is `mean_b ‖x - x_hat‖² + penalty`, summed over `d_in`."""

    name: str = static()
    """What the run is called; it decides nothing else."""
    data: Digits | ImagePatches | Tfds | Arrays | Superposition | Orthonormal = static()
    """Where examples come from."""
    d_sae: int = static(min=1)
    """Number of latents."""
    n_steps: int = static(min=1)
    """Optimizer updates."""
    batch_size: int = static(1024, min=1)
    """Examples per update."""
    activation: Relu | TopK = leaf(Relu())
    """Pre-activations to latents."""
    penalty: ElasticNet = leaf(ElasticNet())
    """Cost of the latents, added to the squared error."""
    constraint: Free | UnitNorm | UnitNormNoBias = leaf(UnitNorm())
    """What is held after every step."""
    revival: Never | Resample = leaf(Never())
    """Remedy for dead latents."""
    optimizer: Adam = leaf(Adam())
    """The update rule."""
    b_dec_init: Literal["zero", "mean", "geometric-median"] = static("zero")
    """Initial decoder bias; the last two are of a sample of the training examples."""
    apply_b_dec_to_input: bool = static(True)
    """Encode x - b_dec rather than x."""
    precision: Literal["float32", "bfloat16"] = static("float32")
    """Of the factors of the step's matrix products; they are summed, and all else is kept, in float32."""
    dead_after: int = leaf(100_000, min=1)
    """Training examples without activity after which a latent is called dead."""
    seed: int = leaf(0, min=0)
    """Of the initial weights and of resampling. Members with different seeds see the same batches."""
    data_seed: int = static(0, min=0)
    """Of the order of the examples (or, for sampled data, of the examples)."""
    n_eval: int | None = static(None, min=1)
    """Held-out examples to evaluate on; None for all of them."""


def kind(choice: Any) -> str:
    """The name of a choice: TopK -> "top-k"."""
    name = choice.__name__ if isinstance(choice, type) else type(choice).__name__
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """A definition as {dotted name: value}; a choice is named by its kind, and its fields follow it."""
    flat = {}
    for field in dataclasses.fields(value):
        name, inner = prefix + field.name, getattr(value, field.name)
        if dataclasses.is_dataclass(inner):
            flat[name] = kind(inner)
            flat |= flatten(inner, f"{name}.")
        else:
            flat[name] = inner
    return flat


def replace(value: Any, changes: dict[str, Any]) -> Any:
    """A definition with some dotted names changed. Raises UserError for an unknown name."""
    for name, new in changes.items():
        new = new.item() if isinstance(new, np.generic) else new
        value = _replace_one(value, name, name.split("."), new)
    return value


def _replace_one(value, name, path, new):
    head, *rest = path
    fields = [field.name for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    if head not in fields:
        prefix = name.removesuffix(".".join(path))
        raise UserError(
            f"{kind(value) if fields else repr(value)} has no field '{name}'; "
            + nearest(name, [prefix + field for field in fields] or ["none"])
        )
    inner = _replace_one(getattr(value, head), name, rest, new) if rest else new
    return dataclasses.replace(value, **{head: inner})


def validate(experiment: Experiment) -> Experiment:
    """The experiment with whole numbers in float fields made floats, so that they have one type everywhere.

    Checks every field's type and range. Raises UserError with one line that names the field.
    """
    if not isinstance(experiment, Experiment):
        raise UserError(f"got {type(experiment).__name__}, allowed: an Experiment")
    for problem in _problems(experiment, ""):
        raise UserError(f"{experiment.name!r}: {problem}")
    activation, d_sae = experiment.activation, experiment.d_sae
    if isinstance(activation, TopK) and activation.k > d_sae:
        raise UserError(f"{experiment.name!r}: activation.k: got {activation.k}, allowed: at most d_sae = {d_sae}")
    try:
        hash(experiment.data)
    except TypeError:
        kind_of_data = type(experiment.data).__name__
        raise UserError(
            f"{experiment.name!r}: data: {kind_of_data} cannot be hashed; decorate the class with sae.definition"
        ) from None
    return _floats(experiment)


def _floats(value: Any) -> Any:
    """A definition in which every field that is annotated as a float holds one."""
    hints, changes = get_type_hints(type(value)), {}
    for field in dataclasses.fields(value):
        got = getattr(value, field.name)
        if dataclasses.is_dataclass(got):
            changes[field.name] = _floats(got)
        elif isinstance(got, int) and not isinstance(got, bool) and hints[field.name] in (float, float | None):
            changes[field.name] = float(got)
    return dataclasses.replace(value, **changes)


def _problems(value: Any, prefix: str) -> Iterator[str]:
    hints = get_type_hints(type(value))
    for field in dataclasses.fields(value):
        name, got, hint = prefix + field.name, getattr(value, field.name), hints[field.name]
        if _fills_in(got, hint):
            yield from _problems(got, f"{name}.")  # a choice of the user's own is as good as ours
        elif isinstance(got, int) and abs(got) >= 2**31:
            yield f"{name}: got {got}, allowed: 32-bit integers"
        elif not is_bearable(got, hint, conf=BeartypeConf(is_pep484_tower=True)) or (
            isinstance(got, bool) and hint in (int, float)
        ):
            own = ", or an instance of a class like them made with sae.definition" if _choices(hint) else ""
            yield f"{name}: got {reprlib.repr(got)}, allowed: {describe(hint)}{own}"
        elif dataclasses.is_dataclass(got):
            yield from _problems(got, f"{name}.")
        elif (low := field.metadata.get("min")) is not None and got is not None and got < low:
            yield f"{name}: got {got}, allowed: at least {low}"
        elif (high := field.metadata.get("max")) is not None and got is not None and got > high:
            yield f"{name}: got {got}, allowed: at most {high}"


def _choices(hint: Any) -> list[type]:
    """The definitions among the types that a field may have."""
    return [option for option in getattr(hint, "__args__", (hint,)) if dataclasses.is_dataclass(option)]


def _fills_in(got: Any, hint: Any) -> bool:
    """Whether a definition that is not among a field's choices can all that one of them can."""
    if not dataclasses.is_dataclass(got) or isinstance(got, type) or type(got) in _choices(hint):
        return False
    used = lambda choice: [n for n, f in vars(choice).items() if callable(f) and (n == "__call__" or n[0] != "_")]
    ours = lambda choice: [n for n in used(choice) if n != "replace"]
    return any(all(callable(getattr(got, name, None)) for name in ours(choice)) for choice in _choices(hint))


def describe(hint: Any) -> str:
    """A type as a person would say it."""
    options = getattr(hint, "__args__", None)
    if getattr(hint, "__origin__", None) is Literal:
        return ", ".join(map(str, options))
    if options and getattr(hint, "__origin__", None) is not tuple:
        return " or ".join(describe(option) for option in options)
    if hint is type(None):
        return "None"
    return getattr(hint, "__name__", str(hint))


def unflatten(cls: type, field: str, flat: dict[str, Any], prefix: str = "") -> Any:
    """The choice that `flatten` wrote under a field's dotted name."""
    name = prefix + field
    choices = {kind(choice): choice for choice in _choices(get_type_hints(cls)[field])}
    if flat[name] not in choices:
        raise UserError(f"{name}: got {flat[name]!r}, {nearest(str(flat[name]), choices)}")
    choice = choices[flat[name]]
    return choice(**{f.name: flat[f"{name}.{f.name}"] for f in dataclasses.fields(choice)})

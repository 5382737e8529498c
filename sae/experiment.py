"""One run: every choice and number that decides its result, as one frozen pytree.

The names of fields are the names everywhere: `penalty.l1` is the attribute path, the command-line flag, the
sweep axis, the W&B config key and the column of the members table.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal, get_type_hints

from sae.core.definitions import Choice, adopted, choices, fields, file_of, is_own, kind, numbers, problems
from sae.core.types import UserError, definition, leaf, static
from sae.data.source import Source
from sae.methods.activations import Relu, elementwise
from sae.methods.auxiliaries import NoAuxiliary
from sae.methods.averages import Last
from sae.methods.constraints import UnitNorm
from sae.methods.contract import (
    Activation,
    Auxiliary,
    Average,
    Constraint,
    Control,
    Initialization,
    Optimizer,
    Penalty,
    Reconstruction,
    Revival,
    Task,
)
from sae.methods.controls import AsWritten
from sae.methods.initialization import RandomRows
from sae.methods.optimizers import Adam
from sae.methods.penalties import ElasticNet
from sae.methods.reconstructions import SquaredError
from sae.methods.revival import Never
from sae.methods.tasks import Autoencoder


@definition
class Experiment:
    """The definition of one run.

    The loss is `reconstruction + control · penalty + auxiliary`, each a mean over the batch, and what an activation
    costs by itself (Gated, MultiTopK, TopAfa); see `sae/methods`.
    """

    name: str = static()
    """Name of the run; it decides nothing else."""
    data: Source = static()
    """Where examples come from."""
    d_sae: int = static(min=1)
    """Number of latents."""
    n_steps: int = static(min=1)
    """Optimizer updates."""
    batch_size: int = static(1024, min=1)
    """Examples per update."""
    task: Task = leaf(Autoencoder())
    """What is reconstructed, and from what."""
    activation: Activation = leaf(Relu())
    """Pre-activations to latents."""
    reconstruction: Reconstruction = leaf(SquaredError())
    """Latents to reconstructions, and their error."""
    penalty: Penalty = leaf(ElasticNet())
    """Cost of the latents, added to the error."""
    control: Control = leaf(AsWritten())
    """The factor of the penalty while it trains."""
    auxiliary: Auxiliary = leaf(NoAuxiliary())
    """A further cost, for dead latents."""
    constraint: Constraint = leaf(UnitNorm())
    """What the parameters keep to after every step."""
    revival: Revival = leaf(Never())
    """Remedy for dead latents, between steps."""
    optimizer: Optimizer = leaf(Adam())
    """The update rule."""
    average: Average = leaf(Last())
    """The weights that are evaluated and kept."""
    initialization: Initialization = leaf(RandomRows())
    """The parameters before the first step."""
    b_dec_init: Literal["zero", "mean", "geometric-median"] = static("zero")
    """Initial decoder bias; the last two are of a sample of the training examples."""
    apply_b_dec_to_input: bool = static(True)
    """Encode x - b_dec rather than x."""
    precision: Literal["float32", "tensorfloat32", "bfloat16"] = static("float32")
    """Precision of the factors in the step's matrix products. Sums, and everything else, are float32."""
    dead_after: int | None | str = leaf(None, min=1)
    """Training examples without activity after which a latent is called dead; None for a tenth of the training, at most
    100,000 and at least a batch. "1000 steps" and "1e7 tokens" are texts for examples: a token is one."""
    dead_windows: tuple[int | str, ...] = static(())
    """Further such windows: each has a column train/dead_N, the latents silent for N examples. They decide nothing."""
    seed: int = leaf(0, min=0)
    """Seed of the initial weights and of resampling. Members with different seeds see the same batches."""
    data_seed: int = static(0, min=0)
    """Seed of the order of the examples (for sampled data, of the examples)."""
    n_eval: int | None = static(None, min=1)
    """Held-out examples to evaluate on; None for all of them."""

    def __post_init__(self) -> None:
        # a user's source and a user's function of the pre-activations may do without a base class
        object.__setattr__(self, "data", adopted(self.data, Source, "load"))
        object.__setattr__(self, "activation", elementwise(self.activation))

    @property
    def dead_window(self) -> int:
        """`dead_after`, as a number."""
        if self.dead_after is None:
            return _tenth(self.n_steps, self.batch_size)
        return _examples("dead_after", self.dead_after, self.batch_size)


def validate(experiment: Experiment) -> Experiment:
    """The experiment with Python's own numbers, floats in float fields, so that each has one type everywhere.

    `dead_after` is a number in it. Checks every field's type and range, and each choice beside the others. Raises
    UserError with one line that names the field.
    """
    if not isinstance(experiment, Experiment):
        raise UserError(f"got {type(experiment).__name__}, allowed: an Experiment")
    experiment = numbers(experiment)
    for problem in problems(experiment):
        raise UserError(f"{experiment.name!r}: {problem}")
    for field, choice in {"data": experiment.data, **method(experiment)}.items():
        ours = [cls for cls in choices(get_type_hints(Experiment)[field]) if not is_own(cls)]
        if is_own(type(choice)) and kind(choice) in map(kind, ours):
            name = type(choice).__name__
            raise UserError(f"{experiment.name!r}: {field}: {name} is a name of the project's; give your class another")
        if fault := choice.check(experiment):
            raise UserError(f"{experiment.name!r}: {field}.{fault}")
    try:
        hash(experiment.data)
    except TypeError:
        source = type(experiment.data).__name__
        raise UserError(
            f"{experiment.name!r}: data: {source} cannot be hashed; decorate the class with sae.definition"
        ) from None
    try:
        return resolved(experiment)
    except UserError as error:
        raise UserError(f"{experiment.name!r}: {error}") from None


def resolved(experiment: Experiment) -> Experiment:
    """The experiment with the number that `dead_after` stands for, and with choices that know their files."""
    looked = {name: choice.resolved() for name, choice in method(experiment).items()}
    windows = tuple(_examples("dead_windows", window, experiment.batch_size) for window in experiment.dead_windows)
    return dataclasses.replace(experiment, **looked, dead_after=experiment.dead_window, dead_windows=windows)


def window_follows(flat: Mapping[str, Any]) -> bool:
    """Whether a flattened experiment has the `dead_after` of one that leaves it open."""
    after, n_steps, batch_size = (flat.get(name) for name in ("dead_after", "n_steps", "batch_size"))
    return n_steps is not None and batch_size is not None and after in (None, _tenth(n_steps, batch_size))


def _examples(field: str, window: int | str, batch_size: int) -> int:
    """A window in examples, from a text such as "1000 steps". Raises UserError."""
    if isinstance(window, str):
        found = re.fullmatch(r"([0-9][0-9_,]*(?:\.[0-9]+)?(?:e[0-9]{1,2})?) ?(example|token|step)s?", window.strip())
        if found is None:
            raise UserError(f"{field}: got {window!r}, allowed: examples, or a text such as '1000 steps', '1e7 tokens'")
        number, unit = float(found[1].replace(",", "").replace("_", "")), found[2]
        examples = round(number * (batch_size if unit == "step" else 1))
    else:
        examples = window
    if isinstance(examples, int) and not 1 <= examples < 2**31:  # while training it is traced
        raise UserError(f"{field}: got {window!r}, allowed: 1 to {2**31 - 1} examples")
    return examples


def _tenth(n_steps: int, batch_size: int) -> int:
    return max(batch_size, min(100_000, n_steps * batch_size // 10))


def tied_to_length(experiment: Experiment, n_steps: int) -> str | None:
    """Why the first `n_steps` steps of an experiment are not those of a run of that length, or None where they are."""
    for name, choice in method(experiment).items():
        if is_own(type(choice)) and isinstance(choice, Activation | Auxiliary | Control | Optimizer | Penalty):
            return f"{name}: {type(choice).__name__} is told n_steps, and may follow it"
        if why := choice.tied_to_length():
            return f"{name}.{why}"
    if n_steps in experiment.revival.steps():
        return f"revival: it acts after step {n_steps}, where the shorter run ended"
    return None


def method(experiment: Experiment) -> dict[str, Choice]:
    """The choices that make the method, by their fields: all but the data."""
    values = {field.name: getattr(experiment, field.name) for field in dataclasses.fields(experiment)}
    return {name: value for name, value in values.items() if isinstance(value, Choice) and name != "data"}


def own_files(experiment: Experiment) -> dict[str, str]:
    """The file of every choice that is a user's own class, {"activation shift": "my.py"}, as `unflatten` wants it."""
    made = {"data": experiment.data, **method(experiment)}
    mine = {name: type(choice) for name, choice in made.items() if is_own(type(choice))}
    return {f"{name} {kind(cls)}": file_of(cls) for name, cls in mine.items()}


def complete(flat: dict[str, Any]) -> dict[str, Any]:
    """A flattened experiment with the fields that did not exist when it was written, at their defaults."""
    full, hints = dict(flat), get_type_hints(Experiment)
    for field in fields(Experiment):
        default = field.default
        if field.name not in full and default is not dataclasses.MISSING:
            full[field.name] = kind(default) if isinstance(default, Choice) else default
        chosen = [cls for cls in choices(hints[field.name]) if kind(cls) == full.get(field.name)]
        for inner in fields(chosen[-1]) if chosen else ():
            if inner.default is not dataclasses.MISSING:
                full.setdefault(f"{field.name}.{inner.name}", inner.default)
    return full

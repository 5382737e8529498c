"""A rehearsal: every choice of a user's own is called once on a tiny batch, before anything is trained or written.

What is wrong with a class is then one line that names it, its method and the shape that was wanted, and not an error
deep inside a compiled program. Nothing is computed: JAX traces the calls, with every number of the experiment a tracer,
as it is while training.
"""

import functools
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae import train
from sae.core import model
from sae.core.definitions import is_own
from sae.core.metrics import METRICS, OF_A_STEP
from sae.core.model import Pass, Sae, Shapes
from sae.core.types import Array, UserError
from sae.data.source import Examples, Source, parts_of
from sae.engine.cohort import Cohort
from sae.experiment import Experiment, method
from sae.methods.reconstructions import Through

BATCH = 4
Check = Callable[[Any], str | None]  # a result -> what is wrong with it


def rehearse(plan: Sequence[Cohort], data: Mapping[Source, Examples]) -> None:
    """Try the method of every cohort that has a class of the user's own. Raises UserError."""
    for cohort in plan:
        if any(is_own(type(choice)) for choice in method(cohort.example).values()):
            parts = parts_of(data[cohort.example.data])
            jax.eval_shape(functools.partial(_method, parts=parts), cohort.example)


def _method(e: Experiment, parts: tuple[int, ...]) -> None:
    d_sae, rows = e.d_sae, jnp.zeros((sum(parts), BATCH))
    latents, scalar = _shape("[d_sae, batch]", (d_sae, BATCH)), _shape("[]", ())
    key, step, dead = jax.random.key(0), jnp.int32(0), jnp.zeros(d_sae, bool)

    own = _call(e, "activation", "init", d_sae, check=_own(d_sae))
    shapes = _call(e, "task", "shapes", parts, check=lambda got: None if isinstance(got, Shapes) else "Shapes")
    four = {"W_enc": (d_sae, shapes.d_in), "b_enc": d_sae, "W_dec": (d_sae, shapes.d_out), "b_dec": shapes.d_out}
    four |= {"W_skip": (shapes.d_out, shapes.d_in)} if shapes.skip else {}
    named = {name: jnp.zeros(shape) for name, shape in four.items()} | {f"own.{name}": a for name, a in own.items()}
    sae = model.from_parameters(named, e.activation, e.apply_b_dec_to_input, e.precision, parts=shapes.parts)
    (x, y), alone = model.divided(sae, rows), model.using(sae, None)
    z, here = _call(e, "activation", "pre_acts", sae, x, x[:, 0], check=latents), model.at(sae, x)
    f = _call(e, "activation", "__call__", here, z, check=latents)
    charged = _call(e, "activation", "training", here, z, check=_pair(latents, latents))[1]
    _call(e, "activation", "active", here, z, check=latents)
    if isinstance(e.reconstruction, Through):
        _call(e, "reconstruction", "follows", y, check=_columns)
    x_hat = _call(
        e, "reconstruction", "__call__", here, f, y, step, check=_pair(scalar, _shape("[d_out, batch]", y.shape))
    )[1]
    out = Pass(here, x, y, z, f, charged, x_hat, dead, step, e.n_steps)
    _call(e, "activation", "cost", out, check=scalar)
    _call(e, "activation", "settle", own, out, check=_like(own))
    _call(e, "penalty", "cost", out, check=scalar)
    _call(e, "penalty", "__call__", out, check=scalar)
    _call(e, "auxiliary", "cost", out, check=scalar)
    state = _call(e, "control", "init")
    _call(e, "control", "factor", state, check=scalar)
    _call(e, "control", "own_rate", state, check=scalar)
    _call(e, "control", "settle", state, out, check=_like(state))
    _call(e, "control", "numbers", state, check=_numbers)
    _call(e, "initialization", "__call__", key, d_sae, x, y, alone.b_dec[...], check=_parameters_of(alone))
    _call(e, "constraint", "gradient", alone, alone, check=_like(alone))
    _call(e, "constraint", "project", alone, check=_like(alone))
    held = _call(e, "constraint", "init", alone)
    _call(e, "constraint", "restrict", alone, alone, check=_like(alone))
    _call(e, "constraint", "keep", held, alone, check=_like(alone))
    state = _call(e, "average", "init", alone)
    _call(e, "average", "settle", state, alone, check=_like(state))
    _call(e, "average", "revive", state, dead, alone, check=_like(state))
    _call(e, "average", "weights", state, alone, check=_like(alone))
    chain = _call(e, "optimizer", "transform", e.n_steps, check=_has("init", "update"))
    _call(e, "optimizer", "numbers", step, e.n_steps, check=_numbers)
    _call(e, "optimizer", "weights", chain.init(alone), alone, check=_like(alone))
    _call(e, "revival", "candidates", check=lambda got: None if isinstance(got, int) else "a whole number")
    if steps := _call(e, "revival", "steps"):
        candidates = jnp.zeros((1, *rows.shape))
        moments = chain.init(alone)
        _call(e, "revival", "__call__", key, sae, moments, dead, candidates, check=_like((sae, moments)))
        if not all(isinstance(at, int) for at in steps):
            raise UserError(f"revival: {type(e.revival).__name__}.steps gave {steps!r}, allowed: whole numbers")
    _guard(e, "method", lambda: train.step(e, train.init(e, rows, parts), step, rows), "the step")


def _call(e: Experiment, field: str, name: str, *args: Any, check: Check = lambda got: None) -> Any:
    """Call a method of a choice, and check its arguments and its result. Raises UserError."""
    choice = getattr(e, field)
    function, said = getattr(choice, name), f"{field}: {type(choice).__name__}.{name}"
    kind = next(cls for cls in type(choice).__mro__ if not is_own(cls))
    try:
        inspect.signature(function).bind(*args)
    except TypeError:
        takes, wanted = (_parameters(f) for f in (function, functools.partial(getattr(kind, name), choice)))
        raise UserError(f"{said} takes ({takes}), allowed: ({wanted})") from None
    got = _guard(e, field, lambda: function(*args), f"{type(choice).__name__}.{name}")
    if (wanted := check(got)) is not None:
        raise UserError(f"{said} gave {_describe(got)}, allowed: {wanted}")
    return got


def _guard(e: Experiment, field: str, run: Callable[[], Any], what: str) -> Any:
    try:
        return run()
    except UserError:
        raise
    except NotImplementedError:
        raise UserError(
            f"{field}: {what} is not written; see {field.capitalize()} in sae/methods/contract.py"
        ) from None
    except Exception as error:  # whatever a user's class may raise
        if isinstance(error, jax.errors.JAXTypeError | jax.errors.NonConcreteBooleanIndexError):
            why = (
                "it needs the value of a number that JAX traces; write it with jnp and jnp.where, without `if` or numpy"
            )
        else:
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{field}: {what} failed on a batch of {BATCH} examples{_place(error, e)}: {why}") from None


def _place(error: Exception, e: Experiment) -> str:
    """Where in a user's file an error was raised: ", own.py, line 12"; nothing where it was not raised there."""
    files = {
        getattr(sys.modules.get(type(choice).__module__), "__file__", None)
        for choice in method(e).values()
        if is_own(type(choice))
    }
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    return f", {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""


def _parameters(function: Callable) -> str:
    return ", ".join(str(parameter).split(":")[0] for parameter in inspect.signature(function).parameters.values())


def _shape(words: str, shape: tuple[int, ...]) -> Check:
    def check(got: Any) -> str | None:
        try:
            found = jnp.shape(got)
            number = jnp.issubdtype(jnp.result_type(got), jnp.floating)
        except TypeError:
            return f"an array {words}"
        sizes = f" = {list(shape)}" if shape else ""
        return None if found == shape and number else f"an array {words}{sizes} of floats"

    return check


def _pair(*checks: Check) -> Check:
    def check(got: Any) -> str | None:
        if not isinstance(got, tuple) or len(got) != len(checks):
            return f"a tuple of {len(checks)}"
        wrong = [wanted for one, value in zip(checks, got, strict=True) if (wanted := one(value)) is not None]
        return f"a tuple with {wrong[0]}" if wrong else None

    return check


def _columns(got: Any) -> str | None:
    sound = isinstance(got, Array) and got.ndim == 2 and got.shape[1] == BATCH
    return None if sound else f"an array [n, batch] with batch = {BATCH}"


def _numbers(got: Any) -> str | None:
    if not isinstance(got, dict) or any(jnp.shape(value) != () for value in got.values()):
        return "a dict of numbers [] by name"
    taken = sorted(got.keys() & ({*METRICS, *OF_A_STEP, "diverged"} - {"lr"}))  # an optimizer may tell its `lr`
    return f"names that no metric has, such as my_{taken[0]}" if taken else None


def _own(d_sae: int) -> Check:
    def check(got: Any) -> str | None:
        named = isinstance(got, dict) and all(isinstance(name, str) and name.isidentifier() for name in got)
        arrays = named and all(isinstance(value, Array | np.ndarray) for value in got.values())
        sound = arrays and all(jnp.shape(value)[:1] in ((), (d_sae,)) for value in got.values())
        return None if sound else f"a dict of arrays [d_sae, ...] or [] by name, d_sae = {d_sae}"

    return check


def _parameters_of(sae: Sae) -> Check:
    """Some of an autoencoder's parameters by name, with both matrices; those of another activation are left out."""
    shapes = {name: value.shape for name, value in model.parameters(sae).items()}

    def check(got: Any) -> str | None:
        names = set(got) if isinstance(got, dict) else set()
        known = {name for name in names if name in shapes or not str(name).startswith("own.")}
        sound = {"W_enc", "W_dec"} <= known <= shapes.keys()
        if sound and all(jnp.shape(got[name]) == shapes[name] for name in known):
            return None
        return f"a dict of parameters by name, with W_enc and W_dec, of {_shapes(shapes)}"

    return check


def _shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())


def _like(wanted: Any) -> Check:
    shapes = lambda tree: [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(tree)]

    def check(got: Any) -> str | None:
        same = jax.tree.structure(got) == jax.tree.structure(wanted) and shapes(got) == shapes(wanted)
        return None if same else f"the same as it was given, {_describe(wanted)}"

    return check


def _has(*names: str) -> Check:
    return lambda got: None if all(hasattr(got, name) for name in names) else f"an object with {' and '.join(names)}"


def _describe(value: Any) -> str:
    """A result for people: shapes in place of values."""
    if isinstance(value, Array):
        return f"an array {list(value.shape)} of {value.dtype}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_describe, value))})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_describe(inner)}" for name, inner in value.items()) + "}"
    return type(value).__name__ if isinstance(value, Sae) or not isinstance(value, int | float | None) else repr(value)

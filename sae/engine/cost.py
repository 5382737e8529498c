"""What a cohort costs, read off the step that it would train: parameters, FLOPs, memory."""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sae import train
from sae.data.feed import RESIDENT_BYTES, block_steps
from sae.data.source import Examples, parts_of
from sae.engine import cohort as cohorts
from sae.engine import runtime
from sae.engine.cohort import Cohort
from sae.engine.lanes import expected as expected_lanes
from sae.experiment import Experiment
from sae.train import TrainState

ROOM = 0.9  # share of the free memory that a plan counts on
# Arrays [d_sae, batch] that a ReLU + L1 step holds at once: latents, pre-activations, the gradients of both, a mask.
# Its trace has 9 at once. Of what another method's trace has more, XLA fuses about half (measured on a CPU).
ARRAYS, TRACED, FUSED = 5, 9, 0.5


def work(cohort: Cohort) -> int:
    """The cost of training a cohort, in products of d_sae × batch: a measure to compare cohorts by."""
    e = cohort.example
    return len(cohort.members) * e.d_sae * e.batch_size * e.n_steps


def parameters(experiment: Experiment, parts: tuple[int, ...]) -> int:
    """The number of parameters of one member, with those that its activation brings; parts: those of its data."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(_state(experiment, parts).sae))


def step_flops(experiment: Experiment, parts: tuple[int, ...]) -> int:
    """FLOPs of the matrix products of one member's step, 2 per multiply-add; products with a vector do not count.

    A ReLU autoencoder has five of 2 · d_in · d_sae · batch: two forward, three backward.
    """
    return sum(_product_flops(equation) for equation in _equations(_trace(experiment, parts)))


def memory_bytes(cohort: Cohort, data: Examples, lanes: int) -> int:
    """Expected peak of training a cohort.

    The state of every member, four times (what goes into a block, what comes out of it, and, while a checkpoint is
    written, a copy of it and a copy that Orbax makes); a gradient and an update of the members computed at once, and
    their arrays [d_sae, batch]; a block of batches, drawn and transposed; the data. All numbers take four bytes.
    """
    e, d_in, parts = cohort.example, data.d_in, parts_of(data)
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(_state(e, parts)))
    arrays = ARRAYS + FUSED * max(0, _most_arrays(_trace(e, parts), e.d_sae * e.batch_size) - TRACED)
    working = lanes * (2 * parameters(e, parts) + arrays * e.d_sae * e.batch_size)
    block = 2 * block_steps(d_in, e.batch_size, e.n_steps) * e.batch_size * d_in
    return 4 * len(cohort.members) * state + round(4 * (working + block)) + data.resident_bytes(RESIDENT_BYTES)


def process_bytes(cohort: Cohort, data: Examples, lanes: int) -> int:
    """Expected peak of a process that trains a cohort: what it holds now, the compiler, and the training."""
    return runtime.used_bytes() + runtime.compiler_bytes() + memory_bytes(cohort, data, lanes)


def fit(plan: Sequence[Cohort], data: dict, free: int | None = None) -> list[Cohort]:
    """Divide cohorts that would not fit into `free` bytes (default: what the device has), where they have members."""
    fitting = []
    for cohort in plan:
        source = data[cohort.example.data]
        room = (runtime.free_bytes() if free is None else free) * ROOM - runtime.compiler_bytes()
        parts = 1
        while parts < len(cohort.members) and _largest(cohort, parts, source) > room:
            parts += 1
        fitting += cohorts.divide(cohort, parts)
    return fitting


def _largest(cohort: Cohort, parts: int, data: Examples) -> int:
    piece = cohorts.divide(cohort, parts)[-1]
    return memory_bytes(piece, data, expected_lanes(piece, data.d_in))


@functools.lru_cache(maxsize=256)
def _state(experiment: Experiment, parts: tuple[int, ...]) -> TrainState:
    """The shapes of a member's state."""
    return jax.eval_shape(lambda e: train.init(e, jnp.zeros((sum(parts), 1)), parts), experiment)


@functools.lru_cache(maxsize=256)
def _trace(experiment: Experiment, parts: tuple[int, ...]) -> Any:
    """The jaxpr of a member's step."""
    rows = jax.ShapeDtypeStruct((sum(parts), experiment.batch_size), jnp.float32)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    return jax.make_jaxpr(train.step)(experiment, _state(experiment, parts), step, rows).jaxpr


def _inner(equation: Any) -> list[Any]:
    """The jaxprs inside an equation: of a jitted function, a loop, a custom derivative."""
    values = [v for value in equation.params.values() for v in (value if isinstance(value, tuple | list) else [value])]
    return [inner for value in values if hasattr(inner := getattr(value, "jaxpr", value), "eqns")]


def _equations(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for inner in _inner(equation):
            yield from _equations(inner)


def _product_flops(equation: Any) -> int:
    if equation.primitive.name != "dot_general":
        return 0
    (contracted, _), (batched, _) = equation.params["dimension_numbers"]
    left, right = (variable.aval.shape for variable in equation.invars)
    shared = math.prod(left[axis] for axis in contracted)
    batches = math.prod(left[axis] for axis in batched)
    rows, columns = math.prod(left) // (shared * batches), math.prod(right) // (shared * batches)
    return 2 * batches * rows * columns * shared if min(rows, columns, shared) > 1 else 0


def _most_arrays(jaxpr: Any, size: int) -> int:
    """The most arrays of at least `size` elements that a jaxpr holds at once, run in its order without fusion."""
    variables = lambda values: [v for v in values if not hasattr(v, "val")]  # a literal has a value
    last_read = {v: i for i, equation in enumerate(jaxpr.eqns) for v in variables(equation.invars)}
    last_read |= dict.fromkeys(variables(jaxpr.outvars), len(jaxpr.eqns))
    held: set[Any] = set()
    most = 0
    for i, equation in enumerate(jaxpr.eqns):
        held |= {v for v in equation.outvars if math.prod(getattr(v.aval, "shape", ())) >= size}
        most = max(most, len(held) + max((_most_arrays(inner, size) for inner in _inner(equation)), default=0))
        held = {v for v in held if last_read.get(v, -1) > i}
    return most

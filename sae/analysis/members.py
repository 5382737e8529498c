"""A function of one autoencoder, mapped over many autoencoders and many examples on the device.

from sae.analysis import copying, members

results = sae.load("runs/width_l1_l2")
saes = members.stack([results.sae(i) for i in (0, 1, 2)])
members.each(copying.degrees_of_freedom, saes, x)  # [3, n]
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sae.core.model import Sae
from sae.core.types import Array, UserError
from sae.engine import cohort, programs
from sae.engine.placement import Placement

EXAMPLES_AT_ONCE = 1024


def stack(saes: Sequence[Sae]) -> Sae:
    """Autoencoders of one activation and shape -> one with parameters [member, ...]. Raises UserError for others."""
    shapes = [sae.W_dec[...].shape for sae in saes]
    if len({(jax.tree.structure(sae), shape) for sae, shape in zip(saes, shapes, strict=True)}) != 1:
        unlike = sorted({f"{sae.activation} {list(shape)}" for sae, shape in zip(saes, shapes, strict=True)})
        raise UserError(f"stack: got {', '.join(unlike) or 'nothing'}; allowed: one activation and one shape at a time")
    return cohort.stack(saes)


def each(function: Callable, members: Any, *shared: Any, **static: Any) -> Any:
    """function(member, *shared, **static) of every member, one after another, in one compiled program.

    members: a tree of leaves [member, ...], such as `stack` gives. The result has leaves [member, ...]. The program is
    compiled once per function and shapes, so pass a function that is defined once, not a fresh lambda.
    """
    return _each(members, shared, function=function, static=tuple(sorted(static.items())))


@functools.partial(jax.jit, static_argnames=("function", "static"))
def _each(members: Any, shared: tuple, *, function: Callable, static: tuple[tuple[str, Any], ...]) -> Any:
    one = lambda member: function(member, *shared, **dict(static))
    return programs.over_members(one, members, Placement(lanes=1))


def over_examples(function: Callable, *arrays: Array, at_once: int = EXAMPLES_AT_ONCE) -> Any:
    """function of arrays [n, ...], applied to parts of `at_once` rows to save memory: leaves [n, ...]."""
    n = len(arrays[0])
    whole = n - n % at_once
    parts = [a[:whole].reshape(-1, at_once, *a.shape[1:]) for a in arrays]
    done = []
    if whole:
        stacked = jax.lax.map(lambda part: function(*part), parts)
        done.append(jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), stacked))
    if n > whole or not n:
        done.append(function(*(a[whole:] for a in arrays)))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *done)

"""What the tests of other libraries' formats share: autoencoders with random numbers in every place, and rows."""

import importlib.util
import os

import jax.numpy as jnp
import numpy as np
import pytest

from sae.core.model import Sae
from sae.core.normalization import Normalization

D_SAE, D_IN, D_OUT = 24, 8, 6
NEAR = {"atol": 1e-5, "rtol": 1e-5}  # float32 on both sides


def numbers(seed: int, *shape: int) -> np.ndarray:
    """Normal numbers of deviation .5, float32."""
    return (np.random.default_rng(seed).normal(size=shape) * 0.5).astype(np.float32)


X = 3 * numbers(7, 200, D_IN)


def make(activation, subtracts=True, d_out=D_IN, skip=False, normalized=True, unit=False) -> Sae:
    """An autoencoder of D_IN inputs and D_SAE latents, on data with a shift and a scale for each dimension."""
    W_dec = numbers(2, D_SAE, d_out)
    W_dec = W_dec / np.linalg.norm(W_dec, axis=1, keepdims=True) if unit else W_dec
    own = {name: jnp.abs(numbers(9, *value.shape)) for name, value in activation.init(D_SAE).items()}
    width = D_IN if d_out == D_IN and not skip else D_IN + d_out
    normalization = Normalization(numbers(5, width), np.abs(numbers(6, width)) + 0.5) if normalized else None
    return Sae(
        numbers(0, D_SAE, D_IN), numbers(1, D_SAE), W_dec, numbers(3, d_out), activation, subtracts, own=own,
        normalization=normalization, W_skip=numbers(4, d_out, D_IN) if skip else None,
    )  # fmt: skip


def need(*libraries: str) -> None:
    """Skip the whole test file where one of these libraries is not installed, and say so."""
    if missing := [name for name in libraries if importlib.util.find_spec(name) is None]:
        pytest.skip(f"{', '.join(missing)}: not installed; run make test-peers", allow_module_level=True)
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # sparsify's decoder else needs a GPU wherever triton is installed

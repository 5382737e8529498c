"""The refit of latents on a fixed support, against scipy and on autoencoders made by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from sae import Relu, Sae, TopK
from sae.analysis import refit


def test_the_values_are_those_of_non_negative_least_squares():
    rng = np.random.default_rng(0)
    W, y = rng.standard_normal((20, 8)), rng.standard_normal((8, 40))
    latents = np.where(rng.random((20, 40)) < 0.4, rng.random((20, 40)), 0)
    found = np.asarray(refit.nonnegative(*(jnp.asarray(a, jnp.float32) for a in (W, y, latents)), sweeps=1_000))
    assert (found[latents == 0] == 0).all() and found.min() == 0
    bound = 0
    for b in range(40):
        on = latents[:, b] != 0
        values, error = scipy.optimize.nnls(W[on].T, y[:, b])
        assert np.linalg.norm(y[:, b] - W.T @ found[:, b]) == pytest.approx(error, abs=2e-3)
        bound += (values == 0).sum()
        if on.sum() <= 8:  # one solution
            np.testing.assert_allclose(found[on, b], values, atol=0.02)
    assert bound > 20, "some values are held at 0"


def test_fifty_sweeps_are_enough_for_supports_below_the_dimension():
    rng = np.random.default_rng(1)
    W, y = rng.standard_normal((128, 64)), rng.standard_normal((64, 16))
    W /= np.linalg.norm(W, axis=1, keepdims=True)
    latents = np.where(rng.random((128, 16)) < 0.15, 0.1, 0)
    found = np.asarray(refit.nonnegative(*(jnp.asarray(a, jnp.float32) for a in (W, y, latents))))
    errors = [scipy.optimize.nnls(W[latents[:, b] != 0].T, y[:, b])[1] for b in range(16)]
    np.testing.assert_allclose(np.linalg.norm(y - W.T @ found, axis=0), errors, rtol=1e-3)


@pytest.fixture(scope="module")
def x():
    """Examples with about two of eight orthonormal features, magnitudes in [.5, 1.5)."""
    rng = np.random.default_rng(2)
    return jnp.asarray(np.where(rng.random((3_000, 8)) < 0.25, rng.uniform(0.5, 1.5, (3_000, 8)), 0), jnp.float32)


def test_what_was_shrunk_by_half_lambda_is_won_back(x):
    eye = jnp.eye(8)
    shrunk = Sae(eye, jnp.full(8, -0.2), eye, jnp.zeros(8), Relu())
    found = jax.jit(refit.refit)(shrunk, x)
    of = lambda a: float(jnp.sum(a**2) / jnp.sum((x - x.mean(0)) ** 2))
    assert found["fvu"] == pytest.approx(of(jnp.where(x > 0, 0.2, 0)), rel=1e-4)
    assert found["fvu_refit"] < 1e-10 and found["drop"] == pytest.approx(1, abs=1e-6)


def test_what_the_choice_of_latents_costs_stays(x):
    eye = jnp.eye(8)
    found = jax.jit(refit.refit)(Sae(eye, jnp.zeros(8), eye, jnp.full(8, 0.0), TopK(k=1)), x)
    lost = jnp.sort(x, axis=1)[:, :-1]
    assert found["fvu"] == pytest.approx(float(jnp.sum(lost**2) / jnp.sum((x - x.mean(0)) ** 2)), rel=1e-4)
    assert found["drop"] == pytest.approx(0, abs=1e-6)


def test_the_decoder_bias_is_part_of_the_reconstruction(x):
    eye, b_dec = jnp.eye(8), jnp.arange(8.0) / 10
    shifted = Sae(eye, jnp.full(8, -0.2), eye, b_dec, Relu())
    at_zero = Sae(eye, jnp.full(8, -0.2), eye, jnp.zeros(8), Relu())
    one, other = (jax.jit(refit.refit)(sae, rows) for sae, rows in ((shifted, x + b_dec), (at_zero, x)))
    for name in one:
        assert float(one[name]) == pytest.approx(float(other[name]), rel=1e-3, abs=1e-6)

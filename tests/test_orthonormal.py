"""Orthonormal: features, how often they are active and how large, read off the examples exactly."""

import jax
import numpy as np
import pytest

from sae import UserError
from sae.data.orthonormal import Orthonormal

N = 50_000


@pytest.fixture(scope="module")
def sampler():
    return Orthonormal(d_in=16, frequency=0.1, low=0.5, high=1.5).load()


@pytest.fixture(scope="module")
def magnitudes(sampler):
    """[N, 16], and 0 where a feature is not active."""
    a = np.asarray(jax.jit(sampler.sample, static_argnums=1)(jax.random.key(0), N)) @ sampler.features.T
    return np.where(np.abs(a) < 1e-4, 0, a)


def test_features_are_orthonormal_and_their_own_of_each_seed(sampler):
    assert sampler.features.dtype == np.float32 and sampler.d_in == 16
    np.testing.assert_allclose(sampler.features @ sampler.features.T, np.eye(16), atol=1e-6)
    assert np.array_equal(sampler.features, Orthonormal(d_in=16).load().features)
    other = Orthonormal(d_in=16, feature_seed=1).load().features
    assert np.abs(sampler.features @ other.T).max() < 0.9


def test_each_is_active_as_often_as_stated_alone(sampler, magnitudes):
    active = magnitudes != 0
    np.testing.assert_array_equal(sampler.frequencies, np.float32(0.1))
    assert np.abs(active.mean(axis=0) - 0.1).max() < 4.5 * np.sqrt(0.09 / N)
    together = np.corrcoef(active, rowvar=False)[np.triu_indices(16, 1)]
    assert np.abs(together).max() < 4.5 / np.sqrt(N)


def test_magnitudes_are_uniform(magnitudes):
    values = np.sort(magnitudes[magnitudes != 0])
    assert 0.5 - 1e-5 <= values.min() < 0.501 and 1.499 < values.max() < 1.5 + 1e-5
    gap = np.abs(values - np.linspace(0.5, 1.5, len(values))).max()  # the Kolmogorov-Smirnov distance
    assert gap < 1.63 / np.sqrt(len(values))


def test_the_mean_is_that_of_the_examples(sampler, magnitudes):
    np.testing.assert_allclose((magnitudes @ sampler.features).mean(axis=0), sampler.mean, atol=0.008)


def test_keys_decide(sampler):
    one, same, other = (np.asarray(sampler.sample(jax.random.key(seed), 8)) for seed in (1, 1, 2))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


@pytest.mark.parametrize(
    "fields, part",
    [(dict(frequency=0.0), "above 0"), (dict(low=1.5), "low below high"), (dict(low=2.0, high=1.0), "low below high")],
)
def test_errors(fields, part):
    with pytest.raises(UserError) as caught:
        Orthonormal(**fields).load()
    assert part in str(caught.value) and "\n" not in str(caught.value)

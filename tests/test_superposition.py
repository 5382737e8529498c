"""Superposition: the two published generators, checked on the features recovered from their examples."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from sae.data.superposition import Superposition
from sae.types import UserError

# With d_in >= n_features the features are linearly independent, so x gives the magnitudes back exactly.
SOLVABLE = dict(d_in=64, n_features=32, n_active=3.0)
PAPER = dict(d_in=256, n_features=512, n_active=5.0)


@functools.cache
def load(**fields):
    return Superposition(**fields).load()


def magnitudes(sampler, key, n):
    """The magnitude of each feature in each of n examples, [n, n_features]; 0 where it is not active."""
    x = np.asarray(jax.jit(sampler.sample, static_argnums=1)(jax.random.key(key), n))
    solved = x @ np.linalg.pinv(sampler.features)
    np.testing.assert_allclose(solved @ sampler.features, x, atol=1e-4)  # x is a sum of features and nothing else
    return np.where(np.abs(solved) < 1e-5, 0, solved)


@pytest.mark.parametrize("generator", ["A", "B"])
def test_shapes_and_unit_features(generator):
    sampler = load(generator=generator)
    assert sampler.d_in == 64 and sampler.n_held_out == 16_384
    assert sampler.features.shape == (128, 64) and sampler.frequencies.shape == (128,) and sampler.mean.shape == (64,)
    np.testing.assert_allclose(np.linalg.norm(sampler.features, axis=1), 1, atol=1e-6)
    # Random directions: cosines have standard deviation 1/sqrt(d_in).
    cosines = (sampler.features @ sampler.features.T)[np.triu_indices(128, 1)]
    assert abs(cosines.mean()) < 0.01 and abs(cosines.std() - 1 / 8) < 0.01
    x = sampler.sample(jax.random.key(0), 10)
    assert x.shape == (10, 64) and x.dtype == np.float32


@pytest.mark.parametrize("generator", ["A", "B"])
def test_same_definition_same_data(generator):
    a, b = Superposition(generator=generator).load(), Superposition(generator=generator).load()
    other = load(generator=generator, feature_seed=1)
    key = jax.random.key(3)
    for get in (lambda s: s.features, lambda s: s.frequencies, lambda s: s.mean, lambda s: s.sample(key, 300)):
        assert np.array_equal(get(a), get(b)) and not np.array_equal(get(a), get(other))
    assert not np.array_equal(a.sample(key, 300), a.sample(jax.random.key(4), 300))


@pytest.mark.parametrize("generator", ["A", "B"])
def test_vmap_over_steps_is_the_same_as_one_by_one(generator):
    sampler = load(generator=generator)
    keys = jax.random.split(jax.random.key(0), 5)
    together = jax.jit(jax.vmap(lambda key: sampler.sample(key, 300)))(keys)
    one_by_one = np.stack([sampler.sample(key, 300) for key in keys])
    np.testing.assert_allclose(together, one_by_one, atol=1e-5)


@pytest.mark.parametrize("generator", ["A", "B"])
@pytest.mark.parametrize("n_active", [1.0, 3.0, 5.5])
def test_mean_number_of_active_features(generator, n_active):
    sampler = load(generator=generator, **SOLVABLE | dict(n_active=n_active))
    np.testing.assert_allclose(sampler.frequencies.sum(), n_active, rtol=0.01)
    # n = 100,000: the mean's standard error is below sqrt(n_active / n) = .007
    active = magnitudes(sampler, 0, 100_000) != 0
    np.testing.assert_allclose(active.sum(1).mean(), n_active, rtol=0.02)
    # Sparse, and not the same number in every example: a sum of rare events is close to Poisson.
    assert 0.5 * n_active < active.sum(1).var() < 1.2 * n_active


@pytest.mark.parametrize("generator", ["A", "B"])
def test_frequencies_are_those_of_the_examples(generator):
    sampler = load(generator=generator, **SOLVABLE, examples_per_z=1)
    measured = (magnitudes(sampler, 0, 100_000) != 0).mean(0)
    error = np.sqrt(sampler.frequencies / 100_000 + (0.01 * sampler.frequencies) ** 2)
    assert np.abs((measured - sampler.frequencies) / error).max() < 4.5


@pytest.mark.parametrize("generator", ["A", "B"])
def test_magnitudes_are_uniform(generator):
    values = magnitudes(load(generator=generator, **SOLVABLE), 0, 30_000)
    values = np.sort(values[values != 0])
    assert values.min() > 0 and values.max() < 1.001
    gap = np.abs(values - np.linspace(0, 1, len(values))).max()  # the Kolmogorov-Smirnov distance
    assert gap < 1.63 / np.sqrt(len(values))


@pytest.mark.parametrize(
    "fields, low, high",
    [
        (dict(generator="A", **PAPER), 165, 172),  # decay^-511 = 170
        (dict(generator="B", **PAPER), 2.2, 2.4),
        (dict(generator="A"), 3.5, 3.7),  # decay^-127 = 3.6
        (dict(generator="B"), 2.4, 2.7),
    ],
)
def test_frequency_ratio_is_as_stated(fields, low, high):
    frequencies = load(**fields).frequencies
    assert low < frequencies.max() / frequencies.min() < high
    np.testing.assert_allclose(frequencies.sum(), fields.get("n_active", 3.0), rtol=1e-3)


def test_a_falls_exponentially():
    frequencies = load(generator="A", **PAPER).frequencies
    np.testing.assert_allclose(frequencies / frequencies[0], 0.99 ** np.arange(512), rtol=0.05)


def test_a_shares_z_and_b_does_not():
    """Over calls of 256 examples: what varies in a feature's count beyond binomial chance is z."""

    def overdispersion(sampler):
        counts = np.stack([(magnitudes(sampler, key, 256) != 0).sum(0) for key in range(100)])
        p = counts.mean(0) / 256
        return np.mean(counts.var(0) / (256 * p * (1 - p)))

    assert overdispersion(load(generator="A", **SOLVABLE)) > 5
    assert overdispersion(load(generator="B", **SOLVABLE)) < 1.2
    # Within one call A draws a new z every `examples_per_z` examples, so held-out data has many.
    sampler = load(generator="A", **SOLVABLE)
    by_z = (magnitudes(sampler, 0, 16 * 256) != 0).reshape(16, 256, 32).mean(1)
    p = by_z.mean(0)
    assert np.mean(by_z.var(0) / (p * (1 - p) / 256)) > 5


def test_b_draws_from_about_half_of_the_features():
    """z has a standard deviation of sqrt(n_features): given z, features are possible or not, half and half.

    So which features are active together follows the covariance M M^T of z: opposite rows exclude each other.
    """
    sampler = load(generator="B", **SOLVABLE)
    mixing = np.random.default_rng(0)
    mixing.standard_normal((32, 64))  # the features are drawn first
    mixing = mixing.standard_normal((32, 32))
    mixing /= np.linalg.norm(mixing, axis=1, keepdims=True)
    active = (magnitudes(sampler, 0, 100_000) != 0).astype(float)
    upper = np.triu_indices(32, 1)
    correlation = np.corrcoef(active, rowvar=False)[upper]
    assert np.corrcoef(correlation, (mixing @ mixing.T)[upper])[0, 1] > 0.8


@pytest.mark.parametrize("generator", ["A", "B"])
@pytest.mark.parametrize("normalize", ["none", "centre", "unit-mean-norm"])
def test_mean_and_normalize(generator, normalize):
    sampler = load(generator=generator, normalize=normalize, examples_per_z=1)
    x = np.asarray(sampler.sample(jax.random.key(5), 100_000))
    np.testing.assert_allclose(x.mean(0), sampler.mean, atol=5 * x.std() / np.sqrt(len(x)) + 0.002)
    if normalize == "centre":
        np.testing.assert_allclose(sampler.mean, 0, atol=1e-7)
    if normalize == "unit-mean-norm":
        np.testing.assert_allclose(np.linalg.norm(x, axis=1).mean(), 1, rtol=0.01)


@pytest.mark.parametrize(
    "fields, part",
    [
        (dict(n_active=0.0), "above 0"),
        (dict(n_active=200.0), "more features"),
        (dict(generator="A", decay=0.5, n_active=10.0), "no probability exceeds 1"),
        (dict(generator="C"), "A, B"),
    ],
)
def test_errors(fields, part):
    with pytest.raises(UserError) as caught:
        Superposition(**fields).load()
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_definition_is_hashable():
    assert hash(Superposition()) == hash(Superposition())
    assert dataclasses.replace(Superposition(), generator="A") != Superposition()

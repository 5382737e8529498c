"""Superposition: the two published generators, checked on the features recovered from their examples."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from sae.core.types import UserError
from sae.data.superposition import Superposition

# With d_in >= n_features the features are linearly independent, so x gives the magnitudes back exactly.
SOLVABLE = dict(d_in=64, n_features=32, n_active=2.0)
PAPER = dict(d_in=256, n_features=512, n_active=5.0)
N = 50_000
both = pytest.mark.parametrize("generator", ["A", "B"])


@functools.cache
def load(**fields):
    """The sampler, and its `sample` as a jitted function of a seed and n."""
    sampler = Superposition(**fields).load()
    return sampler, jax.jit(lambda seed, n: sampler.sample(jax.random.key(seed), n), static_argnums=1)


@functools.cache
def magnitudes(seed=0, n=N, **fields):
    """The magnitude of each feature in each of n examples, [n, n_features]; 0 where it is not active."""
    sampler, sample = load(**SOLVABLE | fields)
    x = np.asarray(sample(seed, n))
    solved = x @ np.linalg.pinv(sampler.features)
    np.testing.assert_allclose(solved @ sampler.features, x, atol=1e-4)  # x is a sum of features and nothing else
    return np.where(np.abs(solved) < 1e-5, 0, solved)


@both
def test_shapes_and_unit_features(generator):
    sampler, _ = load(generator=generator)
    assert sampler.d_in == 64 and sampler.n_held_out == 16_384
    assert sampler.features.shape == (128, 64) and sampler.frequencies.shape == (128,) and sampler.mean.shape == (64,)
    np.testing.assert_allclose(np.linalg.norm(sampler.features, axis=1), 1, atol=1e-6)
    # Random directions: cosines have standard deviation 1/sqrt(d_in).
    cosines = (sampler.features @ sampler.features.T)[np.triu_indices(128, 1)]
    assert abs(cosines.mean()) < 0.01 and abs(cosines.std() - 1 / 8) < 0.01
    x = jax.eval_shape(lambda key: sampler.sample(key, 300), jax.random.key(0))
    assert x.shape == (300, 64) and x.dtype == np.float32


@both
def test_same_definition_same_data(generator):
    fields = dict(generator=generator, **SOLVABLE)
    (a, sample), b = load(**fields), Superposition(**fields).load()
    other = Superposition(**fields, feature_seed=1).load()
    for get in (lambda s: s.features, lambda s: s.frequencies, lambda s: s.mean):
        assert np.array_equal(get(a), get(b)) and not np.array_equal(get(a), get(other))
    again = jax.jit(b.sample, static_argnums=1)(jax.random.key(3), 256)
    assert np.array_equal(sample(3, 256), again) and not np.array_equal(sample(3, 256), sample(4, 256))


def test_generators_share_the_features():
    assert np.array_equal(load(generator="A")[0].features, load(generator="B")[0].features)


@both
def test_vmap_over_steps_is_the_same_as_one_by_one(generator):
    sampler, sample = load(generator=generator, **SOLVABLE)
    keys = jax.vmap(jax.random.key)(np.arange(5))
    together = jax.jit(jax.vmap(lambda key: sampler.sample(key, 256)))(keys)
    one_by_one = np.stack([sample(seed, 256) for seed in range(5)])
    np.testing.assert_allclose(together, one_by_one, atol=1e-5)


@both
def test_mean_number_of_active_features(generator):
    np.testing.assert_allclose(load(generator=generator, **SOLVABLE)[0].frequencies.sum(), 2, rtol=0.01)
    n = (magnitudes(generator=generator) != 0).sum(1)
    np.testing.assert_allclose(n.mean(), 2, rtol=0.02)  # its standard error is below sqrt(2 / N), .3 % of 2
    assert 1 < n.var() < 2.4  # not the same in every example: a sum of rare events


@pytest.mark.parametrize("fields", [dict(generator="A", examples_per_z=1), dict(generator="B")])
def test_frequencies_are_those_of_the_examples(fields):
    expected = load(**SOLVABLE | fields)[0].frequencies
    measured = (magnitudes(**fields) != 0).mean(0)
    error = np.sqrt(expected / N + (0.01 * expected) ** 2)
    assert np.abs((measured - expected) / error).max() < 4.5


@both
def test_magnitudes_are_uniform(generator):
    values = magnitudes(generator=generator)
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
    frequencies = load(**fields)[0].frequencies
    assert low < frequencies.max() / frequencies.min() < high
    np.testing.assert_allclose(frequencies.sum(), fields.get("n_active", 3.0), rtol=1e-3)
    if fields["generator"] == "A":
        np.testing.assert_allclose(frequencies / frequencies[0], 0.99 ** np.arange(len(frequencies)), rtol=0.05)


def test_a_shares_z_and_b_does_not():
    """Between calls of 256 examples: what varies in a feature's count beyond binomial chance is z."""

    def overdispersion(active):  # [call, 256, n_features]
        p = active.mean((0, 1))
        return np.mean(active.mean(1).var(0) / (p * (1 - p) / 256))

    def calls(generator):
        return np.stack([magnitudes(generator=generator, seed=seed, n=256) != 0 for seed in range(100)])

    assert overdispersion(calls("A")) > 5
    assert overdispersion(calls("B")) < 1.2
    # A long call of A draws a new z every 256 examples, so held-out data is not stuck with one.
    assert overdispersion((magnitudes(generator="A") != 0)[: 195 * 256].reshape(195, 256, 32)) > 5


def test_b_follows_its_covariance():
    """Which features are active together follows M M^T: opposite rows of M exclude each other."""
    rng = np.random.default_rng(0)
    rng.standard_normal((32, 64))  # the features are drawn first
    mixing = rng.standard_normal((32, 32))
    mixing /= np.linalg.norm(mixing, axis=1, keepdims=True)
    upper = np.triu_indices(32, 1)
    together = np.corrcoef(magnitudes(generator="B") != 0, rowvar=False)[upper]
    assert np.corrcoef(together, (mixing @ mixing.T)[upper])[0, 1] > 0.8


@pytest.mark.parametrize(
    "fields",
    [
        dict(generator="A", examples_per_z=1),
        dict(generator="B"),
        dict(generator="B", normalize="centre"),
        dict(generator="A", examples_per_z=1, normalize="unit-mean-norm"),
    ],
)
def test_mean_and_normalize(fields):
    sampler, sample = load(**SOLVABLE | fields)
    x = np.asarray(sample(0, N))
    np.testing.assert_allclose(x.mean(0), sampler.mean, atol=5 * x.std() / np.sqrt(N) + 0.002)
    if fields.get("normalize") == "centre":
        np.testing.assert_allclose(sampler.mean, 0, atol=1e-7)
    else:
        assert np.abs(sampler.mean).max() > 0.02
    if fields.get("normalize") == "unit-mean-norm":
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

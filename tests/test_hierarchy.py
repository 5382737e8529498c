"""Hierarchy: who is active with whom, and how often, read off the examples exactly."""

import functools

import jax
import numpy as np
import pytest

from sae import UserError
from sae.data.hierarchy import Hierarchy

N = 50_000
CHILDREN = slice(3, 12)  # of parents 0, 0, 0, 1, 1, 1, 2, 2, 2


@functools.cache
def drawn(**fields):
    """(sampler, amounts of each feature [N, 20])."""
    sampler = Hierarchy(**fields).load()
    return sampler, np.asarray(jax.jit(sampler.sample, static_argnums=1)(jax.random.key(0), N)) @ sampler.features.T


both = pytest.mark.parametrize("nested", [True, False])


@both
def test_frequencies_are_those_stated_and_the_mean_follows(nested):
    sampler, amounts = drawn(nested=nested)
    np.testing.assert_allclose(sampler.frequencies, [0.15] * 3 + [0.03] * 9 + [0.05] * 8, rtol=1e-6)
    assert sampler.frequencies.sum() == pytest.approx(1.12)
    rates, p = (np.abs(amounts) > 1e-3).mean(axis=0), sampler.frequencies
    assert (np.abs(rates - p) < 4.5 * np.sqrt(p * (1 - p) / N)).all()
    np.testing.assert_allclose((amounts @ sampler.features).mean(axis=0), sampler.mean, atol=0.01)


def test_features_are_orthonormal_and_each_has_one_norm():
    sampler, amounts = drawn()
    np.testing.assert_allclose(sampler.features @ sampler.features.T, np.eye(20), atol=1e-6)
    norms = [np.unique(column[np.abs(column) > 1e-3].round(4)) for column in amounts.T]
    assert all(np.ptp(values) < 3e-4 for values in norms)
    means = np.array([values.mean() for values in norms])
    assert 0.02 < means.std() < 0.09 and abs(means.mean() - 1) < 0.05
    large = drawn(child_magnitude=5.0)[1]
    of = lambda amounts: amounts.max(axis=0)
    np.testing.assert_allclose(of(large)[CHILDREN], 5 * means[CHILDREN], rtol=1e-3)
    np.testing.assert_allclose(of(large)[:3], means[:3], rtol=1e-3)


@both
def test_children_exclude_their_siblings_and_if_nested_need_their_parent(nested):
    active = np.abs(drawn(nested=nested)[1]) > 1e-3
    parents, children = active[:, :3], active[:, CHILDREN].reshape(N, 3, 3)
    assert children.sum(axis=2).max() == 1
    with_parent = children.any(axis=2)[parents].mean()
    without = children.any(axis=2)[~parents].mean()
    if nested:
        assert abs(with_parent - 0.6) < 0.02 and without == 0
    else:
        assert abs(with_parent - 0.09) < 0.01 and abs(without - 0.09) < 0.005
    families = np.corrcoef(np.concatenate([parents, active[:, 12:]], axis=1), rowvar=False)
    assert np.abs(families[np.triu_indices(11, 1)]).max() < 4.5 / np.sqrt(N), "families and the others are independent"


def test_keys_decide_and_the_seed_draws_other_features():
    one, same, other = (np.asarray(drawn()[0].sample(jax.random.key(seed), 64)) for seed in (1, 1, 2))
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    assert np.abs(drawn()[0].features @ Hierarchy(feature_seed=1).load().features.T).max() < 0.95


@pytest.mark.parametrize(
    "fields, part", [(dict(d_in=19), "d_in of at least 20"), (dict(child_frequency=0.34), "at most 0.333")]
)
def test_errors(fields, part):
    with pytest.raises(UserError) as caught:
        Hierarchy(**fields).load()
    assert part in str(caught.value) and "\n" not in str(caught.value)

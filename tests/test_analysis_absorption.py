"""Absorption, on dictionaries made by hand that absorb all parents, some, or none."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from sae import Experiment, Hierarchy, Orthonormal, Relu, Sae, UserError
from sae.analysis import absorption
from sae.analysis.absorption import Absorption

SOURCE = Hierarchy(norm_deviation=0.0, n_held_out=4_096)
FEATURES = SOURCE.load().features
CHILDREN, PARENTS = np.arange(3, 12), np.repeat(np.arange(3), 3)


def faithful() -> Sae:
    """A latent for each feature, which is 1 where that is active."""
    F = jnp.asarray(FEATURES)
    return Sae(F, jnp.zeros(20), F, jnp.zeros(20), Relu())


def absorbing(families: tuple[int, ...], order=None) -> Sae:
    """As `faithful`, but in these families a child's latent writes its parent too, whose latent is then silent."""
    W_enc, W_dec = FEATURES.copy(), FEATURES.copy()
    for child, parent in zip(CHILDREN, PARENTS, strict=True):
        if parent in families:
            W_enc[parent] -= FEATURES[child]
            W_dec[child] += FEATURES[parent]
    order = np.arange(20) if order is None else order
    return Sae(
        *(jnp.asarray(a, jnp.float32) for a in (W_enc[order], np.full(20, -1e-4), W_dec[order], np.zeros(20))), Relu()
    )


def run(saes, source=SOURCE):
    member = Experiment(name="by hand", data=source, d_sae=20, n_steps=1)
    table = pd.DataFrame({"member": range(len(saes)), "cohort": 0, "status": "finished", "d_sae": 20})
    definition = {"members": [{"data_seed": member.data_seed}] * len(saes)}
    return SimpleNamespace(
        definition=definition,
        members=table,
        sae=lambda i: saes[i],
        source=lambda _: source,
        data=lambda _: source.load(),
    )


def test_absorbed_wholly_in_one_family_and_not_at_all():
    shuffled = np.random.default_rng(0).permutation(20)
    found = Absorption()(run([faithful(), absorbing((0, 1, 2), shuffled), absorbing((1,))]))
    assert set(found) == set(Absorption.columns)
    share, cosine = np.array([0, 1, 1 / 3]), 0.5**0.5
    expected = {
        "parent_cosine": share * cosine,
        "parent_cosine_size": share * cosine,
        "recall_with_child": 1 - share,
        "recall_alone": np.ones(3),
        "absorption": share,
        "family_cosine": 1 - 0.75 * share * (1 - cosine),
        "independent_cosine": np.ones(3),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(found[f"analysis/{name}"], values, atol=1e-4, err_msg=name)


def test_a_parent_without_a_latent_of_its_own_is_not_recalled():
    sae = faithful()
    silent = Sae(sae.W_enc[...], sae.b_enc[...].at[0].set(-5), sae.W_dec[...], sae.b_dec[...], Relu())
    found = Absorption()(run([silent])).iloc[0]
    for name in ("recall_alone", "recall_with_child"):
        assert found[f"analysis/{name}"] == pytest.approx(2 / 3)
    assert found["analysis/parent_cosine"] == pytest.approx(0, abs=1e-6)


def test_the_assignment_is_one_to_one_and_of_the_largest_sum():
    features = np.eye(3)
    # both first rows are nearest to the first feature; the sum is largest where the second gets the other one
    W = np.array([[0.9, 0.1, 0], [0.8, 0.6, 0], [0, 0, 2.0], [0, 0, -1]])
    np.testing.assert_array_equal(absorption.match(jnp.asarray(W), jnp.asarray(features)), [0, 1, 2])
    with pytest.raises(UserError, match="3 or more"):
        absorption.match(jnp.asarray(W[:2]), jnp.asarray(features))


def test_other_data_are_refused():
    with pytest.raises(UserError, match="got data of Orthonormal, allowed: Hierarchy"):
        Absorption()(run([faithful()], Orthonormal(d_in=20)))

"""Measures of recovery on members made by hand, whose answers are known."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from sae import ElasticNet, Experiment, Orthonormal, Relu, Sae, UserError, grid
from sae.analysis import recovery
from sae.analysis.recovery import MmcsLarger, Shrinkage
from sae.core.definitions import flatten

BASE = Experiment(name="by hand", data=Orthonormal(d_in=8), d_sae=2, n_steps=1, penalty=ElasticNet(l1=0.1))


def results(members, saes, status=None, **columns):
    """Results with these members and autoencoders: one cohort per width."""
    flats = [flatten(member) for member in members]
    table = pd.DataFrame(flats).rename_axis("member").reset_index()
    table = table.assign(cohort=table["d_sae"], status=status or "finished", **columns)
    source = lambda member: members[member].data
    data = lambda member: source(member).load()
    return SimpleNamespace(
        definition={"members": flats}, members=table, sae=lambda i: saes[i], source=source, data=data
    )


def with_rows(rows) -> Sae:
    W = jnp.asarray(rows, jnp.float32)
    return Sae(W, jnp.zeros(len(W)), W, jnp.zeros(W.shape[1]), Relu())


def test_the_larger_of_a_member_is_of_the_next_seed_and_else_the_same():
    members = grid(BASE, {"d_sae": (2, 4, 8), "penalty.l1": (0.1, 1.0), "seed": (1, 2, 5)})
    flats = [flatten(member) for member in members]
    found = recovery.larger(flats)
    read = lambda i: tuple(flats[i][name] for name in ("d_sae", "penalty.l1", "seed"))
    following = {1: 2, 2: 5, 5: 1}
    assert {read(i): read(j) for i, j in found.items()} == {
        (d, l1, seed): (2 * d, l1, following[seed]) for d in (2, 4) for l1 in (0.1, 1.0) for seed in following
    }
    assert recovery.larger([flat for flat in flats if flat["seed"] == 1]) == {}, "one seed has no other"
    assert recovery.larger([flat for flat in flats if flat["d_sae"] != 4]) == {}


def test_mmcs_larger_on_dictionaries_made_by_hand():
    e = np.eye(8)
    members = grid(BASE, {"d_sae": (2, 4), "penalty.l1": (0.1, 1.0), "seed": (1, 2)})
    halfway = (e[0] + e[5]) / np.sqrt(2)
    rows = [
        [e[0], e[1]], [e[0], 3 * e[5]], [e[0], e[1]], [e[0], -e[1]],
        # the larger ones: of λ .1 and seeds 1 and 2, of λ 1 and seeds 1 and 2
        e[[0, 1, 2, 3]], [halfway, e[7], e[2], e[3]], e[[4, 5, 6, 7]], e[[0, 1, 2, 3]],
    ]  # fmt: skip
    saes = [with_rows(np.array(r)) for r in rows]
    found = MmcsLarger()(results(members, saes))["analysis/mmcs_larger"]
    # λ .1: e0 halfway, e1 not at all; e0 wholly, e5 not at all. λ 1: both; neither, for -e1 too
    np.testing.assert_allclose(found, [0.5**0.5 / 2, 0.5, 1, 0, *[np.nan] * 4], atol=1e-5)
    status = ["finished"] * 7 + ["diverged"]
    found = MmcsLarger()(results(members, saes, status))["analysis/mmcs_larger"]
    assert len(found) == 7 and np.isnan(found[2]) and found[3] == pytest.approx(0, abs=1e-5)
    with pytest.raises(UserError, match="no member has another with twice its latents"):
        MmcsLarger()(results(members[:4], saes[:4]))


def test_two_of_one_seed_begin_alike_which_is_why_it_is_another():
    from sae import train

    one, two = (train.init(member, jnp.ones((8, 1))).sae.W_dec[...] for member in grid(BASE, {"d_sae": (2, 4)}))
    np.testing.assert_array_equal(one, two[:2])


def test_shrinkage_of_the_solution_and_of_one_that_does_not_shrink():
    members = grid(BASE, {"penalty.l1": (0.0, 0.2, 0.8), "seed": (1,)})
    features = jnp.asarray(BASE.data.load().features)
    solved = lambda bias: Sae(features, jnp.full(8, bias), features, jnp.zeros(8), Relu())
    gammas = [1.0, float(recovery.shrinkage(0.2)) - 0.03, float(recovery.shrinkage(0.8))]
    run = results(members, [solved(0.0), solved(-0.11), solved(0.0)], **{"eval/shrinkage": gammas})
    found = Shrinkage(n=3_000)(run)
    assert list(found) == list(Shrinkage().columns)
    np.testing.assert_allclose(found["analysis/shrinkage_error"], [0, 0.03, 0], atol=1e-6)
    np.testing.assert_allclose(found["analysis/shift"], [0, 0.11, 0], atol=1e-4)
    np.testing.assert_allclose(found["analysis/shift_error"], [np.nan, 0.1, 1], atol=1e-3)

"""Agreement of dictionaries on members made by hand, whose answers are known."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from test_analysis_recovery import BASE, results, with_rows

from sae import AgreementMatrix, Sweep, UserError, grid
from sae.analysis import agreement
from sae.analysis.agreement import Agreement
from sae.core.normalization import Normalization
from sae.report import agreements, draw
from sae.study.sweep import as_sweep

E = np.eye(8)


def test_agreement_is_the_mean_mcc_with_other_seeds_of_the_same_kind():
    """Seeds 0 and 1 have the same rows in another order and with another sign; seed 2 shares one of two."""
    rows = [E[[0, 1]], [E[1], -3 * E[0]], E[[0, 5]], E[[2, 3]], E[[2, 3]], [E[2], (E[3] + E[4]) / 2**0.5]]
    members = grid(BASE, {"penalty.l1": (0.1, 1.0), "seed": (0, 1, 2)})
    found = Agreement()(results(members, [with_rows(np.array(r)) for r in rows]))
    half = (1 + 0.5**0.5) / 2
    expected = [0.75, 0.75, 0.5, (1 + half) / 2, (1 + half) / 2, half]
    np.testing.assert_allclose(found["analysis/agreement"], expected, atol=1e-6)
    assert found["analysis/agreement_chance"].nunique() == 1
    assert list(found.columns) == list(Agreement.columns)


def test_a_floor_is_what_random_dictionaries_have():
    rng = np.random.default_rng(0)
    pairs = [agreement.mcc(rng.normal(size=(2, 8)), rng.normal(size=(2, 8))) for _ in range(400)]
    assert agreement.mcc_chance(2, 2, 8, draws=200) == pytest.approx(np.mean(pairs), abs=0.03)
    assert agreement.mcc_chance(64, 64, 8) > agreement.mcc_chance(8, 8, 8), "more latents find nearer ones"


def test_a_member_alone_has_no_agreement_and_a_sweep_of_one_seed_is_told_so():
    members = [*grid(BASE, {"seed": (0, 1)}), *grid(BASE, {"penalty.l1": (1.0,)})]
    found = Agreement()(results(members, [with_rows(E[[0, 1]])] * 3))
    np.testing.assert_array_equal(found["analysis/agreement"], [1, 1, np.nan])
    with pytest.raises(UserError, match="no two members differ in the seed alone; allowed: a sweep over several seeds"):
        Agreement()(results(members[1:], [with_rows(E[[0, 1]])] * 2))


def test_the_correlation_with_frequency_is_that_of_ranks():
    """Row i has the cosine c_i with feature i, and none with the others."""
    cosines = np.array([0.2, 0.9, 0.5, 0.7])
    rows = cosines[:, None] * E[:4] + (1 - cosines[:, None] ** 2) ** 0.5 * E[4:]
    data = lambda *frequencies: SimpleNamespace(
        features=E[:4], frequencies=np.array(frequencies), normalization=Normalization.none(8)
    )
    follows = lambda *frequencies: agreement.follows_frequency(rows[::-1], data(*frequencies))
    assert follows(0.1, 0.4, 0.2, 0.3) == pytest.approx(1)
    assert follows(0.4, 0.1, 0.3, 0.2) == pytest.approx(-1)
    assert follows(0.4, 0.1, 0.2, 0.3) == pytest.approx(-0.8)
    assert np.isnan(follows(0.1, 0.1, 0.1, 0.1))


def test_the_matrix_compares_every_two_groups_and_no_member_with_itself():
    rows = [E[[0, 1]], E[[0, 1]], E[[0, 5]], E[[0, 5]], E[[0, 1, 2, 3]]]
    members = [*grid(BASE, {"penalty.l1": (0.1, 1.0), "seed": (0, 1)}), *grid(BASE, {"d_sae": (4,)})]
    found = agreement.matrix(results(members, [with_rows(r) for r in rows]), ["d_sae", "penalty.l1"])
    expected = pd.DataFrame([[1, 0.5, 1], [0.5, 1, 0.5], [1, 0.5, np.nan]])
    order = [(2, 0.1), (2, 1.0), (4, 0.1)]
    np.testing.assert_allclose(found.loc[order, order].to_numpy(float), expected, atol=1e-6)
    with pytest.raises(UserError, match="agreement: members have no 'penalty.l2x'"):
        agreement.matrix(results(members, [with_rows(r) for r in rows]), ["penalty.l2x"])


def test_the_figure_has_the_matrix_and_the_floors_of_its_widths():
    rows = [E[[0, 1]], E[[0, 1]], E[[0, 5]], E[[0, 5]], E[[0, 1, 2, 3]]]
    members = [*grid(BASE, {"penalty.l1": (0.1, 1.0), "seed": (0, 1)}), *grid(BASE, {"d_sae": (4,)})]
    figure = AgreementMatrix(group=("d_sae", "penalty.l1"))
    run = results(members, [with_rows(r) for r in rows])
    found = agreements.look(run, figure)
    assert found.names == ["d_sae 2, penalty.l1 0.1", "d_sae 2, penalty.l1 1", "d_sae 4, penalty.l1 0.1"]
    floors = [[agreement.mcc_chance(*sorted((n, m)), 8) for m in (2, 2, 4)] for n in (2, 2, 4)]
    np.testing.assert_allclose(found.chance, floors)
    (cells,) = draw.agreement(found, figure, run.members).data
    np.testing.assert_allclose(cells.z, [[1, 0.5, 1], [0.5, 1, 0.5], [1, 0.5, np.nan]], atol=1e-6)
    assert cells.text[0][1] == f"0.5<br>({floors[0][1]:.2g})" and cells.text[2][2].startswith("–<br>(")
    one_each = agreements.look(run, AgreementMatrix(group=("d_sae",), most=1))
    np.testing.assert_allclose(one_each.mcc, [[np.nan, 1], [1, np.nan]], atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"group": ("penalty.l3",)}, "AgreementMatrix: members have no 'penalty.l3'"),
        ({"group": ()}, "AgreementMatrix: got no name in group, allowed: one or more"),
        ({"group": ("d_sae",), "most": 0}, "AgreementMatrix: got most 0, allowed: one or more"),
    ],
)
def test_a_matrix_of_unknown_names_is_refused_before_training(fields, says):
    with pytest.raises(UserError, match=says):
        as_sweep(Sweep(name="x", members=grid(BASE, {"seed": (0, 1)}), figures=[AgreementMatrix(**fields)]))

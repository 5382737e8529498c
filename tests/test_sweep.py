"""Definitions as values: flatten, replace, grids, and answers read off a table."""

import dataclasses
import json

import jax
import numpy as np
import pandas as pd
import pytest

import sae
from sae import Adam, AtMatched, Best, ElasticNet, Experiment, Never, Resample, Sweep, TopK, UserError, grid
from sae.core.definitions import flatten, kind, unflatten
from sae.experiment import validate
from sae.study import figures
from sae.study.figures import Curves, Frontier, Heatmap, Parallel
from sae.study.sweep import as_sweep, varying


def test_an_experiment_is_a_pytree_whose_leaves_are_what_may_vary(tiny):
    leaves = {jax.tree_util.keystr(path, simple=True, separator="."): leaf
              for path, leaf in jax.tree_util.tree_flatten_with_path(tiny)[0]}  # fmt: skip
    assert set(leaves) == {
        "penalty.l1", "penalty.l2", "penalty.warmup_steps", "dead_after", "seed", "optimizer.lr", "optimizer.b1",
        "optimizer.b2", "optimizer.eps", "optimizer.weight_decay", "optimizer.warmup_steps", "optimizer.decay_steps",
    }  # fmt: skip
    flat = flatten(tiny)
    assert all(flat[name] == value for name, value in leaves.items())


def test_flatten_names_choices_by_their_kind_and_unflatten_undoes_it(tiny):
    experiment = dataclasses.replace(tiny, activation=TopK(k=7), revival=Resample(every=5))
    flat = flatten(experiment)
    assert (flat["activation"], flat["activation.k"], flat["revival.every"]) == ("top-k", 7, 5)
    for field in ("activation", "revival", "penalty", "optimizer", "data"):
        assert unflatten(Experiment, field, flat) == getattr(experiment, field)
    assert kind(ElasticNet) == "elastic-net" and kind(sae.ImagePatches) == "image-patches"


def test_replace_takes_dotted_names_and_refuses_others(tiny):
    new = sae.replace(tiny, {"penalty.l1": 0.7, "revival": Resample(), "revival.every": 3})
    assert (new.penalty.l1, new.revival.every, tiny.penalty.l1, tiny.revival) == (0.7, 3, 0.1, Never())
    with pytest.raises(UserError, match="no field 'optimizer.lrr'; close names: optimizer.lr"):
        sae.replace(tiny, {"optimizer.lrr": 1})
    with pytest.raises(UserError, match="no field 'seed.x'"):
        sae.replace(tiny, {"seed.x": 1})


def test_grid_is_every_combination_and_numpy_numbers_become_plain(tiny):
    members = grid(tiny, {"penalty.l1": np.geomspace(0.1, 1, 3), "seed": np.arange(2)})
    assert [(m.penalty.l1, m.seed) for m in members] == [
        (pytest.approx(l1), seed) for l1 in (0.1, 10**-0.5, 1) for seed in (0, 1)
    ]
    assert {type(m.seed) for m in members} == {int} and {type(m.penalty.l1) for m in members} == {float}
    assert varying(members) == ["penalty.l1", "seed"]
    assert as_sweep(tiny).members == (tiny,)
    whole = as_sweep(sae.replace(tiny, {"penalty.l1": 1})).members[0]
    assert type(whole.penalty.l1) is float and type(whole.seed) is int


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"penalty.l1": -0.1}, "penalty.l1: got -0.1, allowed: at least 0"),
        ({"optimizer": Adam(lr="fast")}, "optimizer.lr: got 'fast', allowed: float"),
        ({"n_steps": 2.5}, "n_steps: got 2.5, allowed: int"),
        ({"seed": 2**31}, "seed: got 2147483648, allowed: 32-bit integers"),
        ({"n_eval": 0}, "n_eval: got 0, allowed: at least 1"),
        ({"data": 3}, "data: got 3, allowed: Digits or ImagePatches or Tfds or Arrays or Superposition or Orthonormal, "
         "or an instance of a class like them made with sae.definition"),
        ({"data": sae.ImagePatches(whitening="pca")}, "data.whitening: got 'pca', allowed: none, olshausen-field, zca"),
        ({"activation": TopK(k=99)}, "activation.k: got 99, allowed: at most d_sae = 48"),
    ],
)  # fmt: skip
def test_validate_names_the_field_the_value_and_what_is_allowed(tiny, change, message):
    with pytest.raises(UserError) as error:
        validate(sae.replace(tiny, change))
    assert str(error.value) == f"'tiny': {message}"


def test_nan_is_a_legal_learning_rate_and_an_int_a_legal_float(tiny):
    validate(sae.replace(tiny, {"optimizer.lr": float("nan"), "penalty.l1": 1, "optimizer.clip": None}))


def frontier(arm, power, seeds=(0, 1)):
    """fvu = λ, l0 = 10 λ^-power, with a factor per seed."""
    other = "penalty.l2" if arm == "penalty.l1" else "penalty.l1"
    rows = [
        {"d_sae": 64, "seed": seed, arm: lam, other: 0.0, "eval/fvu": lam, "eval/l0": (10 + seed) * lam**-power}
        for lam in (0.02, 0.05, 0.3, 0.6)
        for seed in seeds
    ]
    return pd.DataFrame(rows)


def test_at_matched_interpolates_along_each_arm_in_logarithms():
    members = pd.concat([frontier("penalty.l1", 0.5), frontier("penalty.l2", 0.0)])
    answer = AtMatched(arms={"L1": "penalty.l1", "L2": "penalty.l2"}, at=(0.1, 0.5, 0.9), metrics=("eval/l0",))
    table = answer.table(members)
    # a power law is a straight line in logarithms, so interpolation is exact; 10.5 is the mean over seeds
    assert table.loc[("l0", 64), ("fvu 0.1", "L1")] == pytest.approx(10.5 * 0.1**-0.5)
    assert table.loc[("l0", 64), ("fvu 0.5", "L1")] == pytest.approx(10.5 * 0.5**-0.5)
    assert table.loc[("l0", 64), ("fvu 0.5", "L2")] == pytest.approx(10.5)
    assert np.isnan(table.loc[("l0", 64), ("fvu 0.9", "L1")]), "never extrapolated"
    with pytest.raises(UserError, match="no metric 'eval/lo'; close names: .*eval/l0"):
        AtMatched(arms=answer.arms, metrics=("eval/lo",)).check(members)
    with pytest.raises(UserError, match="no 'penalty.l3'; close names: penalty.l"):
        AtMatched(arms={"L3": "penalty.l3"}).check(members)
    with pytest.raises(UserError, match="differ in something else"):
        answer.table(pd.concat([members, members]))


def test_the_unpenalised_member_belongs_to_every_arm():
    zero = pd.DataFrame(
        [{"d_sae": 64, "seed": 0, "penalty.l1": 0.0, "penalty.l2": 0.0, "eval/fvu": 0.01, "eval/l0": 99.0}]
    )
    members = pd.concat([zero, frontier("penalty.l1", 0.5, [0]), frontier("penalty.l2", 0.0, [0])])
    answer = AtMatched(arms={"L1": "penalty.l1", "L2": "penalty.l2"}, at=(0.01,), metrics=("eval/l0",))
    assert list(answer.table(members).loc[("l0", 64)]) == pytest.approx([99, 99])


def test_best_is_by_the_mean_over_seeds():
    rows = [
        (32, 0.1, 0, 0.9),
        (32, 0.1, 1, 0.1),
        (32, 0.2, 0, 0.6),
        (32, 0.2, 1, 0.6),
        (64, 0.1, 0, 0.3),
        (64, 0.2, 0, 0.2),
    ]
    members = pd.DataFrame(rows, columns=["d_sae", "penalty.l1", "seed", "eval/mmcs"])
    table = Best(metric="eval/mmcs", along="penalty.l1").table(members)
    assert list(table["penalty.l1"]) == [0.2, 0.1] and list(table["mmcs"]) == pytest.approx([0.6, 0.3])
    assert list(Best(metric="eval/mmcs", along="penalty.l1", smallest=True).table(members)["penalty.l1"]) == [0.1, 0.2]


def test_a_sweep_that_names_no_figures_shows_what_varies():
    flats = [{"d_sae": w, "penalty.l1": a, "penalty.l2": b} for w in (64, 128) for a, b in ((0, 0), (0.1, 0), (0, 0.1))]
    shown = figures.default_figures(flats)
    assert shown[0] == Frontier(along=("penalty.l1", "penalty.l2"), group=("d_sae",))
    assert [figure.metric for figure in shown if isinstance(figure, Heatmap)] == [
        "eval/fvu",
        "eval/l0",
        "eval/dead_fraction",
    ]
    assert figures.coefficients([*flats, {"d_sae": 64, "penalty.l1": 0.1, "penalty.l2": 0.1}]) == (
        ("penalty.l1",),
        ("d_sae", "penalty.l2"),
    )
    assert not any(isinstance(figure, Frontier | Parallel) for figure in figures.default_figures(flats[:1]))
    for figure in shown:
        figure.check(flats[0])
        assert figures.read(json.loads(json.dumps(figures.plain(figure)))) == figure


def test_a_figure_of_names_that_are_not_there_is_refused(tiny):
    with pytest.raises(UserError, match="Frontier: members have no 'penalty.l3'; close names: penalty.l"):
        as_sweep(Sweep(name="x", members=[tiny], figures=[Frontier(along=("penalty.l3",))]))
    with pytest.raises(UserError, match="Curves: no metric 'eval/fvu'; close names: .*train/fvu"):
        as_sweep(Sweep(name="x", members=[tiny], figures=[Curves(metrics=("eval/fvu",))]))
    with pytest.raises(UserError, match="figures: got 'frontier', allowed: Frontier"):
        as_sweep(Sweep(name="x", members=[tiny], figures=["frontier"]))


def test_a_sweep_of_nothing_and_twins_are_refused(tiny):
    with pytest.raises(UserError, match="has no members"):
        as_sweep(Sweep(name="empty", members=[]))
    with pytest.raises(UserError, match="members 0 and 1 are the same"):
        as_sweep(Sweep(name="twins", members=[tiny, dataclasses.replace(tiny, name="other")]))

"""Definitions as values: flatten, replace, grids, answers read from a table, figures and arms."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pandas as pd
import pytest

import sae
from sae import Adam, Arm, AtMatched, Best, ElasticNet, Experiment, Never, Resample, Sweep, TopK, UserError, grid
from sae.core.definitions import flatten, kind, unflatten
from sae.core.definitions import plain as plain_number
from sae.experiment import complete, validate
from sae.methods.contract import Penalty
from sae.report import matched, watch
from sae.report.runs import gather
from sae.study import arms, figures, replicates
from sae.study.figures import Curves, Frontier, Heatmap, Parallel
from sae.study.sweep import as_sweep, varying


def test_an_experiment_is_a_pytree_whose_leaves_are_what_may_vary(tiny):
    leaves = {jax.tree_util.keystr(path, simple=True, separator="."): leaf
              for path, leaf in jax.tree_util.tree_flatten_with_path(tiny)[0]}  # fmt: skip
    assert set(leaves) == {
        "penalty.l1", "penalty.l2", "penalty.warmup_steps", "penalty.anneal_steps", "penalty.anneal_to", "dead_after",
        "seed", "optimizer.lr", "optimizer.b1",
        "optimizer.b2", "optimizer.eps", "optimizer.weight_decay", "optimizer.warmup_steps", "optimizer.decay_steps",
        "optimizer.decay_to", "optimizer.restarts", "initialization.decoder_norm", "initialization.encoder_scale",
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
        ({"penalty.l1": float("nan")}, "penalty.l1: got nan, allowed: finite 32-bit numbers"),
        ({"optimizer.lr": float("inf")}, "optimizer.lr: got inf, allowed: finite 32-bit numbers"),
        ({"optimizer.clip": 1e39}, "optimizer.clip: got 1e+39, allowed: finite 32-bit numbers"),
        ({"penalty.l1": np.full(1, 0.1)}, "penalty.l1: got array([0.1]), allowed: float"),
        ({"n_steps": 2.5}, "n_steps: got 2.5, allowed: int"),
        ({"seed": 2**31}, "seed: got 2147483648, allowed: 32-bit integers"),
        ({"n_eval": 0}, "n_eval: got 0, allowed: at least 1"),
        ({"data": 3}, "data: got 3, allowed: Activations, Arrays, Digits, Hierarchy, ImagePatches, Orthonormal, "
         "Superposition, SynthBench, SynthWorld, Tfds, or a class of your own made with sae.definition and derived "
         "from sae.Source"),
        ({"data": sae.ImagePatches(whitening="pca")}, "data.whitening: got 'pca', allowed: none, olshausen-field, zca"),
        ({"activation": TopK(k=99)}, "activation.k: got 99, allowed: at most d_sae = 48"),
    ],
)  # fmt: skip
def test_validate_names_the_field_the_value_and_what_is_allowed(tiny, change, message):
    with pytest.raises(UserError) as error:
        validate(sae.replace(tiny, change))
    assert str(error.value) == f"'tiny': {message}"


def test_an_int_is_a_legal_float_and_none_where_it_is_allowed(tiny):
    validate(sae.replace(tiny, {"optimizer.lr": 1, "penalty.l1": 1, "optimizer.clip": None}))


@pytest.mark.parametrize("kind", [np.float32, np.float64, jnp.float32, np.array, jnp.array])
def test_scalars_of_numpy_and_jax_are_numbers_like_others(tiny, kind):
    seed = kind(3).astype(int)
    written = sae.Experiment(
        name="tiny", data=tiny.data, d_sae=np.int64(48), n_steps=seed, seed=jnp.asarray(seed),
        penalty=ElasticNet(l1=kind(0.1)), reconstruction=sae.Matryoshka(widths=(np.int32(8), jnp.int32(24))),
        apply_b_dec_to_input=np.bool_(False),
    )  # fmt: skip
    (one,) = as_sweep(written).members
    (same,) = grid(tiny, {"penalty.l1": [kind(0.1)], "seed": [seed]})
    for value, plain in (
        (one.penalty.l1, 0.1), (one.d_sae, 48), (one.n_steps, 3), (one.seed, 3), (one.apply_b_dec_to_input, False),
        (one.reconstruction.widths, (8, 24)), (same.penalty.l1, 0.1), (same.seed, 3),
    ):  # fmt: skip
        assert value == plain and type(value) is type(plain)
    assert [type(width) for width in one.reconstruction.widths] == [int, int]
    hash(one)
    assert plain_number(ml_dtypes.bfloat16(0.1)) == 0.10009765625


def test_a_field_of_another_choice_names_the_choices_that_have_it(tiny):
    for change in (grid, lambda base, axes: sae.replace(base, {name: 3 for name in axes})):
        # classes of one's own that other tests define may have it, too
        said = r"^relu has no field 'activation.k'; abs-top-k and batch-top-k .* have it: activation=AbsTopK\(k=...\)$"
        with pytest.raises(UserError, match=said):
            change(tiny, {"activation.k": (4, 8)})
    with pytest.raises(UserError, match=r"^never .*; resample (and redraw have|has) it: revival=Resample\(every"):
        grid(tiny, {"revival.every": (4, 8)})
    with pytest.raises(UserError, match="^relu has no field 'activation.kk'; it has no fields$"):
        grid(tiny, {"activation.kk": (4, 8)})


def test_arms_that_are_known_by_their_choices_are_rows_where_they_are_many():
    """Each reads the members with its choices; a table on the terminal and in a report shows their intervals."""
    parts = []
    for name, factor in (("a", 1.0), ("b", 2.0), ("c", 3.0), ("d", 4.0)):
        parts.append(frontier("k", 1.0).assign(activation=name))
        parts[-1]["eval/l0"] *= factor
    members = pd.concat(parts, ignore_index=True)
    named = {name.upper(): Arm(along="k", where={"activation": (name,)}) for name in "abcd"}
    answer = AtMatched(arms=named, at=(0.1, 0.5), metrics=("eval/l0",), group="d_sae")
    answer.check([*members.columns])
    table = answer.table(members)
    assert list(table.index.names) == ["", "d_sae", "arm"] and list(table.columns) == ["fvu 0.1", "fvu 0.5"]
    first = table["fvu 0.5"].to_numpy()
    np.testing.assert_allclose(first / first[0], [1, 2, 3, 4])
    text = matched.table(answer.compare(members), answer)
    assert list(text.index.get_level_values("arm")) == list("ABCD") and "[" in text.iloc[0, 0]
    assert figures.read_answer(json.loads(json.dumps(figures.plain(answer)))) == answer
    with pytest.raises(UserError, match="members have no 'activatio'"):
        AtMatched(arms={"A": Arm(along="k", where={"activatio": ("a",)})}).check([*members.columns])
    with pytest.raises(
        UserError, match=r"Arm: where activation: got 'top-k', allowed: a tuple of values, \('top-k',\)"
    ):
        Arm(along="k", where={"activation": "top-k"})


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
    with pytest.raises(UserError, match="several members have equal d_sae, seed and penalty.l1"):
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


def test_best_averages_over_seeds_alone():
    """Two learning rates that a mean over them would hide: .431 and .0196, whose mean is .225."""
    axes = {"d_sae": [64] * 8, "penalty.l1": [0.03, 0.1] * 4, "optimizer.lr": [1e-4, 1e-4, 1e-2, 1e-2] * 2,
            "seed": [0] * 4 + [1] * 4}  # fmt: skip
    members = pd.DataFrame(axes).assign(**{"eval/fvu": [0.432, 0.5, 0.0197, 0.04, 0.430, 0.5, 0.0195, 0.04]})
    table = Best(metric="eval/fvu", along="penalty.l1", smallest=True).table(members)
    assert table["fvu"].to_list() == pytest.approx([0.431, 0.0196])
    assert list(table["penalty.l1"]) == [0.03, 0.03] and table.index.names == ["d_sae", "optimizer.lr"]


def test_best_of_a_choice_searches_its_fields_too():
    members = pd.DataFrame(
        {"activation": ["relu", "top-k", "top-k"], "activation.k": [np.nan, 8, 16], "d_sae": [64] * 3}
    )
    members = members.assign(**{"eval/fvu": [0.51, 0.41, 0.305]})
    table = Best(metric="eval/fvu", along="activation", smallest=True).table(members)
    assert table.index.names == ["d_sae"] and table.loc[64, ["activation", "activation.k"]].to_list() == ["top-k", 16]
    with pytest.raises(UserError, match="answer: along: got seed, allowed: no seed, as means are over seeds"):
        Best(metric="eval/fvu", along="seed", group="d_sae").check(["d_sae", "seed"])


def test_a_sweep_that_names_no_figures_shows_what_varies():
    flats = [{"d_sae": w, "penalty.l1": a, "penalty.l2": b} for w in (64, 128) for a, b in ((0, 0), (0.1, 0), (0, 0.1))]
    marked = ("penalty.l1", "penalty.l2", "activation.k")
    shown = figures.default_figures(flats, marked)
    assert shown[0] == Frontier(along=("penalty.l1", "penalty.l2"), group=("d_sae",))
    assert [figure.metric for figure in shown if isinstance(figure, Heatmap)] == [
        "eval/fvu",
        "eval/l0",
        "eval/dead_fraction",
    ]
    assert figures.axes([*flats, {"d_sae": 64, "penalty.l1": 0.1, "penalty.l2": 0.1}], marked) == (
        ("penalty.l1",),
        ("d_sae", "penalty.l2"),
    )
    assert not any(isinstance(figure, Frontier | Parallel) for figure in figures.default_figures(flats[:1], marked))
    assert not any(isinstance(figure, Frontier | Heatmap) for figure in figures.default_figures(flats, ()))
    known = figures.default_figures(flats, marked, true_features=True)
    assert Heatmap(metric="eval/mmcs", along=("penalty.l1", "penalty.l2")) in known and known[-1].metric == "eval/mmcs"
    compared = AtMatched(arms={"L1": "penalty.l1", "L2": "penalty.l2"}, matched="eval/l0")
    assert [f for f in figures.default_figures(flats, marked, compared) if isinstance(f, AtMatched)] == []
    many = AtMatched(arms={name: "penalty.l1" for name in "ABCD"}, matched="eval/l0")
    assert not any(isinstance(f, Frontier | Heatmap) for f in figures.default_figures(flats, marked, many))
    for figure in shown:
        figure.check(flats[0])
        assert figures.read(json.loads(json.dumps(figures.plain(figure)))) == figure


def test_arms_with_one_short_name_are_told_apart():
    flats = [{"penalty.l0": a, "control.l0": b, "d_sae": 8} for a, b in ((0, 0), (1, 0), (0, 1))]
    (matched,) = [f for f in figures.default_figures(flats, ("penalty.l0", "control.l0")) if isinstance(f, AtMatched)]
    assert matched.arms == {"penalty.l0": "penalty.l0", "control.l0": "control.l0"}


def test_an_arm_is_named_by_what_it_is():
    flats = [{"activation": "batch-top-k", "activation.k": 8}, {"penalty": "lp", "penalty.weight": 0.1}]
    flats += [{"penalty": "elastic-net", "penalty.l1": 0.1}, {"control": "target-l0", "control.l0": 3.0}]
    along = ("activation.k", "penalty.weight", "penalty.l1", "control.l0")
    assert list(figures.arm_names(along, flats).values()) == ["BatchTopK", "Lp weight", "L1", "TargetL0"]
    two = [*flats, {"activation": "top-k", "activation.k": 8}]
    assert figures.arm_names(["activation.k"], two) == {"activation.k": "activation.k"}


def reaching(**ends):
    """Members of arms {"l1": (13.7, 416)} whose l0 runs from one end to the other, for two seeds."""
    names = [f"penalty.{name}" for name in ends]
    rows = [
        dict.fromkeys(names, 0.0)
        | {f"penalty.{name}": i + 1.0, "d_sae": 8, "seed": seed, "eval/l0": l0, "eval/fvu": 0.1}
        for name, of_arm in ends.items()
        for i, l0 in enumerate(of_arm)
        for seed in (0, 1)
    ]
    return pd.DataFrame(rows), AtMatched(arms=names, matched="eval/l0", at=(), metrics=("eval/fvu",))


def test_matched_values_are_those_that_all_arms_reach_and_then_those_that_most_reach():
    members, answer = reaching(l1=(13.7, 416), l2=(8, 32))
    assert answer.values(members) == (15, 20, 30)
    assert answer.compare(members)["seeds"].min() == 2, "no comparison has a gap"
    members, answer = reaching(l1=(13.7, 416), l2=(8, 3_000))
    assert answer.values(members) == (20, 100, 200)
    members, answer = reaching(l1=(18, 60), l2=(10, 22), l3=(18, 60))
    assert answer.values(members) == (20, 30, 50), "20 by all, 30 to 50 by two of three"
    members, answer = reaching(l1=(1.6, 1.9), l2=(2.1, 2.2))
    with pytest.raises(UserError, match="no round value of l0 that some frontier reaches; name some with `at`"):
        answer.table(members)


@sae.definition
class Own(Penalty):
    """A penalty of a user's own, with a number that trades sparsity for error and one that does not."""

    weight: float = sae.leaf(1.0, min=0, arm=True)
    sharpness: float = sae.leaf(1.0)

    def cost(self, out):
        return self.weight * jnp.sum(jnp.log1p(self.sharpness * out.latents)) / out.batch


def test_arms_are_the_numbers_that_are_marked(tiny):
    own = sae.replace(tiny, {"penalty": Own(), "activation": TopK(k=3)})
    assert arms.marked([tiny]) == ("penalty.l1", "penalty.l2")
    assert set(arms.marked([tiny, own])) == {"penalty.l1", "penalty.l2", "penalty.weight", "activation.k"}


def test_a_run_of_before_arms_were_recorded_has_those_of_its_names():
    member = {"penalty.l1": 0.1, "penalty.warmup_steps": 5, "penalty.weighted": False, "optimizer.lr": 1.0}
    definition = {"members": [member, {"activation": "top-k", "activation.k": 3}]}
    assert arms.recorded(definition) == ("penalty.l1", "activation.k")
    assert arms.recorded(definition | {"arms": None}) == ("penalty.l1", "activation.k"), "pulled from W&B"
    assert arms.recorded(definition | {"arms": ["penalty.l2"]}) == ("penalty.l2",)


def test_a_penalty_of_ones_own_is_an_arm_of_the_report_and_of_watch(tiny, tmp_path, quiet):
    """So is nothing else of it: a number that is not marked makes no frontier."""
    base = sae.replace(tiny, {"penalty": Own(), "n_steps": 20})
    sweep = Sweep(name="own", members=grid(base, {"penalty.weight": (0.1, 0.2), "penalty.sharpness": (1.0, 2.0)}))
    results = sae.run(sweep, out=tmp_path / "own", wandb="off", console=quiet)
    assert results.definition["arms"] == ["penalty.weight"]
    assert results.figures[0] == Frontier(along=("penalty.weight",), group=("d_sae", "penalty.sharpness"))
    assert gather([results]).along == ("penalty.weight",)
    quiet.print(watch.frame(results))
    assert "● Own weight" in quiet.file.getvalue() and "sharpness" not in quiet.file.getvalue()


def test_a_figure_of_names_that_are_not_there_is_refused(tiny):
    with pytest.raises(UserError, match="Frontier: members have no 'penalty.l3'; close names: penalty.l"):
        as_sweep(Sweep(name="x", members=[tiny], figures=[Frontier(along=("penalty.l3",))]))
    with pytest.raises(UserError, match="Curves: no metric 'eval/fvu'; close names: .*train/fvu"):
        as_sweep(Sweep(name="x", members=[tiny], figures=[Curves(metrics=("eval/fvu",))]))
    with pytest.raises(UserError, match="figures: got 'frontier', allowed: Frontier"):
        as_sweep(Sweep(name="x", members=[tiny], figures=["frontier"]))
    with pytest.raises(UserError, match="answer: got Frontier.*, allowed: AtMatched, Best"):
        as_sweep(Sweep(name="x", members=[tiny], answer=Frontier(along=("penalty.l1",))))
    with pytest.raises(UserError, match="members: got 'tiny', allowed: Experiments"):
        as_sweep(Sweep(name="x", members=["tiny"]))


def test_a_sweep_of_nothing_and_twins_are_refused(tiny):
    with pytest.raises(UserError, match="has no members"):
        as_sweep(Sweep(name="empty", members=[]))
    with pytest.raises(UserError, match="members 0 and 1 are the same"):
        as_sweep(Sweep(name="twins", members=[tiny, dataclasses.replace(tiny, name="other")]))


def test_an_older_definition_is_completed_with_the_defaults_of_newer_fields(tiny):
    flat = flatten(tiny)
    new = ("reconstruction", "control", "auxiliary", "average", "penalty.weighted", "data.n_held_out", "precision")
    assert complete({name: value for name, value in flat.items() if name not in new}) == flat
    assert complete(flat) == flat and complete({"name": "x"})["activation"] == "relu"


def test_replicates_are_counted_where_members_lack_each_others_numbers():
    """Two methods of different fields: what one lacks is missing there, and is a value like any other."""
    rows = [
        {"activation": kind, "activation.k": k, "penalty.l1": l1, "seed": seed, "eval/fvu": 0.1}
        for kind, k, l1 in (("top-k", 4.0, None), ("top-k", 8.0, None), ("relu", None, 0.1))
        for seed in (0, 1, 2)
    ]
    members = pd.DataFrame(rows)
    assert replicates.over_seeds(members) == "means over 3 seeds"
    assert replicates.lurking(members, ["activation"]) == ("activation.k",)
    assert replicates.lurking(members, ["activation", "activation.k"]) == ()


def test_of_arms_that_exclude_each_other_both_are_kept_and_a_field_that_its_choice_decides_is_no_group():
    """Members with a control have an l1 too, of one value; TopK has k; the data differ in name and in size."""
    held = {"activation": "relu", "penalty": "elastic-net", "penalty.l1": 0.1, "control": "target-l0"}
    kept = {"activation": "top-k", "penalty": "elastic-net", "penalty.l1": 0.0, "control": "as-written"}
    data = [{"data": "a", "data.n_held_out": 10}, {"data": "b", "data.n_held_out": 20}]
    flats = [one | held | {"control.l0": l0} for one in data for l0 in (2.0, 4.0)]
    flats += [one | kept | {"activation.k": k} for one in data for k in (2, 4)]
    along, others = figures.axes(flats, ("penalty.l1", "control.l0", "activation.k"))
    assert set(along) == {"control.l0", "activation.k"} and others == ("data",)

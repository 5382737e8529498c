"""Claims decided on tables made by hand, so that the answers are known."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from sae import Sweep, UserError, grid, replace, run
from sae.cli.main import main as cli
from sae.study import claims
from sae.study.claims import AtLeast, AtMost, Claim, Within
from sae.study.quantities import (
    Arm,
    AtBest,
    AtEach,
    AtEnd,
    AtSome,
    Decades,
    Difference,
    Follows,
    InSeeds,
    Largest,
    Matched,
    Monotone,
    Onset,
    Peak,
    PeakAt,
    PeakInside,
    Ranked,
    Ratio,
    Span,
    Spread,
    Zone,
)
from sae.study.quantities.numbers import falling, longest_run, onset, spearman

LAMBDAS = (0.01, 0.1, 1.0, 10.0)
L1, L2 = (Arm(along=f"penalty.{a}", others=(f"penalty.{b}",)) for a, b in (("l1", "l2"), ("l2", "l1")))


class Table:
    """Results that hold only the table of all members."""

    def __init__(self, members: pd.DataFrame):
        self.everyone = members


@pytest.fixture
def table() -> pd.DataFrame:
    """fvu = λ / 20; l0 = 2 / λ under L1, four times as much under L2; seeds differ by a factor in both alike.

    n_eff is l0 by width: as much with 64 latents, three times as much with 128.
    """
    rows = [
        {
            "member": i, "status": "finished", "d_sae": d_sae, "seed": seed, "penalty.l1": λ * (arm == "l1"),
            "penalty.l2": λ * (arm == "l2"), "eval/fvu": λ / 20,
            "eval/l0": (2 if arm == "l1" else 8) / λ * (1 + seed / 10),
            "eval/mmcs": {0.01: 0.3, 0.1: 0.95, 1.0: 0.92, 10.0: 0.2}[λ] + seed / 1000,
            "eval/n_eff": (2 if arm == "l1" else 8) / λ * (1 + seed / 10) * (1 if d_sae == 64 else 3),
            "eval/dead_fraction": {0.01: 0.0, 0.1: 0.01, 1.0: 0.09, 10.0: 0.9}[λ],
        }
        for i, (arm, d_sae, seed, λ) in enumerate(
            (arm, d, s, λ) for arm in ("l1", "l2") for d in (64, 128) for s in range(3) for λ in LAMBDAS
        )
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture
def results(table) -> Table:
    return Table(table)


def test_matched_values_are_interpolated_in_both_logarithms_and_never_extrapolated(results):
    cells = Matched(arm=L1, metric="eval/l0", at=(0.05, 0.02, 0.9))(results)
    assert list(cells) == [f"d_sae {d}, fvu {v}" for v in ("0.05", "0.02", "0.9") for d in (64, 128)]
    np.testing.assert_allclose(cells["d_sae 64, fvu 0.05"], [2.0, 2.2, 2.4])
    np.testing.assert_allclose(cells["d_sae 64, fvu 0.02"], np.array([5.0, 5.5, 6.0]), rtol=1e-12)
    assert cells["d_sae 128, fvu 0.9"].isna().all()


def test_ratios_pair_seeds(results):
    ratio = Ratio(*(Matched(arm=arm, metric="eval/l0", at=(0.02,)) for arm in (L1, L2)))
    (cell, _) = claims.decide(Claim("x", AtMost(ratio, 0.25 + 1e-9)), results).cells
    assert cell.verdict == "holds" and cell.estimate.value == pytest.approx(0.25)
    assert cell.estimate.low == pytest.approx(cell.estimate.high), "seeds differ alike in both, so not in the ratio"
    other = Difference(Matched(arm=L1, metric="eval/l0"), Peak(arm=L2, metric="eval/l0"))
    with pytest.raises(UserError, match="cannot combine quantities with different cells"):
        other(results)


def test_what_is_read_off_a_line(results):
    one = lambda quantity: quantity(results)["d_sae 64"].iloc[0]
    assert one(Peak(arm=L1, metric="eval/mmcs")) == 0.95 and one(PeakAt(arm=L1, metric="eval/mmcs")) == 0.1
    assert one(Peak(arm=L1, metric="eval/mmcs", smallest=True)) == 0.2
    assert (
        one(AtEnd(arm=L1, metric="eval/mmcs")) == 0.2 and one(AtEnd(arm=L1, metric="eval/mmcs", smallest=True)) == 0.3
    )
    assert one(Zone(arm=L1, metric="eval/mmcs", level=0.9)) == 2
    assert one(Monotone(arm=L1, metric="eval/l0")) == pytest.approx(-1)
    assert one(Monotone(arm=L1, metric="eval/dead_fraction")) == pytest.approx(1)
    assert one(Onset(arm=L1, metric="eval/dead_fraction", level=0.05)) == pytest.approx(10**-0.5)
    apart = Decades(Onset(arm=L1, metric="eval/dead_fraction", level=0.05), PeakAt(arm=L1, metric="eval/mmcs"))
    assert one(apart) == pytest.approx(0.5)
    of_widths = Peak(arm=L1, metric="eval/n_eff")
    np.testing.assert_allclose(Spread(of_widths)(results)["largest / smallest"], [3, 3, 3])
    np.testing.assert_allclose(Largest(of_widths)(results)["largest"], [600, 660, 720])
    np.testing.assert_allclose(Ranked(of_widths, 1)(results)["number 1 of 2"], [200, 220, 240])
    np.testing.assert_allclose(Ranked(of_widths, 2)(results)["number 2 of 2"], [600, 660, 720])
    with pytest.raises(UserError, match="got n 3, allowed: 1 to 2"):
        Ranked(of_widths, 3)(results)


def test_the_seeds_that_keep_a_bound_are_counted(results):
    of_widths = Peak(arm=L1, metric="eval/n_eff")  # 200, 220, 240 and 600, 660, 720
    counts = lambda bound: {key: list(cell) for key, cell in InSeeds(bound)(results).items()}
    assert counts(AtMost(of_widths, 230)) == {"d_sae 64": [2, 2, 2], "d_sae 128": [0, 0, 0]}
    assert counts(Within(of_widths, 210, 610)) == {"d_sae 64": [2, 2, 2], "d_sae 128": [1, 1, 1]}
    two = claims.decide(Claim("x", AtLeast(InSeeds(AtLeast(Peak(arm=L1, metric="eval/n_eff"), 220)), 2)), results)
    assert two.verdict == "holds", "exactly two are enough"
    absent = lambda results: {"a": pd.Series([1.0, np.nan, 3.0])}
    cell = InSeeds(AtLeast(absent, 2))(results)["a"]
    np.testing.assert_array_equal(cell, [1, np.nan, 1])


def test_every_combination_of_seeds_is_one_number(table, results):
    table["data_seed"] = table["seed"] % 2
    table["seed"] = table["seed"] // 2
    cells = AtEnd(arm=L1, metric="eval/l0")(results)
    assert all(list(cell.index)[:2] == ["seed 0, data_seed 0", "seed 0, data_seed 1"] for cell in cells.values())
    ratio = Ratio(AtEnd(arm=L1, metric="eval/l0"), AtEnd(arm=L1, metric="eval/l0"))(results)
    assert all((cell == 1).all() for cell in ratio.values())


def test_a_difference_has_a_sign_and_pairs_seeds(table, results):
    at = lambda arm: Matched(arm=arm, metric="eval/l0", at=(0.05,))
    np.testing.assert_allclose(Difference(at(L2), at(L1))(results)["d_sae 64, fvu 0.05"], [6, 6.6, 7.2])
    np.testing.assert_allclose(Difference(at(L1), at(L2))(results)["d_sae 128, fvu 0.05"], [-6, -6.6, -7.2])
    fewer = Table(table[~((table["penalty.l1"] > 0) & (table["seed"] == 1))])
    for pair in (Ratio(at(L1), at(L2)), Ratio(at(L2), at(L1))):
        assert list(pair(fewer)["d_sae 64, fvu 0.05"].isna()) == [False, True, False], "a seed that one lacks"


def test_a_member_is_chosen_by_one_metric_and_read_by_another(results):
    best = AtBest(arm=L1, metric="eval/l0", by="eval/mmcs")(results)["d_sae 64"]
    np.testing.assert_allclose(best, [20, 22, 24], err_msg="λ = .1 has the largest mmcs, and 2 / λ latents")
    assert Follows(arm=L1, metric="eval/l0", other="eval/fvu")(results)["d_sae 64"].iloc[0] == pytest.approx(-1)
    span = lambda metric: Span(arm=L1, metric=metric)(results)["d_sae 64"].iloc[0]
    assert span("eval/l0") == pytest.approx(1000) and span("eval/mmcs") == pytest.approx(100)
    assert span("eval/fvu") == 1, "which rises all along"
    rising = Monotone(arm=L1, metric="eval/mmcs", most={"eval/fvu": 0.01})
    assert np.isnan(rising(results)["d_sae 64"].iloc[0]), "two points are no trend"
    assert Monotone(arm=L1, metric="eval/l0", most={"eval/fvu": 0.1})(results)["d_sae 64"].iloc[0] == pytest.approx(-1)


def test_some_member_meets_several_bounds_at_once(table):
    """One width and coefficient for every metric: the one with the largest margin to its tightest bound."""
    table.loc[table["d_sae"] == 128, "eval/mmcs"] -= 0.2
    some = lambda metric, **bounds: AtSome(arm=L1, metric=metric, **bounds)(Table(table))
    bounds = {"least": {"eval/mmcs": 0.9}, "most": {"eval/l0": 4, "eval/fvu": 0.1}}
    for metric, values in (("eval/mmcs", [0.92, 0.921, 0.922]), ("eval/l0", [2, 2.2, 2.4])):
        ((label, found),) = some(metric, **bounds).items()
        assert label == "d_sae 64, penalty.l1 1"
        np.testing.assert_allclose(found, values)
    table.loc[(table["d_sae"] == 64) & (table["penalty.l1"] == 1.0) & (table["seed"] == 2), "status"] = "diverged"
    ((label, _),) = some("eval/mmcs", **bounds).items()
    assert label == "d_sae 128, penalty.l1 1", "one that not every seed has is no candidate"
    table["status"] = "missing"
    with pytest.raises(UserError, match="no members have all of"):
        some("eval/mmcs", **bounds)


def test_a_peak_inside_a_zone_is_of_the_members_that_others_choose(table, results):
    inside = lambda level, **of: PeakInside(arm=L1, metric="eval/l0", least={"eval/mmcs": level}, **of)(results)
    np.testing.assert_allclose(inside(0.9)["d_sae 64"], [20, 22, 24], err_msg="λ = .1 and 1 are in the zone")
    np.testing.assert_allclose(inside(0.9, smallest=True)["d_sae 64"], [2, 2.2, 2.4])
    np.testing.assert_allclose(inside(0.0)["d_sae 128"], [200, 220, 240])
    assert list(inside(0.9515)["d_sae 64"].isna()) == [True, True, False], "each seed has a zone of its own"
    table.loc[(table["penalty.l1"] == 0.1) & (table["seed"] == 2), "status"] = "diverged"
    assert list(inside(0.9)["d_sae 64"].isna()) == [False, False, True]
    with pytest.raises(UserError, match="no metric 'eval/mcs'"):
        PeakInside(arm=L1, metric="eval/l0", least={"eval/mcs": 0.9}).check(["d_sae", "penalty.l1", "penalty.l2"])


def test_at_each_coefficient_a_member_stands_alone(table):
    table.loc[(table["penalty.l1"] == 10) & (table["seed"] == 1), "status"] = "diverged"
    cells = AtEach(arm=L1, metric="eval/l0")(Table(table[~((table["penalty.l1"] == 1) & (table["seed"] == 0))]))
    assert list(cells)[:4] == ["d_sae 64, penalty.l1 0.01", "d_sae 64, penalty.l1 0.1", "d_sae 64, penalty.l1 1",
                               "d_sae 64, penalty.l1 10"] and len(cells) == 8  # fmt: skip
    np.testing.assert_allclose(cells["d_sae 64, penalty.l1 0.1"], [20, 22, 24])
    np.testing.assert_allclose(cells["d_sae 128, penalty.l1 1"], [np.nan, 2.2, 2.4])
    np.testing.assert_allclose(cells["d_sae 64, penalty.l1 10"], [0.2, np.nan, 0.24])


def test_neighbours_on_a_grid_of_half_decades_are_half_a_decade_apart():
    of = lambda value: lambda results: {"": pd.Series([value], dtype=float)}
    grid = [10 ** (k / 2) for k in range(-8, 5)]
    apart = [float(Decades(of(a), of(b))(None)[""].iloc[0]) for a, b in zip(grid, grid[1:], strict=False)]
    assert apart == [0.5] * 12, "to the digit, as a bound of .5 is met by neighbours"


def test_the_pieces():
    assert onset(pd.Series([1, 10, 100]), pd.Series([0, 0.0, 1.0]), 0.5) == pytest.approx(10**1.5)
    assert np.isnan(onset(pd.Series([1, 10]), pd.Series([0.6, 1.0]), 0.5)), "where it starts above, it has no onset"
    assert np.isnan(onset(pd.Series([1, 10]), pd.Series([0, 0.2]), 0.5))
    assert spearman(pd.Series([1, 2, 3, 4]), pd.Series([1, 4, 9, 16])) == pytest.approx(1)
    assert spearman(pd.Series([1, 2, 3, 4]), pd.Series([1, 2, 4, 3])) == pytest.approx(0.8)
    assert np.isnan(spearman(pd.Series([1, 2, 3]), pd.Series([1, 1, 1])))
    assert longest_run(pd.Series([True, True, False, True])) == 2
    assert falling([1, 2, 4, 40, 80], [5, 4, 4, 3, 2]) == pytest.approx(20), "a plateau is no fall"
    assert falling([1, 2], [1, 1]) == 1


def test_verdicts_follow_the_interval():
    cell = lambda low, high: lambda results: {"": pd.Series([low, high] * 20, dtype=float)}
    around_one = cell(0.9, 1.1)  # mean 1, interval about [0.97, 1.03]
    verdict = lambda clause: claims.decide(Claim("x", clause), None).verdict
    assert [verdict(AtMost(around_one, b)) for b in (0.9, 1.0, 1.1)] == ["fails", "undecided", "holds"]
    assert [verdict(AtLeast(around_one, b)) for b in (0.9, 1.0, 1.1)] == ["holds", "undecided", "fails"]
    bounds = [(0.9, 1.1), (1.0, 1.1), (1.1, 1.2), (0.7, 0.8)]
    assert [verdict(Within(around_one, *b)) for b in bounds] == ["holds", "undecided", "fails", "fails"]
    assert verdict(AtMost(lambda results: {"": pd.Series([0.0])}, 1)) == "undecided", "one seed has no interval"
    several = lambda results: {"a": pd.Series([0.0, 0.0]), "b": pd.Series([2.0, 2.0])}
    assert verdict(AtMost(several, 1)) == "fails" and verdict(AtMost(several, 3)) == "holds"


@pytest.mark.parametrize("status", ["diverged", "missing"])
def test_a_line_with_a_member_that_is_missing_or_diverged_decides_nothing(table, status):
    broken = (table["penalty.l1"] == 10) & (table["seed"] == 1) & (table["d_sae"] == 64)
    table.loc[broken, "status"] = status
    results = Table(table)
    decided = claims.decide(Claim("x", AtLeast(Matched(arm=L1, metric="eval/l0", at=(0.02,)), 1)), results)
    assert [cell.verdict for cell in decided.cells] == ["undecided", "holds"] and decided.verdict == "undecided"
    assert decided.cells[0].estimate.reason.startswith("1 of 3 seeds have no number")
    (first, second) = claims.as_json([decided])[0]["clauses"]
    assert first["low"] is None and second["low"] > 1 and second["threshold"] == "≥ 1"


LINE_OF = {"arm": L1, "metric": "eval/mmcs"}


@pytest.mark.parametrize(
    "quantity",
    [
        Peak(**LINE_OF), PeakAt(**LINE_OF), Zone(**LINE_OF, level=0.9), Monotone(**LINE_OF), Span(**LINE_OF),
        AtBest(arm=L1, metric="eval/l0", by="eval/mmcs"), Follows(**LINE_OF, other="eval/fvu"),
        Onset(**LINE_OF, level=0.9), PeakInside(arm=L1, metric="eval/l0", least={"eval/mmcs": 0.9}),
        PeakInside(**LINE_OF, least={"eval/l0": 1}), Matched(arm=L1, metric="eval/l0", matched="eval/mmcs", at=(0.5,)),
    ],
    ids=lambda quantity: type(quantity).__name__,
)  # fmt: skip
def test_a_member_without_the_number_that_is_read_is_never_passed_over(table, quantity):
    """A member beside the peak has no number, so what its line would give is unknown."""
    assert quantity(Table(table))["d_sae 64"].notna().all() if not isinstance(quantity, Matched) else True
    table.loc[(table["penalty.l1"] == 1.0) & (table["seed"] == 1) & (table["d_sae"] == 64), "eval/mmcs"] = np.nan
    found = quantity(Table(table))
    assert list(next(iter(found.values())).isna()) == [False, True, False]


def test_a_number_that_is_not_read_may_be_lacking(table):
    table.loc[(table["penalty.l1"] == 0.01) & (table["d_sae"] == 64), "eval/mmcs"] = np.nan
    results = Table(table)
    assert AtEnd(**LINE_OF)(results)["d_sae 64"].notna().all()
    assert PeakInside(**LINE_OF, least={"eval/fvu": 0.01})(results)["d_sae 64"].notna().all()
    assert Matched(**LINE_OF, at=(0.1,))(results)["d_sae 64, fvu 0.1"].notna().all(), "neither neighbour is that"


def test_members_that_a_claim_names_must_be_there(results):
    some = Arm(along="penalty.l1", others=("penalty.l2",), where={"d_sae": (64, 256, 512)})
    decided = claims.decide(Claim("x", AtMost(Spread(PeakAt(arm=some, metric="eval/mmcs")), 3)), results)
    assert decided.verdict == "undecided"
    assert decided.cells[0].estimate.reason == "claim: no member with penalty.l1 alone has d_sae 256, 512"
    names = ["d_sae", "penalty.l1"]
    for scalar in (64, "64"):
        with pytest.raises(UserError, match="allowed: a tuple of values"):
            Arm(along="penalty.l1", where={"d_sae": scalar}).check(names)


def test_a_group_without_a_value_is_a_line_too(table):
    table["activation.k"] = table["d_sae"].map({64: np.nan, 128: 4})
    arm = Arm(along="penalty.l1", others=("penalty.l2",), group=("d_sae", "activation.k"))
    assert list(Peak(arm=arm, metric="eval/l0")(Table(table))) == [
        "d_sae 64, activation.k nan",
        "d_sae 128, activation.k 4",
    ]


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (0.5, "'float' object has no attribute 'items'"),
        ({"": 0.5}, "'float' object has no attribute 'to_numpy'"),
        ({"": pd.Series([], dtype=float)}, "no seeds"),
        ({"": pd.Series([1.0, np.inf])}, "1 of 2 seeds have no number"),
        ({}, "no cells: there is nothing to decide"),
    ],
)
def test_whatever_a_quantity_of_ones_own_gives_costs_no_result(found, reason):
    decided = claims.decide(Claim("x", AtMost(lambda results: found, 1)), None)
    ((clause,),) = [one["clauses"] for one in claims.as_json([decided])]
    assert decided.verdict == "undecided" and clause["reason"].startswith(reason)
    json.dumps(claims.as_json([decided]), allow_nan=False)


def test_what_a_claim_reads_is_checked_before_training():
    names = ["d_sae", "penalty.l1", "penalty.l2"]
    Claim("x", AtMost(Ratio(Peak(arm=L1, metric="eval/l0"), Peak(arm=L2, metric="eval/l0")), 1)).check(names)
    with pytest.raises(UserError, match="claim: members have no 'penalty.l3'; close names"):
        Claim("x", AtMost(Peak(arm=Arm(along="penalty.l3"), metric="eval/l0"), 1)).check(names)
    with pytest.raises(UserError, match="claim: no metric 'eval/lo'; close names"):
        Claim("x", AtMost(Peak(arm=L1, metric="eval/lo"), 1)).check(names)
    with pytest.raises(UserError, match="allowed: AtMost"):
        Claim("x", Peak(arm=L1, metric="eval/l0")).check(names)
    with pytest.raises(UserError, match="got 0.5 as a quantity"):
        Claim("x", AtMost(0.5, 0.5)).check(names)
    with pytest.raises(UserError, match="AtSome: got a bound of 0 on eval/l0, allowed: more than 0"):
        Claim("x", AtMost(AtSome(arm=L1, metric="eval/l0", least={"eval/l0": 0.0}), 0.5)).check(names)
    mine = lambda results: {}
    for of_mine in (Ratio(mine, mine), Largest(mine), Spread(mine)):
        Claim("x", AtMost(of_mine, 0.5)).check(names)


SWEEP = """
from sae import *
from sae.study.quantities import *

base = Experiment(name="x", data=Digits(), d_sae=32, n_steps=60, batch_size=64, optimizer=Adam(lr=3e-3))
L1 = Arm(along="penalty.l1")
sweep = Sweep(
    name="x",
    members=grid(base, {"penalty.l1": (0.01, 0.1, 1.0), "seed": range(2)}),
    claims=(
        Claim("a larger coefficient leaves fewer active", AtMost(Monotone(arm=L1, metric="eval/l0"), -0.95), "?"),
        Claim("nothing is lost", AtMost(Peak(arm=L1, metric="eval/fvu"), 0.0)),
        Claim("out of reach", AtLeast(Matched(arm=L1, metric="eval/l0", at=(1e-6,)), 0.0)),
        Claim("no number at all", AtLeast(lambda results: {}["x"], 0.0)),
    ),
)
"""


def test_a_run_ends_with_the_verdicts_and_a_failing_claim_can_be_an_exit_code(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "x.py").write_text(SWEEP)
    flags = ["--wandb", "off", "--no-report", "--check"]
    assert cli(["run", "x.py", *flags]) == 2
    out = capsys.readouterr().out
    assert "claims: 4: 1 holds, 1 fails, 2 undecided" in out and "2 of 2 seeds have no number" in out
    decided = claims.read(tmp_path / "runs/x")
    assert [claim["verdict"] for claim in decided] == ["holds", "fails", "undecided", "undecided"]
    assert decided[0]["clauses"][0]["measured"] <= -0.95 and decided[3]["clauses"][0]["reason"] == "'x'"
    assert list(claims.table(decided)["at"]) == ["d_sae 32", "d_sae 32", "d_sae 32, fvu 1e-06", ""]
    (tmp_path / "x.py").write_text(SWEEP.replace('"eval/fvu"), 0.0', '"eval/fvu"), 2.0'))
    assert cli(["claims", "runs/x", "x.py", "--check"]) == 0, "decided again, by what the file says now"
    out = capsys.readouterr().out
    assert "1 fails" not in out and claims.read(tmp_path / "runs/x")[1]["verdict"] == "holds"
    assert out.count("nothing is lost (not claimed at the first run)") == 1 and out.count("not claimed") == 1
    assert out.count("claimed at the first run, and no longer") == 1, "the bound that it had"
    (tmp_path / "x.py").write_text(SWEEP)
    assert cli(["run", "x.py", *flags]) == 2, "and so does the run's own command, which trains nothing"
    assert not any(claim["later"] for claim in claims.read(tmp_path / "runs/x")), "it is again as it was"
    assert cli(["claims", "runs/x"]) == 1 and "name it: sae claims runs/x x.py" in capsys.readouterr().err


def test_labels_of_cells_may_be_numbers():
    found = {np.int64(64): pd.Series([1.0, 1.0]), 128: pd.Series([2.0, 2.0])}
    (claim,) = claims.as_json([claims.decide(Claim("x", AtMost(lambda results: found, 1)), None)])
    assert [
        clause["text"]
        for clause in claims.as_json([claims.decide(Claim("x", AtMost(lambda _: found, 1)), None)])[0]["clauses"]
    ] == ["64", "128"]
    assert "| 128 |" in claims.markdown([claim]) and json.dumps(claim)


def test_what_was_claimed_at_the_first_run_is_told_from_what_came_later():
    one, two = (lambda bound: Claim("x", AtMost(Peak(arm=L1, metric="eval/l0"), bound))), Claim("y", AtLeast(len, 1))
    later = lambda now, first: [claim["later"] for claim in claims.as_json(now, first)]
    decided = lambda *of: [claims.decide(claim, Table(pd.DataFrame())) for claim in of]
    first = [claims.written(claim) for claim in (one(1), two)]
    assert later(decided(one(1), two), None) == [None, None], "an older folder does not say"
    assert later(decided(one(1.0), two), first) == [False, False]
    assert later(decided(one(1)), []) == [True]
    mended = claims.as_json(decided(one(2), two), first)
    assert [claim["later"] for claim in mended] == [True, False, False] and mended[-1]["text"] == "x"
    assert mended[-1]["clauses"][0]["threshold"] == "≤ 1" and mended[-1]["verdict"] == "undecided"
    assert "no longer" in claims.markdown(mended)


def test_the_words_of_a_clause_leave_out_what_is_at_its_default():
    """A field that a later version adds then leaves the words of an earlier version as they are."""
    inside = PeakInside(
        arm=Arm(along="penalty.l1", where={"d_sae": (64, 128)}), metric="eval/l0", least={"eval/mmcs": 0.9}
    )
    words = claims.written(Claim("x", AtMost(inside, 1)))["clause"]
    assert words == (
        "AtMost(quantity=PeakInside(arm=Arm(along='penalty.l1', where={d_sae: (64.0, 128.0)}), metric='eval/l0', "
        "least={eval/mmcs: 0.9}), bound=1.0)"
    )
    own = dataclasses.make_dataclass("Own", [("weights", object)], namespace={"__call__": lambda self, results: {}})
    assert "array([1., 1.])" in claims.written(Claim("x", AtMost(own(np.ones(2)), 1)))["clause"], "an array has no =="
    assert " at 0x" not in claims.written(Claim("x", AtMost(lambda results: {}, 1)))["clause"]


def test_the_report_is_drawn_again_where_claims_are_others(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.py").write_text(SWEEP)
    run_it = lambda: cli(["run", "x.py", "--wandb", "off"])
    assert run_it() == 0
    page = tmp_path / "runs/x/report.html"
    drawn = page.stat().st_mtime_ns
    assert run_it() == 0 and page.stat().st_mtime_ns == drawn, "nothing is new"
    (tmp_path / "x.py").write_text(
        SWEEP.replace("nothing is lost", "all is kept").replace(
            '0.0)),\n        Claim("out', '2.0)),\n        Claim("out'
        )
    )
    assert cli(["claims", "runs/x", "x.py"]) == 0 and run_it() == 0
    assert "all is kept (not claimed at the first run)" in page.read_text() and page.stat().st_mtime_ns > drawn


def test_members_of_a_run_that_is_not_finished_are_missing(tmp_path, quiet, tiny):
    sweep = Sweep(name="x", members=grid(replace(tiny, {"n_steps": 20}), {"d_sae": (16, 24), "seed": (0, 1)}))
    results = run(sweep, out=tmp_path / "run", wandb="off", console=quiet, only=[1])
    everyone = results.everyone
    assert list(everyone["status"]) == ["missing", "missing", "finished", "finished"]
    assert list(everyone["d_sae"]) == [16, 16, 24, 24] and list(everyone["eval/l0"].isna()) == [
        True,
        True,
        False,
        False,
    ]
    assert list(everyone["member"]) == [0, 1, 2, 3]


def test_claims_of_several_runs_are_one_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(SWEEP.replace('name="x"', f'name="{name}"'))
        assert cli(["run", f"{name}.py", "--wandb", "off", "--no-report"]) == 0
    capsys.readouterr()
    assert cli(["claims", "runs/one", "runs/two", "two.py", "one.py", "--check"]) == 2
    out = capsys.readouterr().out
    assert "claims: 8: 2 holds, 2 fails, 4 undecided" in out
    assert [line.strip() for line in out.splitlines() if line.strip() in ("one", "two")] == ["one", "two"]
    assert cli(["claims", "runs/one", "one.py", "--markdown"]) == 0
    table = capsys.readouterr().out.strip().splitlines()
    assert table[0] == "| claim | at | threshold | measured [95 %] | verdict |" and len(table) == 6
    assert "| ≤ -0.95 | -1 [-1, -1] | holds |" in table[2]
    assert cli(["claims", "runs/one", "runs/two", "one.py"]) == 1, "the file of two is not named"

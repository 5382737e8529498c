"""The report: what its tables say, and a real Chromium that opens it."""

import dataclasses
import itertools
import re
import shutil
import time
from pathlib import Path

import chromium
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from PIL import Image

import sae
from sae import AtMatched, Best, Digits, Sweep, UserError, grid, replace
from sae.cli import main as cli
from sae.core.files import read_checked, write_checked
from sae.core.model import on_examples
from sae.report import captions, data, dictionaries, draw, matched, paper, warnings, watch
from sae.report.build import build, collect, write_page
from sae.runner import run as runner
from sae.store import folder as folders
from sae.store import storage
from sae.study import definition_files as loading
from sae.study.figures import Curves, Dictionaries, Frontier, Heatmap, Profile, complete
from sae.study.sweep import as_sweep

ROOT = Path(__file__).parents[1]
AXES = {"d_sae": (32, 48), "penalty.l1": (0.0, 0.05, 0.2, 0.8), "seed": range(2)}


@pytest.fixture(scope="module")
def sweep(tiny) -> Sweep:
    base = replace(tiny, {"penalty.l1": 0.0})
    members = grid(base, AXES) + grid(base, {"d_sae": (32, 48), "penalty.l2": (0.1, 0.4), "seed": range(2)})
    answer = AtMatched(arms={"L1": "penalty.l1", "L2": "penalty.l2"}, at=(0.3,), metrics=("eval/l0",))
    return Sweep(name="small", members=members, answer=answer)


@pytest.fixture(scope="module")
def results(sweep, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "small"
    command = ["sae", "run", "small.py", "--seed", "a b"]
    return runner.run(sweep, out=out, wandb="off", question="Is <b>L1</b> best?", command=command)


@pytest.fixture(scope="module")
def page(results):
    cell = {"seeds": 2, "reason": ""}
    claim = {"text": "L1 wins", "source": "Us 2026", "verdict": "undecided", "later": None, "clauses": [
        cell | {"text": "l0 below 9", "measured": 8.0, "low": 7.5, "high": 8.5, "threshold": "≤ 9", "verdict": "holds"},
        cell | dict(text="no L2", measured=None, low=None, high=None, threshold="≤ 1", verdict="undecided"),
    ]}  # fmt: skip
    write_checked(results.folder / "claims.json", {"claims": [claim]})
    return build([results], sweep=None)


def test_statements_say_what_is_reached_and_what_is_not():
    rows = [
        {
            "d_sae": 64,
            "penalty.l1": l1,
            "penalty.l2": 0.0,
            "seed": seed,
            "eval/l0": l0,
            "eval/fvu": fvu * (1 + seed / 10),
        }
        for l1, l0, fvu in ((0.1, 40.0, 0.1), (0.2, 10.0, 0.2), (0.4, 5.0, 0.4))
        for seed in range(3)
    ]
    rows += [row | {"penalty.l1": 0.0, "penalty.l2": row["penalty.l1"], "eval/l0": row["eval/l0"] + 31} for row in rows]
    figure = AtMatched(
        arms={"L1": "penalty.l1", "L2": "penalty.l2"}, matched="eval/l0", at=(10, 36, 100), metrics=("eval/fvu",)
    )
    said = matched.statements(figure.compare(pd.DataFrame(rows)), figure)
    assert said[10] == [
        "At l0 = 10, d_sae 64: L1 reaches fvu 0.22 [0.2, 0.24]; L2 cannot reach it (its least l0 is 36)."
    ]
    assert "L2 reaches fvu 0.44 [0.4, 0.48]" in said[36][0]
    many = dataclasses.replace(
        figure, at=(10,), arms={"a": "penalty.l1", "b": "penalty.l2", "c": "penalty.l1", "d": "penalty.l2"}
    )
    table = figure.compare(pd.DataFrame(rows)).query("value == 10")
    table = pd.concat([table, table.assign(arm=table["arm"] + " again", mean=table["mean"] / 2)])
    assert matched.statements(table, many)[10] == [
        "At l0 = 10, d_sae 64: fvu from its least: L1 again 0.11 [0.2, 0.24], L1 0.22 [0.2, 0.24]; "
        "L2 cannot reach it (its least l0 is 36); L2 again cannot reach it (its least l0 is 36)."
    ]
    assert "L1 does not go as far (its largest l0 is 40)" in said[100][0]
    assert dataclasses.replace(figure, at=()).values(pd.DataFrame(rows)) == (40,)


def test_warnings_are_what_the_tables_support_and_no_others():
    l1 = [0.01, 0.1, 1.0, 10.0]
    fine = pd.DataFrame({
        "member": range(4), "status": "finished", "d_sae": 100, "penalty.l1": l1, "seed": 0,
        "eval/fvu": [0.01, 0.1, 0.3, 0.8], "eval/l0": [60.0, 30.0, 10.0, 3.0], "eval/dead_fraction": 0.0,
    })  # fmt: skip
    steps = np.arange(1, 41) * 10
    flat = pd.DataFrame([{"member": m, "step": s, "train/fvu": 0.1 + 1 / s**2} for m in range(4) for s in steps])
    warn = lambda members=fine, history=flat: warnings.warnings(members, history, ["penalty.l1"], ["d_sae"])
    assert warn() == []

    bad = fine.assign(status=["finished"] * 3 + ["diverged"])
    assert re.match("Member 3 diverged", warn(bad)[0])
    assert re.match("L0 collapsed in member 3", warn(fine.assign(**{"eval/l0": [60, 30, 10, 0.2]}))[0])
    assert "are dead in members 2-3" in warn(fine.assign(**{"eval/dead_fraction": [0, 0.1, 0.6, 0.7]}))[0]
    assert "sparse end" in warn(fine.assign(**{"eval/l0": [90, 60, 50, 40], "eval/fvu": [0.01, 0.1, 0.2, 0.3]}))[0]
    assert "dense end" in warn(fine.assign(**{"eval/fvu": [0.1, 0.2, 0.3, 0.8]}))[0]
    asked = fine.assign(**{"activation.k": [60, 30, 10, 3], "eval/fvu": [0.1, 0.2, 0.3, 0.8]})
    assert warnings.warnings(asked, flat, ["activation.k"], ["d_sae"]) == [], "who asks for k = 60 wants no k = 100"
    four = pd.concat([fine.assign(d_sae=width, **{"eval/fvu": [0.1, 0.2, 0.3, 0.8]}) for width in (100, 200, 300, 400)])
    four = four.assign(member=range(16)).reset_index(drop=True)
    (said,) = [one for one in warn(four) if "dense end" in one]
    assert "d_sae 300 (FVU 0.1 at penalty.l1 0.01); and 1 more." in said and "d_sae 400" not in said
    assert "not monotone" in warn(fine.assign(**{"eval/fvu": [0.01, 0.3, 0.2, 0.8]}))[0]
    rising = flat.assign(**{"train/fvu": np.where(flat["member"] == 1, 0.1 + flat["step"] / 400, flat["train/fvu"])})
    assert re.match("Training FVU of member 1 ends above 1.5 times its least: the learning rate", warn(fine, rising)[0])
    held = fine.assign(control=["as-written", "target-l0", "as-written", "as-written"])
    climbing = rising.assign(**{"train/fvu": rising["train/fvu"].clip(upper=0.6)})  # until step 200
    assert warn(held, climbing) == []
    assert re.match("Training FVU of member 1 ends above", warn(fine, climbing)[0])
    few = fine.assign(**{"eval/r2_median": [0.2, 0.4, 0.6, 0.1], "data.normalize": "centre"})
    assert warn(few) == [
        "A few dimensions carry most of the variance: FVU is below 0.3 in members 0-1, but in half of the input's "
        'dimensions less than 50% of the variance is explained; try normalize="standardize", which gives all '
        "dimensions one variance."
    ]
    assert "try normalize" not in warn(few.assign(**{"data.normalize": "standardize"}))[0]
    huge = warn(fine.assign(**{"eval/norm_max_ratio": 300.4}))
    assert len(huge) == 1 and "is 300 times as long as the median row (all 4 members)" in huge[0]
    assert "max_norm" in huge[0] and warn(fine.assign(**{"eval/norm_max_ratio": 20.0})) == []
    assert "look for huge values in the data" in warn(fine.assign(status="diverged"))[0]
    falling = flat.assign(**{"train/fvu": np.where(flat["member"] == 2, 1 / flat["step"], flat["train/fvu"])})
    assert "member 2 has not converged" in warn(fine, falling)[0]


def test_bands_are_bootstrap_intervals_of_means_over_seeds():
    members = pd.DataFrame({"penalty.l1": [1.0] * 4 + [2.0], "d_sae": 8, "x": 1.0, "y": [1.0, 2.0, 3.0, 4.0, 7.0]})
    (line,) = data.lines(members, ["penalty.l1"], ["d_sae"])
    first, second = line.means("x", "y").to_dict("records")
    assert first["y"] == 2.5 and 1 < first["low"] < 1.75 < 3.25 < first["high"] < 4
    assert second["y"] == 7 and np.isnan(second["low"])


def axes_over(members):
    """A table of 2 coefficients, 2 learning rates and 2 seeds, whose fvu is 1 or 3 by the learning rate."""
    points = itertools.product((0.1, 0.2), (1e-3, 1e-2), (0, 1))
    rows = [
        {"member": i, "status": "finished", "d_sae": 8, "penalty.l1": l1, "optimizer.lr": lr, "seed": seed,
         "eval/fvu": 1.0 if lr < 5e-3 else 3.0, "eval/l0": 5 - 10 * l1}
        for i, (l1, lr, seed) in enumerate(points)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_no_figure_averages_over_another_axis_than_seeds():
    members = axes_over(2)
    nothing = (pd.DataFrame(), {})
    shown = draw.draw(Frontier(along=("penalty.l1",)), members, *nothing)
    lines = {trace.name: list(trace.x) for trace in shown.data if "lines" in trace.mode and trace.fill is None}
    assert lines == {"optimizer.lr 0.001": [1, 1], "optimizer.lr 0.01": [3, 3]}
    assert "Lines are means over 2 seeds" in shown.layout.meta["caption"]
    heat = draw.draw(Heatmap(metric="eval/fvu", along=("penalty.l1",)), members, *nothing)
    assert [list(trace.text[0]) for trace in heat.data] == [["1", "1"], ["3", "3"]]
    assert [a.text for a in heat.layout.annotations] == ["optimizer.lr 0.001", "optimizer.lr 0.01"]
    profile = Profile(metric="eval/fvu", x="penalty.l1")
    assert complete(profile, members).group == ("d_sae", "optimizer.lr")
    assert complete(profile, members[members["optimizer.lr"] == 1e-3]) == profile
    one = draw.draw(profile, members[members["seed"] == 0], *nothing).layout.meta["caption"]
    assert one.startswith("Dots are members, of one seed") and "means" not in one
    compared = AtMatched(arms={"L1": "penalty.l1"}, matched="eval/l0", at=(3.5,), metrics=("eval/fvu",))
    found = compared.compare(members)
    assert found["mean"].to_list() == pytest.approx([1, 3]) and found["optimizer.lr"].to_list() == [1e-3, 1e-2]
    paper.paint(compared, members, *nothing, ())


def test_a_field_that_only_some_members_have_tells_rows_apart_too():
    members = axes_over(2).rename(columns={"optimizer.lr": "activation.width"})
    other = members.assign(activation="relu", **{"activation.width": np.nan})
    other = other[other["member"] % 4 < 2].assign(**{"eval/fvu": 7.0})
    members = pd.concat([members.assign(activation="own"), other], ignore_index=True)
    answer = AtMatched(arms=["penalty.l1"], matched="eval/l0", at=(3.5, 3.8), metrics=("eval/fvu",)).complete(members)
    assert answer.groups == ["d_sae", "activation.width"], "which tells the activations apart as well"
    np.testing.assert_allclose(answer.table(members), [[1, 1], [3, 3], [7, 7]])
    shown = matched.table(answer.compare(members), answer)
    assert shown.shape == (3, 2) and list(shown.iloc[2]) == ["7 [7, 7]"] * 2
    best = Best(metric="eval/fvu", along="penalty.l1").table(members)
    assert sorted(best["fvu"]) == [1, 3, 7]


def test_a_frontier_of_coefficients_that_are_never_0_is_refused_and_members_in_no_arm_are_counted():
    members = axes_over(2)
    with pytest.raises(UserError, match="got penalty.l1, optimizer.lr, but no member has one alone"):
        complete(Frontier(along=("penalty.l1", "optimizer.lr")), members)
    with pytest.raises(UserError, match="AtMatched: got penalty.l1, optimizer.lr, but no"):
        AtMatched(arms=("penalty.l1", "optimizer.lr")).table(members)
    some = members.assign(**{"penalty.l2": [0, 0, 0, 0, 0, 0, 0.1, 0.1]})
    caption = captions.caption(Frontier(along=("penalty.l1", "penalty.l2")), some)
    assert "2 members in no arm are not shown." in caption


@pytest.mark.parametrize("ends", [(0.21, 0.28), (4.1, 9), (1, 1), (0.3, 2), (1e-3, 5)])
def test_a_log_axis_has_several_ticks_and_one_beyond_each_end(ends):
    ticks = data.log_ticks(np.array(ends))
    assert ticks[0] < ends[0] and ticks[-1] > ends[1] and ticks == sorted(ticks)
    assert ends[0] == ends[1] or sum(ends[0] <= tick <= ends[1] for tick in ticks) >= 3


def test_a_line_without_numbers_is_drawn_as_nothing():
    """A measure may have no answer for some width."""
    members = pd.DataFrame({"penalty.l1": [0.1, 0.1, 1.0], "seed": [0, 1, 0], "analysis/x": [np.nan] * 3, "d_sae": 8})
    (line,) = data.lines(members, ["penalty.l1"], ["d_sae"])
    means = line.means("penalty.l1", "analysis/x")
    assert means.empty and {str(means[name].dtype) for name in ("x", "y", "low", "high")} == {"float64"}
    canvas = paper._lines([line], "penalty.l1", "analysis/x", log="x")
    assert len(canvas.axes) == 1


def test_the_firing_histogram_has_the_dead_at_the_left_and_counts_every_latent():
    rates = np.array([0, 0, 0.001, 0.5, 1.0])
    edges = data.firing_edges([rates])
    shares = data.firing_histogram(rates, edges)
    assert shares[0] == 0.4 and shares.sum() == pytest.approx(1) and shares[1] == 0.2 and shares[-1] == 0.2


def test_dictionaries_show_the_examples_that_activate_each_latent_most(results):
    members = results.members.assign(number=results.members["member"])
    row = dictionaries.choose(members, Dictionaries(along=("penalty.l1", "penalty.l2"), near=0.3))[1]
    shown = dictionaries.look(results, members, [row], Dictionaries(latents=32))[0]
    one, held_out = on_examples(results.sae(row)), Digits().load()
    x = held_out.examples(held_out.held_out)
    latents = np.asarray(one.encode(x))
    k = int(np.argmax(shown.rates))
    best = np.sort(latents[:, shown.latents[k]])[::-1][: dictionaries.TOP]
    np.testing.assert_allclose(shown.values[k], best, rtol=1e-5)
    np.testing.assert_allclose(latents[shown.strongest[k], shown.latents[k]], best, rtol=1e-5)
    np.testing.assert_allclose(shown.rates, np.mean(latents[:, shown.latents] != 0, axis=0), atol=1e-6)
    at = int(shown.strongest[k, 0])
    np.testing.assert_allclose(shown.inputs[at], held_out.held_out[at], atol=1e-6)
    np.testing.assert_allclose(shown.outputs[at], np.asarray(one(x[at])) + held_out.normalization.shift, atol=1e-4)
    assert shown.image_shape == (8, 8)


def test_every_figure_is_there_in_plotly_for_a_notebook(results):
    shown = [results.frontier(), results.heatmap(metric="eval/l0"), results.parallel(), results.matched(at=(5,))]
    shown += [results.curves([0, 3]), results.firing_rates([0]), results.profile(metric="eval/l0", x="penalty.l1")]
    for figure in shown:
        assert isinstance(figure, go.Figure) and figure.data and figure.layout.title.subtitle.text
    hovers = [text for trace in results.frontier().data if trace.text is not None for text in trace.text]
    assert len(hovers) == 24 + 4 and any("penalty.l1 0.2<br>" in text for text in hovers)  # no penalty ends both arms
    with pytest.raises(UserError, match="Frontier: .*'z'; fields: x, y, along, group"):
        results.frontier(z=1)
    with pytest.raises(UserError, match="no metric 'eval/lo'"):
        results.frontier(y="eval/lo")


def test_a_notebook_draws_any_definition_and_only_members_that_are_there(results):
    assert type(results) is type(sae.load(results.folder)) is sae.Results
    shown = results.draw(Curves(), [3, 0], metrics=("train/mse",))
    assert [trace.name for trace in shown.data] == ["member 3", "member 0"]
    assert shown.layout.yaxis.title.text == "mse"
    with pytest.raises(UserError, match="got member 99, allowed: .* 0-23"):
        results.curves([0, 99])
    for draws in (results.curves, results.firing_rates):
        with pytest.raises(UserError, match="got member 77, allowed: .* 0-23"):
            draws(77)
    with pytest.raises(UserError, match="got member 77, allowed: 0-23"):
        results.source(77)
    with pytest.raises(UserError, match="got Dictionaries, allowed: "):
        results.draw(Dictionaries)


def test_figures_for_a_paper_lie_beside_the_page(page, results):
    files = sorted(path.name for path in page.with_suffix("").iterdir())
    assert "frontier-l0-fvu.svg" in files and "heatmap-fvu.png" in files and "parallel.svg" in files
    assert sum(name.startswith("member-") and name.endswith(".png") for name in files) == 4
    assert len([f for f in files if f.endswith(".png")]) == len([f for f in files if f.endswith(".svg")])
    with Image.open(page.with_suffix("") / "frontier-l0-fvu.png") as image:
        assert image.width > 1000 and len(np.unique(np.asarray(image.convert("L")))) > 50  # something is drawn


def test_data_that_are_gone_are_told_in_the_page(results, tmp_path):
    shutil.copytree(results.folder, tmp_path / "gone", ignore=shutil.ignore_patterns("report*"))
    path = tmp_path / "gone" / "definition.json"
    definition = read_checked(path)
    for flat in definition["members"]:
        for name in [name for name in flat if name.startswith("data.")]:
            del flat[name]
        flat |= {"data": "arrays", "data.path": "/no/such.npy", "data.key": None, "data.held_out_path": None,
                 "data.held_out_fraction": 0.1, "data.normalize": "centre"}  # fmt: skip
    write_checked(path, definition)
    write_page(collect([sae.load(tmp_path / "gone")]), tmp_path / "gone.html")
    text = (tmp_path / "gone.html").read_text()
    assert "The dictionaries of gone are not shown: /no/such.npy" in text


def test_the_command_line_writes_a_report_and_a_failure_there_costs_nothing(tmp_path, capsys, monkeypatch):
    (tmp_path / "one.py").write_text(
        '"""How well?\n\n    sae run one.py\n"""\n'
        "from sae import Digits, Experiment\n"
        'experiment = Experiment(name="one", data=Digits(), d_sae=32, batch_size=64, n_steps=20)\n'
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/one").mkdir(parents=True)
    assert cli.main(["run", "one.py", "--wandb", "off", "--no-report"]) == 0
    assert not (tmp_path / "runs/one/report.html").exists()
    (tmp_path / "runs/one/report").write_text("a file where the folder of figures would be")
    assert cli.main(["run", "one.py", "--wandb", "off"]) == 0
    captured = capsys.readouterr()
    assert "no report: " in captured.err and "eval/fvu" in captured.out
    (tmp_path / "runs/one/report").unlink()
    assert cli.main(["report", "runs/one", "-o", "r.html"]) == 0
    text = (tmp_path / "r.html").read_text()
    assert "How well?" in text and "sae run one.py --wandb off --no-report" in text
    assert cli.main(["report", "runs/two"]) == 1 and "no definition.json" in capsys.readouterr().err
    assert cli.main(["report", "runs/one", "-o", "r.pdf"]) == 1 and "allowed: a .html file" in capsys.readouterr().err


def test_figures_that_a_finished_sweep_names_anew_are_shown_without_training(results, sweep, tmp_path, quiet):
    shutil.copytree(results.folder, tmp_path / "again")
    assert isinstance(results.figures[0], Frontier) and results.answer == sweep.answer
    named = dataclasses.replace(sweep, figures=[Curves(metrics=("train/l0",))])
    again = runner.run(named, out=tmp_path / "again", wandb="off", console=quiet)
    assert "finished already" in quiet.file.getvalue()
    assert sae.load(again.folder).figures == named.figures


def test_watch_reads_an_unfinished_run_and_changes_nothing(results, tmp_path, quiet, capsys):
    folder = tmp_path / "unfinished"
    shutil.copytree(results.folder, folder)
    state = folder / "cohorts/001/cohort.json"
    write_checked(state, read_checked(state) | {"status": "running", "step": 40, "checksums": {}})
    history = pd.read_parquet(folder / "cohorts/001/history.parquet")
    member = int(history["member"].max())
    history.loc[history["member"] == member, "train/dead_fraction"] = 0.9
    history.to_parquet(folder / "cohorts/001/history.parquet")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    watch.watch(sae.load(folder), quiet, once=True)
    text = quiet.file.getvalue()
    assert "small: running" in text and "40/60" in text and "60/60" in text and "● L1  ▲ L2" in text
    assert f"over 50% of the latents dead: members {member}" in text
    last = sae.load(folder).history.groupby("member")["train/l0"].last()
    low, middle, high = (
        f"{value:.3g}" for value in np.quantile(last[list(results.definition["cohorts"][0])], (0, 0.5, 1))
    )
    assert f"cohort 0: l0 {middle} ({low} to {high}), fvu " in text
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert cli.main(["watch", str(tmp_path), "--once"]) == 1 and "so no run" in capsys.readouterr().err


needs_chromium = pytest.mark.skipif(chromium.COMMAND is None, reason="no Chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    with chromium.Browser() as browser:
        yield browser


def draw_all(browser):
    """Scroll every figure into view and wait until all are drawn."""
    browser.js("document.querySelectorAll('.plot').forEach((node) => node.scrollIntoView({behavior: 'instant'}))")
    for i in range(browser.js("document.querySelectorAll('.plot').length")):
        browser.js(f"document.querySelectorAll('.plot')[{i}].scrollIntoView({{behavior: 'instant'}})")
        browser.wait(f"'drawn' in document.querySelectorAll('.plot')[{i}].dataset")


@needs_chromium
@pytest.mark.parametrize("width, dark", [(1920, False), (375, True)])
def test_the_page_draws_everything_alone_and_without_an_error(page, browser, tmp_path, width, dark):
    browser.open(page, width=width, dark=dark)
    draw_all(browser)
    assert browser.js("document.querySelectorAll('.plot .main-svg').length") >= 9
    assert browser.js("document.documentElement.scrollWidth") == width  # nothing sticks out
    ends = browser.js("[...document.querySelectorAll('nav a')].map((n) => n.getBoundingClientRect().right)")
    assert len(ends) == 5 and max(ends) <= width
    table = browser.js("(({left, right}) => [left, right])(document.querySelector('#table').getBoundingClientRect())")
    assert 0 <= table[0] and table[1] <= width and (width < 1900 or table[1] - table[0] > 1000)  # more than the text
    assert browser.js("document.querySelector('h1').textContent") == "Is <b>L1</b> best?"
    assert browser.js("document.querySelectorAll('#dictionaries .tile').length") == 2 * 32 + 2 * 48
    ink = browser.js("getComputedStyle(document.querySelector('.plot .xtick text')).fill")
    assert (min(map(int, re.findall(r"\d+", ink)[:3])) > 150) == dark
    browser.screenshot(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as image:
        assert image.width == width and (np.median(np.asarray(image.convert("L"))) < 60) == dark
    assert browser.errors == [] and browser.requests == []


@needs_chromium
def test_members_are_chosen_by_a_click_sorted_filtered_and_copied(page, results, browser):
    browser.open(page)
    draw_all(browser)
    begun = browser.js("chosen.length")
    browser.js("document.querySelector('#frontier-l0-fvu').scrollIntoView({behavior: 'instant', block: 'center'})")
    at = "const n = document.querySelector('#frontier-l0-fvu .points path').getBoundingClientRect();"
    at = f"(() => {{ {at} return [n.x + n.width / 2, n.y + n.height / 2] }})()"
    browser.js("new Promise((r) => setTimeout(r, 300))")
    browser.click(*browser.js(at))
    browser.wait("location.hash.startsWith('#member-')")
    member = int(browser.js("location.hash").rpartition("-")[2])
    assert browser.js("data.members.rows[chosen.at(-1)][0]") == member
    browser.wait(
        f"[...document.querySelectorAll('#curves .legendtext')].some((n) => n.textContent === 'member {member}')"
    )
    assert browser.js("document.querySelectorAll('#chosen tbody tr').length") == begun + 1

    browser.js("{ filter.value = 'd_sae=48 penalty.l1>=0.2'; filter.oninput() }")
    browser.js("[...document.querySelectorAll('#table th')].find((n) => n.textContent === 'fvu').click()")
    browser.js("[...document.querySelectorAll('#table th')].find((n) => n.textContent === 'fvu').click()")
    csv = browser.js("text(',')").splitlines()
    kept = results.members.query("d_sae == 48 and `penalty.l1` >= 0.2").sort_values("eval/fvu", ascending=False)
    assert [int(line.split(",")[0]) for line in csv[1:]] == kept["member"].tolist()
    assert csv[0].startswith("member,d_sae,penalty.l1,penalty.l2,seed,eval/mse,eval/fvu")
    assert browser.js("document.querySelectorAll('#table tbody tr').length") == len(kept)
    assert browser.js("document.querySelector('#count').textContent") == f"{len(kept)} of 24"
    # curves of a member are those of the history
    mine = results.history.query(f"member == {member}")
    ends = browser.js(f"past['train/fvu'].at(data.history.starts[{member} + 1] - 1)")
    assert ends == pytest.approx(mine["train/fvu"].iloc[-1], rel=1e-6)
    browser.js("document.querySelector('#dictionaries .tile:nth-child(3)').click()")
    assert browser.js("document.querySelectorAll('#dictionaries .tile[aria-pressed=true]').length") == 4
    assert browser.errors == [] and browser.requests == []


@needs_chromium
def test_runs_side_by_side_keep_their_names(page, results, browser, tmp_path):
    shutil.copytree(results.folder, tmp_path / "other", ignore=shutil.ignore_patterns("report*"))
    both = tmp_path / "both.html"
    write_page(collect([results, sae.load(tmp_path / "other")]), both)
    browser.open(both)
    draw_all(browser)
    assert browser.js("document.title") == "small and other"
    assert browser.js("data.members.rows.length") == 48 and browser.js("data.members.rows[0][0]") == "other/0"
    assert browser.js(
        "[...document.querySelectorAll('#frontier-l0-fvu .legendtext')].map((n) => n.textContent)[0]"
    ) == ("L1, d_sae 32, run other")
    assert browser.errors == [] and browser.requests == []


MARKUP = '<b>x</b><img src=x onerror="bad=1"></script><!--<script>bad=1</script> $x$ &amp;'


@pytest.fixture(scope="module")
def marked(results, tmp_path_factory):
    """(the page, its contents) of two runs whose folders hold markup in every text, and whose names hold some too."""
    folders_of_runs = [tmp_path_factory.mktemp("marked") / f"{name}<b>$y$<i>" for name in "ab"]
    for folder in folders_of_runs:
        shutil.copytree(results.folder, folder, ignore=shutil.ignore_patterns("report*"))
        path = folder / "definition.json"
        definition = read_checked(path)
        for number, flat in enumerate(definition["members"]):
            flat |= {"revival": MARKUP + str(number % 2)}
        for name in ("name", "question", "started", "git_commit", "host", "python"):
            definition[name] = MARKUP
        definition |= {"command": ["sae", MARKUP], "packages": {MARKUP: MARKUP}}
        definition["device"] |= {"kind": MARKUP, "platform": MARKUP}
        write_checked(path, definition)
        for cohort in sae.load(folder).cohorts:
            table = cohort.members()
            cohort.finish(table.assign(revival=[MARKUP + str(number % 2) for number in table["member"]]))
    page = folders_of_runs[0].parent / 'both"<b>.html'
    shown = collect([sae.load(folder) for folder in folders_of_runs])
    write_page(shown, page)
    return page, shown


@pytest.mark.filterwarnings("error")
def test_a_papers_figures_show_dollars_as_they_are(marked, tmp_path):
    _, shown = marked
    frontier = next(figure for figure, _ in shown.drawn if isinstance(figure, Frontier))
    canvas = paper.paint(frontier, shown.runs.sound, shown.history, shown.runs.rates, shown.chosen)
    paper.save(canvas, tmp_path / "frontier")
    assert "$y$" in (tmp_path / "frontier.svg").read_text()


@needs_chromium
def test_nothing_in_a_run_folder_becomes_markup(marked, browser):
    page, shown = marked
    browser.open(page)
    draw_all(browser)
    assert browser.js("typeof bad") == "undefined"
    assert browser.js("document.querySelectorAll('img[src=x]').length") == 0
    assert browser.js("document.querySelectorAll('script').length") == 3
    assert browser.js("document.querySelector('h1').textContent") == MARKUP
    facts = browser.js("document.querySelector('#run').textContent")
    assert facts.count(MARKUP) >= 2 * 7
    # plotly's own tags make spans of bold or italic text
    texts = "[...document.querySelectorAll('.plot text')]"
    assert browser.js(f"{texts}.some((n) => n.textContent.includes('run a<b>$y$<i>'))")
    assert browser.js(f"{texts}.flatMap((n) => [...n.querySelectorAll('[style*=bold], [style*=italic]')]).length") == 0
    member = shown.runs.members.at[shown.chosen[0], "member"]
    names = browser.js("[...document.querySelectorAll('#curves .legendtext')].map((n) => n.textContent)")
    assert names[0] == f"member {member}" and "<b>" in member
    assert browser.js("document.querySelector('figcaption a').getAttribute('href')").startswith("both%22%3Cb%3E/")
    assert browser.errors == [] and browser.requests == []


def large(results, folder, n=500, points=200):
    """The folder of a run with n members and `points` log points each, of made-up numbers."""
    base = sae.Experiment(name="large", data=Digits(), d_sae=32, n_steps=points)
    members = grid(base, {"penalty.l1": np.geomspace(1e-3, 10, n // 10), "seed": range(10)})
    files = storage.CohortFiles(folder, 0)
    folder.mkdir()
    folders.describe(folder, Sweep(name="large", members=members), [range(n)], [], "How large?", [])
    rng, strength = np.random.default_rng(0), np.array([member.penalty.l1 for member in members])
    noise = lambda: rng.uniform(0.9, 1.1, n)
    table = results.members[results.members["d_sae"] == 32].iloc[[0] * n].reset_index(drop=True)
    table = table.assign(member=range(n), cohort=0, seed=[member.seed for member in members])
    numbers = {"eval/fvu": strength**0.5 * noise(), "eval/l0": 5 / strength**0.3 * noise()}
    table = table.assign(**{"penalty.l1": strength}, **numbers)
    past = {"member": np.repeat(np.arange(n), points), "step": np.tile(np.arange(1, points + 1), n)}
    past |= {f"train/{name}": rng.random(n * points) for name in ("fvu", "l0", "dead_fraction", "mse", "cosine")}
    files.mark(status="running", step=points, members=list(range(n)), seconds=1.0)
    files.write_history(pd.DataFrame(past))
    saes = sae.engine.cohort.stack([results.sae(0)] * n)
    files.write_weights(range(n), saes, rng.random((n, 32)) ** 4, None)
    files.finish(table)
    return sae.load(folder)


@needs_chromium
def test_five_hundred_members_of_two_hundred_points_are_under_15_mb_and_open(results, browser, tmp_path):
    page = tmp_path / "large.html"
    write_page(collect([large(results, tmp_path / "large")]), page)
    assert page.stat().st_size < 15e6
    begun = time.monotonic()
    browser.open(page)
    browser.wait("document.querySelectorAll('#table tbody tr').length === 500")
    print(f"opened in {time.monotonic() - begun:.2f} s, {page.stat().st_size / 1e6:.1f} MB")
    draw_all(browser)
    assert browser.js("past['train/fvu'].length") == 500 * 200
    assert browser.errors == [] and browser.requests == []


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").rglob("*.py")), ids=lambda p: p.stem)
def test_every_figure_of_a_sweep_has_a_name_of_its_own(path):
    """The name is used for files and for places on the page; two profiles of one metric once shared one."""
    names = [captions.slug(figure) for figure in as_sweep(loading.load_file(path)).figures]
    assert len(set(names)) == len(names)

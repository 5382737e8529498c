"""Words for people: names that are cut where they are alike, tables that fit a terminal, lists and answers on it."""

import dataclasses
import io
import itertools

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import sae
from sae import Arrays, AtMatched, Best, ElasticNet, Experiment, Sweep, UserError, grid
from sae.cli import main as cli
from sae.core.text import abbreviated, nearest, table
from sae.report import printing
from sae.study.definition_files import checkout
from sae.study.sweep import member_names


def test_names_are_cut_where_they_are_alike_and_keep_where_they_differ():
    paths = [f"acts/gpt2-small_blocks.{layer}.hook_resid_post.npy" for layer in (4, 8, 10)]
    assert list(abbreviated([*paths, "a.npy"], 24).values()) == [
        "a.npy", "…blocks.4.hook…", "…blocks.8.hook…", "…blocks.10.hook…",
    ]  # fmt: skip
    assert abbreviated(paths, 60) == {path: path for path in paths}
    assert abbreviated(["/home/somebody/" + "x" * 60 + ".npy"], 20) == {
        "/home/somebody/" + "x" * 60 + ".npy": "/home/som…xxxxxx.npy"
    }
    two = [f"acts/layer{a}/gpt2-small/width_{b}k/activations.npy" for a in (4, 8) for b in (16, 64)]
    assert list(abbreviated(two, 26).values()) == ["…layer4/gpt…width_16k…", "…layer4/gpt…width_64k…",
                                                   "…layer8/gpt…width_16k…", "…layer8/gpt…width_64k…"]  # fmt: skip
    alike = ["a" * 40 + c + "b" * 40 for c in "xyz"]
    assert len(set(abbreviated(alike, 12).values())) == 3 and max(map(len, abbreviated(alike, 12).values())) == 12


@pytest.mark.parametrize("width", [30, 50, 80])
def test_a_table_fits_its_width_and_cuts_no_number(width):
    rows = [
        [f"acts/gpt2-small_blocks.{layer}.hook_resid_post.npy", str(d), "0.0123", "1,234.5", "5.6e-07", "0.999"]
        for layer in (4, 8)
        for d in (64, 128)
    ]
    text = table(["data.path", "d_sae", "fvu\nL1", "fvu\nTopK", "dead_fraction", "mmcs"], rows, width, names=2)
    assert max(map(len, text.splitlines())) <= width and "0.…" not in text
    for number in ("0.0123", "1,234.5", "5.6e-07", "0.999"):
        assert text.count(number) == 4
    for block in text.split("\n\n"):  # every block names its rows, and tells them apart
        names = [tuple(line.split()[:2]) for line in block.split("─\n")[1].splitlines()]
        assert len(set(names)) == 4


def test_numbers_that_name_rows_are_not_cut_either():
    rows = [["acts/a_rather_long_name_of_a_file.npy", "1.23456e-05", "0.0333333", "0.1"]] * 2
    text = table(["data.path", "optimizer.lr", "penalty.l1", "fvu"], rows, 36, names=3)
    assert text.count("1.23456e-05") == text.count("0.0333333") == text.count("0.1") == 2


def test_a_long_name_of_a_member_keeps_the_names_of_its_numbers():
    names = ["optimizer.lr", "penalty.l1", "penalty.l2", "penalty.warmup_steps", "optimizer.warmup_steps",
             "optimizer.decay_steps", "seed"]  # fmt: skip
    flats = [{name: (i + 1) / 1000 for name in names} for i in range(2)]
    one, other = member_names(flats, "x")
    assert len(one) <= 128 and one != other
    assert one.startswith("lr=0.001 l1=0.001 l2=0.001 penalty.warmup_steps=0.001 optimizer.warmup_steps=0.001")


def test_member_names_differ_and_are_as_short_as_wandb_wants_them():
    paths = [f"/data/somewhere/deep/acts/gpt2-small_blocks.{i}.hook_resid_post_of_all_tokens/x.npy" for i in range(3)]
    axes = {"data.path": paths, "penalty.a_rather_long_name_of_a_number": (0.1, 0.2), "seed": (0, 1)}
    axes["optimizer.another_rather_long_name"] = (1e-3, 1e-2)
    flats = [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]
    names = member_names(flats, "x")
    assert len(set(names)) == len(flats) and max(map(len, names)) <= 128
    assert all(f"blocks.{paths.index(flat['data.path'])}" in name for flat, name in zip(flats, names, strict=True))
    assert member_names([{"d_sae": 128, "penalty.l1": 0.1}, {"d_sae": 64, "penalty.l1": 0.1}], "x") == [
        "d_sae=128", "d_sae=64",
    ]  # fmt: skip
    close = member_names([{"lr": 0.1}, {"lr": 0.1 + 1e-9}], "x")
    assert close == ["lr=0.1", "lr=0.100000001"]


NAMES = ("acts/[old]/a.npy", "acts/x[/b].npy", "acts/$x$ `y` :smile: <i>z</i>.npy")


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """A run on files whose names are markup to rich, matplotlib, plotly and HTML, in a folder with such a name."""
    folder = tmp_path_factory.mktemp("[b]marked")
    x = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / name, x)
    base = Experiment(name="m", data=Arrays(path="x"), d_sae=8, penalty=ElasticNet(l1=0.1), batch_size=64, n_steps=5)
    paths = [str(folder / name) for name in NAMES]
    sweep = Sweep(name="marked", members=grid(base, {"data.path": paths, "penalty.l1": (0.1, 0.2)}))
    quiet = Console(file=io.StringIO(), width=200)
    results = sae.run(sweep, out=folder / ":smile: [/x]", wandb="off", console=quiet)
    return results


def printed(results, width: int = 300) -> str:
    console = Console(file=io.StringIO(), width=width)
    printing.print_answer(results, console)
    return console.file.getvalue()


def test_square_brackets_and_colons_are_printed_as_they_are(marked):
    text = printed(marked)
    assert all(short in text for short in ("[old]", "x[/b]", ":smile: [/x] ("))
    claim = {"text": "[b]x[/b] :smile:", "verdict": "holds", "clauses": [
        {"text": "[/i]", "measured": 5000.0, "low": 1.0, "high": 2.0, "threshold": "[<] 1", "verdict": "holds",
         "reason": "[u]", "seeds": 2},
    ]}  # fmt: skip
    console = Console(file=io.StringIO(), width=120)
    printing.print_claims({"[/run]": [claim]}, console)
    text = console.file.getvalue()
    assert all(word in text for word in ("[b]x[/b] :smile:", "[/i]", "[<] 1", "[u]", "[/run]", "5,000 [1, 2]"))


def test_a_report_of_such_names_is_written_without_a_warning(marked, tmp_path, recwarn):
    from sae.report.build import build

    page = build([marked], tmp_path / "page.html")
    assert [str(warning.message) for warning in recwarn if "tight" in str(warning.message).lower()
            or "layout" in str(warning.message)] == []  # fmt: skip
    assert "<i>z</i>" not in page.read_text()
    assert "$x$" in (tmp_path / "page" / "frontier-l0-fvu.svg").read_text()


def test_counts_are_whole_numbers(marked):
    one = marked.members.iloc[:1].assign(**{"eval/examples": np.float32(5000), "eval/dead": 3.0})

    class One:
        members, answer, folder = one.assign(**{"penalty.l1": 0.1}), None, marked.folder
        definition = {"name": "one"}

    lines = [line.split() for line in printed(One()).splitlines()]
    assert ["eval/examples", "5,000"] in lines and ["eval/dead", "3"] in lines


def test_a_run_of_which_all_diverged_says_what_to_try(marked):
    class Lost:
        members, answer, folder = marked.members.assign(status="diverged"), None, marked.folder
        definition = {"name": "lost"}

    assert "no answer: all 6 members diverged; try a lower optimizer.lr" in printed(Lost())


def test_the_answer_is_printed_again_by_report(marked, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["report", str(marked.folder), "-o", str(marked.folder / "again.html")]) == 0
    out = capsys.readouterr().out
    assert "marked (6 members, held out, one seed)" in out and "wrote " in out


@pytest.mark.parametrize("columns", ["40", "80"])
def test_list_prints_whole_file_names_in_any_width(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    assert cli.main(["list"]) == 0
    out = capsys.readouterr().out
    for path in [*checkout().glob("experiments/*.py"), *checkout().glob("sweeps/**/*.py")]:
        assert str(path.relative_to(checkout())) in out


def test_what_a_definition_does_not_name_is_no_seed_and_gets_rows():
    rows = [
        {"d_sae": 64, "penalty.l1": l1, "optimizer.lr": lr, "seed": seed, "data_seed": 0, "eval/fvu": fvu + seed / 100}
        for (l1, lr), fvu in {(0.03, 1e-4): 0.5, (0.1, 1e-4): 0.4, (0.03, 1e-2): 0.02, (0.1, 1e-2): 0.05}.items()
        for seed in (0, 2)
    ]
    members = pd.DataFrame(rows)
    best = Best(metric="eval/fvu", along="penalty.l1", smallest=True)
    found = best.table(members)
    assert list(found.index.names) == ["d_sae", "optimizer.lr"]
    assert found["fvu"].to_dict() == pytest.approx({(64, 1e-4): 0.41, (64, 1e-2): 0.03})
    assert list(found["penalty.l1"]) == [0.1, 0.03]
    # another seed is averaged over, and so is an axis that follows from the one that is searched
    tied = members[members["optimizer.lr"] == 1e-4].assign(
        data_seed=members["seed"], n_steps=members["penalty.l1"] * 100
    )
    assert list(best.table(tied).index.names) == ["d_sae"]
    alone = dataclasses.replace(best, along="d_sae").table(members)
    assert list(alone.index.names) == ["penalty.l1", "optimizer.lr"] and list(alone["d_sae"]) == [64] * 4


def test_arms_may_be_a_sequence_and_a_slip_is_one_line():
    assert AtMatched(arms=("penalty.l1", "penalty.l2")).arms == {"penalty.l1": "penalty.l1", "penalty.l2": "penalty.l2"}
    for wrong in ("penalty.l1", (), {"L1": 3}, (1, 2)):
        with pytest.raises(UserError, match=r"AtMatched: arms: got .*, allowed: names and coefficients") as error:
            AtMatched(arms=wrong)
        assert "\n" not in str(error.value)
    assert sae.Frontier(along="penalty.l1").along == ("penalty.l1",)


def test_where_nothing_is_allowed_the_line_says_so():
    assert nearest("a", []) == "allowed: none here"

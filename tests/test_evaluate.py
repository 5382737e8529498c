"""Autoencoders of any library as members: `sae evaluate` gives the numbers that our own members get."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import sae
from sae import interop
from sae.analysis import agreement
from sae.cli import main as cli
from sae.core.model import Sae
from sae.report.build import build
from sae.runner import evaluation
from sae.study import definition_files, quantities


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny):
    """A folder with a run of three members on digits, two of them exported, and its data and definition as files."""
    place = tmp_path_factory.mktemp("evaluate")
    members = [sae.replace(tiny, {"n_steps": 20, "activation": a}) for a in (sae.Relu(), sae.BatchTopK(k=5.0))]
    results = sae.run(sae.Sweep(name="tiny", members=[*members]), out=place / "tiny", wandb="off")
    for member in (0, 1):
        interop.save(results.sae(member), place / f"theirs{member}")
    data = results.data(0)
    np.save(place / "digits.npy", np.concatenate([data.train[:], data.held_out[:]]))
    (place / "digits.py").write_text(
        '"""Which digits?"""\nfrom sae import Digits, Experiment\n'
        'experiment = Experiment(name="digits", data=Digits(), d_sae=48, n_steps=20)\n'
    )
    return place


def command(capsys, *argv) -> tuple[int, str, str]:
    code = cli.main(["evaluate", *map(str, argv)])
    return code, *capsys.readouterr()


def test_a_foreign_autoencoder_gets_the_numbers_of_the_member_that_it_was(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    code, out, _ = command(capsys, "theirs0", "theirs1", "tiny", "--data", "digits.py", "-o", "out", "--no-report")
    assert code == 0 and "theirs1" in out and "tiny/1" in out and "held out, 397 examples" in out
    results, trained = sae.load("out"), sae.load("tiny").members
    table = results.members
    assert list(table["autoencoder"]) == ["theirs0", "theirs1", "tiny/0", "tiny/1"]
    assert list(table["format"]) == ["saelens", "saelens", "sparsity_lab", "sparsity_lab"]
    for name in (name for name in trained if name.startswith("eval/")):
        np.testing.assert_allclose(table[name][2:], trained[name], rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(table[name][:2], trained[name], rtol=1e-3, atol=1e-6, err_msg=name)
    x = results.data(0).held_out[:]
    np.testing.assert_allclose(results.sae(1)(x), sae.load("tiny").sae(1)(x), rtol=1e-4, atol=1e-4)
    assert list(table["activation"]) == ["relu", "jump-relu", "relu", "batch-top-k"]


def test_other_rows_and_another_normalization_are_the_same_for_both(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    how = ("--data", "digits.npy", "--normalize", "unit-mean-norm", "--held-out-fraction", "0.3", "-o", "rows")
    code, out, _ = command(capsys, "tiny", "theirs0", *how)
    assert code == 0 and "held out, 539 examples" in out and Path("rows/report.html").is_file()
    table = sae.load("rows").members
    for name in ("eval/fvu", "eval/l0", "eval/cosine", "eval/shrinkage"):
        assert table[name][0] == pytest.approx(table[name][2], rel=1e-4), name
    x = np.load("digits.npy")[-539:]
    x_hat = np.asarray(interop.load("theirs0")(x))
    assert table["eval/fvu"][2] == pytest.approx(((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum(), rel=1e-4)
    page = Path("rows/report.html").read_text()
    assert "evaluated on the same held-out examples" in page and "The dictionaries of rows" not in page


def test_a_run_whose_second_method_is_not_finished_has_a_report(place, tmp_path):
    """No finished member has activation.k then, which is one of the arms."""
    shutil.copytree(place / "tiny", tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "cohorts" / "001")
    assert "half is not finished: 1 of 2 cohorts" in build([sae.load(tmp_path / "half")]).read_text()


def test_a_transcoder_is_evaluated_on_inputs_and_targets(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    n = lambda *shape: rng.normal(size=shape).astype(np.float32)
    x, y = n(200, 6), 3 * n(200, 4) + 1
    one = Sae(n(12, 6), n(12), n(12, 4), n(4), sae.Relu(), False, W_skip=n(4, 6))
    interop.save(one, "theirs")
    np.save("x.npy", x)
    np.save("y.npy", y)
    code, _, err = command(capsys, "theirs", "--data", "x.npy", "y.npy", "-o", "out", "--no-report")
    assert code == 0, err
    row = sae.load("out").members.iloc[0]
    held_out, y_hat = y[-20:], np.asarray(one(x))[-20:]
    fvu = ((held_out - y_hat) ** 2).sum() / ((held_out - held_out.mean(0)) ** 2).sum()
    assert row["eval/fvu"] == pytest.approx(fvu, rel=1e-4) and row["task"] == "transcoder"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("theirs0",), "data: got none, allowed: a file of rows, or a definition file"),
        (("--data", "digits.npy"), "got no folder"),
        (("nowhere", "--data", "digits.npy"), "nowhere: no such folder"),
        (("full", "--data", "digits.npy"), "got no autoencoder, allowed: a folder with one of sae_weights.safetensors"),
        (
            ("theirs0", "--data", "narrow.npy"),
            "theirs0: got an autoencoder of width 64, allowed: one that fits rows of",
        ),
        (("theirs0", "--data", "digits.npy", "--normalize", "center"), "normalize: got 'center'; close names: centre"),
        (("theirs0", "--data", "digits.npy", "--held-out-fraction", "1"), "held-out-fraction: got 1"),
        (("theirs0", "--data", "digits.npy", "-o", "full"), "full holds no run"),
        (("broken", "--data", "digits.npy"), "broken: saelens: W_dec: got a number that is not finite"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(place, capsys, monkeypatch, argv, says):
    monkeypatch.chdir(place)
    np.save("narrow.npy", np.random.default_rng(0).normal(size=(50, 5)))
    Path("full").mkdir(exist_ok=True)
    Path("full/mine").write_text("mine")
    if not Path("broken").exists():
        one = sae.load("tiny").sae(0)
        interop.save(one, "broken")
        from safetensors.numpy import load_file, save_file

        tensors = load_file("broken/sae_weights.safetensors")
        save_file(tensors | {"W_dec": tensors["W_dec"] * np.inf}, "broken/sae_weights.safetensors")
    code, _, err = command(capsys, *argv, *(() if "-o" in argv else ("-o", "nothing")))
    assert code == 1 and says in err and len(err.splitlines()) == 1, err
    assert not Path("nothing").exists()


def test_a_folder_of_several_autoencoders_stands_for_all_of_them(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    assert cli.main(["export", "tiny", "several", "--member", "0", "1"]) == 0
    assert command(capsys, "several", "--data", "digits.py", "-o", "all")[0] == 0
    assert list(sae.load("all").members["autoencoder"]) == ["several/0", "several/1"]
    page = Path("all/report.html").read_text()
    assert "one seed" not in page and "No line joins them; lower and further left is better" in page
    points = sae.load("all").frontier(along=("autoencoder",), group=("autoencoder",)).data
    assert [trace.name for trace in points if trace.showlegend is not False] == [
        f"autoencoder several/{i}" for i in (0, 1)
    ]


def test_a_name_that_is_twice_there_is_numbered(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    assert command(capsys, "theirs0", "theirs0", "--data", "digits.py", "-o", "twice", "--no-report")[0] == 0
    assert list(sae.load("twice").members["autoencoder"]) == ["theirs0", "theirs0~2"]
    definition = json.loads(Path("twice/definition.json").read_text())
    assert definition["evaluated"] is True and str(place) not in json.dumps(definition["members"])


@pytest.fixture
def sweep(tiny):
    arm = quantities.Arm(along="penalty.l1")
    beside = quantities.Beside(arm=arm, metric="eval/fvu", other="theirs0")
    return sae.Sweep(
        name="compared",
        members=sae.grid(sae.replace(tiny, {"n_steps": 20}), {"penalty.l1": (0.03, 0.1, 0.3), "seed": (0, 1)}),
        figures=[
            sae.Frontier(along=("penalty.l1",)),
            sae.Profile(metric="eval/fvu", x="penalty.l1"),
            sae.AgreementMatrix(group=("penalty.l1",)),
        ],
        claims=[sae.Claim("at its L0 ours err about as much", sae.Within(beside, 0.8, 1.25))],
        others=("theirs0", "theirs1"),
    )


def test_others_of_a_sweep_are_in_its_figures_and_claims(place, sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(place)
    out = tmp_path / "compared"
    results = sae.run(sweep, out=out, wandb="off", report=True)
    assert list(results.others.index) == ["theirs0", "theirs1"] and len(results.members) == 6
    assert results.others["eval/fvu"]["theirs0"] == pytest.approx(results.members["eval/fvu"][2], rel=1e-3)
    (claim,) = results.claims
    assert claim["verdict"] == "holds" and "l0 of theirs0" in claim["clauses"][0]["text"]
    values = sweep.claims[0].clause.quantity(results)["d_sae 48, l0 of theirs0"]
    assert values[0] == pytest.approx(1, rel=1e-3), "it is the member of seed 0"
    points = {trace.name: (trace.x[0], trace.y[0]) for trace in results.frontier().data if len(trace.x) == 1}
    assert points["theirs1"] == pytest.approx(tuple(results.others.loc["theirs1", ["eval/fvu", "eval/l0"]]))
    levels = {trace.name: set(trace.y) for trace in results.profile().data if trace.line.dash == "dash"}
    assert levels == {name: {fvu} for name, fvu in results.others["eval/fvu"].items()}, "they have no place along x"
    assert (out / "report" / "profile-fvu-penalty-l1.svg").is_file()
    assert (out / "report" / "agreementmatrix-penalty-l1.svg").is_file()
    assert "Agreement of dictionaries, by penalty.l1" in (out / "report.html").read_text()
    cells = results.agreement_matrix().data[0]
    assert list(cells.x) == ["penalty.l1 0.03", "penalty.l1 0.1", "penalty.l1 0.3"]
    np.testing.assert_allclose(cells.z, agreement.matrix(results, ["penalty.l1"]), rtol=1e-6)
    assert (out / "report" / "frontier-l0-fvu.svg").is_file() and "theirs1" in (out / "report.html").read_text()

    stamp = lambda: (out / "others" / "definition.json").stat().st_mtime_ns
    before = stamp()
    sae.run(sweep, out=out, wandb="off")
    assert stamp() == before, "what is there is not evaluated again"
    (out / "others" / "cohorts" / "000" / "members.parquet").write_bytes(b"PAR1")
    assert len(sae.load(out).others) == 0 and len(sae.load(out).members) == 6, "damage costs the others alone"
    sae.run(sweep, out=out, wandb="off")
    assert len(sae.load(out).others) == 2
    before = stamp()
    sae.run(dataclasses.replace(sweep, others=("theirs0",)), out=out, wandb="off")
    assert stamp() > before and list(sae.load(out).others.index) == ["theirs0"]


def test_others_of_a_definition_file_are_looked_for_beside_it_first(place, sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "theirs0", tmp_path / "beside" / "theirs0")
    (tmp_path / "beside" / "sweep.py").write_text(
        '"""Which digits?"""\nfrom sae import Digits, Experiment, Sweep\n'
        'one = Experiment(name="digits", data=Digits(), d_sae=48, n_steps=20)\n'
        'sweep = Sweep(name="beside", members=[one], others=("theirs0", "theirs1"))\n'
    )
    loaded = definition_files.load_file(tmp_path / "beside" / "sweep.py")
    assert loaded.others == ("theirs0", "theirs1"), "figures and claims know them by their texts"
    with pytest.raises(sae.UserError, match="^theirs1: no such folder"):
        evaluation.check(loaded.others)
    shutil.copytree(place / "theirs1", tmp_path / "theirs1")  # from the working directory
    evaluation.check(loaded.others)
    results = sae.run(loaded, out=tmp_path / "run", wandb="off")
    assert list(results.others.index) == ["theirs0", "theirs1"]
    with pytest.raises(sae.UserError, match="^theirs0: no such folder"):
        evaluation.check(("theirs0",))


def test_others_that_cannot_be_read_are_said_before_training(place, sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    with pytest.raises(sae.UserError, match="nowhere: no such folder"):
        sae.run(dataclasses.replace(sweep, others=("nowhere",), claims=()), out=tmp_path / "new", wandb="off")
    assert not (tmp_path / "new").exists()
    with pytest.raises(sae.UserError, match="others: got '', allowed: paths, as texts"):
        sae.run(dataclasses.replace(sweep, others=("",)), out=tmp_path / "new", wandb="off")
    with pytest.raises(sae.UserError, match="others: got 'theirs0', allowed: a list of them"):
        dataclasses.replace(sweep, others="theirs0")


def test_a_claim_on_another_that_is_not_there_is_undecided(place, sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    results = sae.run(dataclasses.replace(sweep, others=()), out=tmp_path / "none", wandb="off")
    (claim,) = results.claims
    assert claim["verdict"] == "undecided" and "theirs0" in claim["clauses"][0]["reason"]

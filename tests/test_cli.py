"""The command line as a person meets it: overrides, plans, finished runs, and every kind of bad input."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import sae
from sae.cli import main as cli

ROOT = Path(__file__).parents[1]

TINY = '''"""Is a tiny run tiny?"""

from sae import Adam, Digits, ElasticNet, Experiment, TopK

experiment = Experiment(
    name="tiny", data=Digits(), d_sae=48, penalty=ElasticNet(l1=0.1), dead_after=2_000, batch_size=64, n_steps=60,
    optimizer=Adam(lr=3e-3, warmup_steps=5, decay_steps=20),
)
'''

SWEEP = (
    TINY
    + """
from sae import AtMatched, Sweep, grid

sweep = Sweep(
    name="tiny_sweep",
    members=grid(experiment, {"penalty.l1": (0.0, 0.1, 0.5), "seed": (0, 1)}),
    answer=AtMatched(arms={"L1": "penalty.l1"}, at=(0.2, 0.25), metrics=("eval/l0",)),
)
"""
)


@pytest.fixture
def tiny_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny.py").write_text(TINY)
    Path("sweep.py").write_text(SWEEP)
    return "tiny.py"


def sae_run(capsys, *argv) -> tuple[int, str, str]:
    try:
        code = cli.main(["run", *map(str, argv), "--no-report"])
    except SystemExit as stop:
        code = stop.code or 0
    out, err = capsys.readouterr()
    return code, out, err


def fails(capsys, *argv) -> str:
    """The one line with which a command fails, exit code 1."""
    code, out, err = sae_run(capsys, *argv, "--wandb", "off")
    lines = [line for line in err.splitlines() if line]
    assert code == 1 and len(lines) == 1 and lines[0].startswith("sae: "), (code, out, err)
    assert "Traceback" not in out + err
    return lines[0]


def test_a_run_answers_and_says_where_results_are(tiny_file, capsys):
    code, out, err = sae_run(capsys, tiny_file, "--wandb", "off", "--penalty.l1", "0.3", "--chunk-steps", "20")
    assert code == 0
    assert "eval/fvu" in out and "results: runs/tiny" in out
    results = sae.load("runs/tiny")
    assert results.finished and results.definition["question"] == "Is a tiny run tiny?"
    row = results.members.iloc[0]
    assert row["penalty.l1"] == 0.3 and row["status"] == "finished" and row["member"] == 0 and row["cohort"] == 0
    assert list(results.history["step"]) == [20, 40, 60]
    assert list(results.history["examples"]) == [20 * 64, 40 * 64, 60 * 64]
    one = results.sae(0)
    x = results.data(0).held_out  # raw rows
    assert one.encode(x).shape == (397, 48) and one(x).shape == x.shape
    l0 = float((one.encode(x) != 0).sum(1).mean())
    assert row["eval/l0"] == pytest.approx(l0, rel=1e-5)
    fvu = float(((x - one(x)) ** 2).sum() / ((x - x.mean(0)) ** 2).sum())
    assert row["eval/fvu"] == pytest.approx(fvu, rel=1e-5)
    assert row["eval/examples"] == 397


def test_definition_json_holds_everything_needed_to_run_it_again(tiny_file, capsys):
    sae_run(capsys, tiny_file, "--wandb", "off")
    definition = sae.load("runs/tiny").definition
    assert definition["members"][0]["optimizer.lr"] == 3e-3 and definition["members"][0]["data.n_held_out"] == 397
    assert re.fullmatch(r"\d+\.\d+.*", definition["packages"]["jax"]) and definition["device"]["platform"] == "cpu"
    assert definition["git_commit"] is None or len(definition["git_commit"].split("+")[0]) == 40


def test_a_finished_run_is_not_run_again_and_another_definition_is_refused(tiny_file, capsys):
    sae_run(capsys, tiny_file, "--wandb", "off")
    before = Path("runs/tiny/members.parquet").stat().st_mtime_ns
    code, _, err = sae_run(capsys, tiny_file, "--wandb", "off")
    assert code == 0 and "finished already" in err
    assert "penalty.l1 of member 0 is 0.1 in the folder and 0.3 in the sweep" in fails(
        capsys, tiny_file, "--penalty.l1", "0.3"
    )
    assert Path("runs/tiny/members.parquet").stat().st_mtime_ns == before
    code, _, err = sae_run(capsys, tiny_file, "--wandb", "off", "--penalty.l1", "0.3", "--fresh")
    assert code == 0 and "moved the older run aside" in err
    assert sae.load("runs/tiny").members["penalty.l1"][0] == 0.3
    assert sae.load("runs/tiny.old-1").members["penalty.l1"][0] == 0.1


def test_an_unfinished_run_is_run_to_its_end(tiny_file, capsys):
    sae_run(capsys, tiny_file, "--wandb", "off")
    Path("runs/tiny/cohorts/000/cohort.json").unlink()
    assert not sae.load("runs/tiny").finished
    assert sae_run(capsys, tiny_file, "--wandb", "off")[0] == 0
    assert sae.load("runs/tiny").finished


def test_a_sweep_prints_its_answer_and_an_overridden_axis_keeps_one_value(tiny_file, capsys):
    code, out, _ = sae_run(capsys, "sweep.py", "--wandb", "off", "--seed", "1")
    assert code == 0 and "--seed: 3 of 6 members are left" in out
    assert "l0 at matched fvu" in out
    assert list(sae.load("runs/tiny_sweep").members["seed"]) == [1, 1, 1]


def test_choices_and_switches_are_flags(tiny_file, capsys):
    flags = ["--activation", "top-k", "--activation.k", "5", "--constraint=free", "--no-apply-b-dec-to-input"]
    flags += ["--precision", "bfloat16"]
    code, _, _ = sae_run(capsys, tiny_file, "--wandb", "off", *flags, "--optimizer.clip", "1", "--penalty.weighted")
    assert code == 0
    row = sae.load("runs/tiny").members.iloc[0]
    assert (row["activation"], row["activation.k"], row["constraint"]) == ("top-k", 5, "free")
    assert row["precision"] == "bfloat16"
    assert not row["apply_b_dec_to_input"] and row["optimizer.clip"] == 1.0 and row["penalty.weighted"]
    assert row["eval/l0"] <= 5


@pytest.mark.parametrize("command", cli.COMMANDS.values(), ids=cli.COMMANDS)
def test_help_of_a_command_shows_its_options(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    needs_file = command.name in ("run", "agent-run", "bench")
    for argv in (["--help"], ["-h"], *([] if needs_file or command.name == "list" else [["there", "-h"]])):
        with pytest.raises(SystemExit) as stop:
            cli.main([command.name, *argv])
        out = capsys.readouterr().out
        assert stop.value.code == 0 and out.startswith(f"usage: sae {command.name} ") and "--" in out
    assert command.about in " ".join(out.replace("│", " ").split())
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("command", cli.COMMANDS.values(), ids=cli.COMMANDS)
def test_a_command_without_its_arguments_is_one_line(command, capsys):
    assert f"       sae {command.usage}\n" in cli.usage().replace("usage: ", "       ")
    if command.name not in ("bench", "list"):
        assert cli.main([command.name]) == 1
        err = capsys.readouterr().err
        assert err.startswith(f"sae: {command.name}: got no ") and err.endswith(f"allowed: sae {command.usage}\n"), err
    if command.name in ("watch", "sync", "dashboard", "sweep-config", "pull"):
        options = {"watch": "--once", "dashboard": "--dry-run", "pull": "--group=x"}
        assert cli.main([command.name, options.get(command.name, "--project=x")]) == 1
        what = command.usage.split()[1]
        assert capsys.readouterr().err == f"sae: {command.name}: got no {what}, allowed: sae {command.usage}\n"
    assert cli.main([command.name, *["there"] * (command.name not in ("bench", "list")), "--jsn"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("sae: ") and err.count("\n") == 1, err


def test_options_in_python_are_the_flags_of_the_command_line(tiny, tmp_path, quiet):
    from sae.runner.options import RunOptions

    options = RunOptions(out=tmp_path / "run", wandb="off")
    results = sae.run(tiny, options, chunk_steps=30, console=quiet)
    assert results.folder == tmp_path / "run" and list(results.history["step"]) == [30, 60]
    assert not (tmp_path / "run/report.html").exists(), "a notebook asks for its report"
    for wrong, message in [
        ({"chunk_step": 30}, "run has no option 'chunk_step'; close names: chunk_steps"),
        ({"chunk_steps": 0}, "chunk_steps: got 0, allowed: at least 1"),
        ({"fresh": True, "only": (0,)}, "fresh: got it with a part of the sweep"),
    ]:
        with pytest.raises(sae.UserError, match=message):
            sae.run(tiny, options, console=quiet, **wrong)


def test_help_shows_every_field_with_its_docstring_and_default(tiny_file, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = sae_run(capsys, tiny_file, "--help")
    assert code == 0
    from sae.core.definitions import flatten
    from sae.experiment import method
    from sae.study.definition_files import load_file

    experiment = load_file(Path(tiny_file))
    for name in set(flatten(experiment)) - {"data", *method(experiment)}:
        assert "--" + name.replace("_", "-") in out, name
    assert "Coefficient on the sum of absolute latents." in out and "(default: 0.1)" in out
    assert "--dry-run" in out and "Is a tiny run tiny?" in out


def test_dry_run_prints_the_plan_and_writes_nothing(tiny_file, capsys):
    code, out, _ = sae_run(capsys, "sweep.py", "--dry-run")
    assert code == 0 and not Path("runs").exists()
    assert "6 members in 1 compiled program\n" in out and "differ in: penalty.l1, seed" in out
    assert f"{6 * (2 * 64 * 48 + 48 + 64):,}" in out, "parameters"
    gflop = 10 * 64 * 48 * 64 * 60 * 6 / 1e9
    assert f" {gflop:.3g} " in out and "MiB" in out


def test_list_names_definitions_sources_and_choices(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["list"]) == 0
    out = capsys.readouterr().out
    for name in ("sweeps/width_l1_l2.py", "experiments/mnist_l1.py", "top-k", "superposition", "resample", "unit-norm"):
        assert name in out


BAD_FLAGS = [
    (["--penalty.l3", "1"], "has no field or option '--penalty.l3'; close names: --penalty.l2, --penalty.l1"),
    (["--n-step", "5"], "close names: --n-steps"),
    (["--n-steps", "many"], "--n-steps: invalid literal for int"),
    (["--penalty.l1", "big"], "--penalty.l1: could not convert string to float"),
    (["--d-sae", "-3"], "d_sae: got -3, allowed: at least 1"),
    (["--optimizer.b1", "1.5"], "optimizer.b1: got 1.5, allowed: at most 0.999999"),
    (["--batch-size", "5000"], "batch_size: got 5000, allowed: at most the 1400 training examples"),
    (["--activation", "top"], "--activation: got 'top'; close names: top-k"),
    (["--penalty", "my-own"], "or a class of your own that the definition file defines or imports"),
    (["--activation.k", "4"], "'--activation.k'; abs-top-k and batch-top-k and"),
    (["--penalty.l1", "nan"], "penalty.l1: got nan, allowed: finite 32-bit numbers"),
    (["--activation", "top-k", "--activation.k", "49"], "activation.k: got 49, allowed: at most d_sae = 48"),
    (["--b-dec-init", "median"], "invalid choice 'median' for argument '--b-dec-init'"),
    (["--precision", "bfloat"], "invalid choice 'bfloat' for argument '--precision'"),
    (["--lanes", "0"], "lanes: got 0, allowed: at least 1"),
    (["--penalty.l1"], "penalty.l1"),
    (["extra"], "extra"),
]


@pytest.mark.parametrize(("flags", "message"), BAD_FLAGS, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_bad_flags_are_one_line(tiny_file, capsys, flags, message):
    assert message in fails(capsys, tiny_file, *flags)
    assert not Path("runs").exists()


BAD_FILES = [
    ("x = 1", "defines neither `experiment` nor `sweep`"),
    ("experiment = 3", "got a int, allowed: an Experiment or a Sweep"),
    ("from sae import Experiment\nexperiment = Experiment(", "line 2: SyntaxError"),
    ("import sae\n\nexperiment = sae.replace(3, {'a': 1})", "line 3"),
    ("1 / 0", "line 1: ZeroDivisionError"),
    (TINY.replace("d_sae=48", "d_sea=48"), "unexpected keyword argument 'd_sea'; close names: d_sae"),
    (TINY.replace("d_sae=48", "d_sae='48'"), "d_sae: got '48', allowed: int"),
    (TINY.replace("d_sae=48", "d_sae=True"), "d_sae: got True, allowed: int"),
    (TINY.replace("ElasticNet(l1=0.1)", "0.1"), "penalty: got 0.1, allowed: ElasticNet"),
    (TINY.replace("name=\"tiny\"", "name=\"tiny\", b_dec_init='middle'"), "b_dec_init: got 'middle', allowed: zero"),
    (SWEEP.replace('"penalty.l1": (', '"penalty.l3": ('), "no field 'penalty.l3'; close names: penalty.l2"),
    (SWEEP.replace("(0, 1)", "(0, 0)"), "members 0 and 1 are the same experiment"),
    (SWEEP.replace("members=grid", "members=()and grid"), "has no members"),
    (SWEEP.replace('name="tiny_sweep"', "name='../up'"), "name: got '../up', allowed: up to 101 letters"),
    (SWEEP.replace('name="tiny_sweep"', "name=3"), "name: got 3, allowed: up to 101 letters"),
    (SWEEP.replace('("eval/l0",)', '("eval/lo",)'), "no metric 'eval/lo'; close names: eval/l1, eval/l0"),
    (TINY.replace("dead_after=2_000", "dead_after=3_000_000_000"), "dead_after: got 3000000000, allowed: 32-bit"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BAD_FILES, ids=[m for _, m in BAD_FILES])
def test_bad_files_are_one_line(tmp_path, monkeypatch, capsys, text, message):
    monkeypatch.chdir(tmp_path)
    Path("bad.py").write_text(text)
    assert message in fails(capsys, "bad.py")


def test_a_missing_file_names_its_neighbours(tiny_file, capsys):
    assert "no such file; close names: tiny.py" in fails(capsys, "tiny.pi")


BAD_ARRAYS = [
    ("nan", np.where(np.arange(200).reshape(50, 4) == 7, np.nan, 1.0), "nan at row 1, column 3"),
    ("constant", np.ones((50, 4)), "no variance"),
    ("one dimension", np.ones(50), "shape"),
    ("small", np.random.default_rng(0).normal(size=(20, 4)), "batch_size: got 64"),
]


@pytest.mark.parametrize(("array", "message"), [case[1:] for case in BAD_ARRAYS], ids=[case[0] for case in BAD_ARRAYS])
def test_bad_data_is_one_line(tiny_file, capsys, array, message):
    np.save("x.npy", array)
    Path("arrays.py").write_text(TINY.replace("Digits()", "Arrays(path='x.npy')").replace("Digits,", "Arrays,"))
    assert message in fails(capsys, "arrays.py")


def test_an_unwritable_folder_is_one_line(tiny_file, capsys):
    Path("file").write_text("")
    assert "file" in fails(capsys, tiny_file, "--out", "file/inside")
    assert "not empty and holds no run" in fails(capsys, tiny_file, "--out", ".")
    assert "proc" in fails(capsys, tiny_file, "--out", "/proc/nothing/here")


def test_a_disk_that_fills_while_writing_is_one_line_and_costs_no_older_result(tiny_file):
    """A real limit on the size of files, in a process of its own: the weights do not fit, the definition does."""
    python = "import sys; from sae.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", python, "run", "sweep.py", "--wandb", "off", "--out", "full", "--no-report"]
    limited = ["sh", "-c", 'ulimit -f 117; exec "$@"', "sh", *command]  # blocks of 512 bytes
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    reading = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e6"}  # compiled programs would meet the limit first
    run = subprocess.run(limited, capture_output=True, text=True, env=env | reading)
    assert run.returncode == 1, run.stderr
    errors = [line for line in run.stderr.splitlines() if line.startswith("sae: ")]
    assert len(errors) == 1 and "cohorts/000/weights.safetensors" in errors[0] and "Traceback" not in run.stderr, (
        run.stderr
    )
    assert not list(Path("full").rglob("*.tmp")) and not Path("full/members.parquet").exists()
    assert sae.load("full").definition["name"] == "tiny_sweep"
    assert subprocess.run(command, capture_output=True, env=env).returncode == 0, "with room again it runs to its end"
    assert sae.load("full").finished


def test_a_crash_while_writing_leaves_the_older_file(tmp_path):
    from sae.core.files import write_atomically

    path = tmp_path / "table"
    write_atomically(path, lambda file: file.write(b"old"))

    def half(file):
        file.write(b"ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, half)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["table"]


def test_the_console_command_and_its_usage():
    run = lambda *argv: subprocess.run(
        [sys.executable, "-m", "sae.cli", *argv], capture_output=True, text=True, cwd=ROOT
    )
    bare = run()
    assert bare.returncode == 1 and "usage: sae run FILE" in bare.stdout
    bad = run("rum")
    assert bad.returncode == 1 and bad.stderr == "sae: unknown command 'rum'; close names: run\n"


def test_unfinished_folders_and_missing_members_are_one_line(tiny_file, capsys):
    with pytest.raises(sae.UserError, match="no definition.json"):
        sae.load("nowhere")
    sae_run(capsys, tiny_file, "--wandb", "off")
    with pytest.raises(sae.UserError, match="got member 7, allowed: those that are finished: 0$"):
        sae.load("runs/tiny").sae(7)


def test_every_member_of_a_sweep_can_be_loaded_and_is_itself(tiny_file, capsys):
    sae_run(capsys, "sweep.py", "--wandb", "off")
    results = sae.load("runs/tiny_sweep")
    data = sae.Digits().load()
    x = data.held_out
    for member, l0 in zip(results.members.member, results.members["eval/l0"], strict=True):
        assert float((results.sae(member).encode(x) != 0).sum(1).mean()) == pytest.approx(l0, rel=1e-5)
    assert results.members["eval/l0"].nunique() == 6
    assert isinstance(results.history, pd.DataFrame) and results.history.groupby("member").size().nunique() == 1


OWN = '''"""A source, a penalty and an activation of one's own, in one file."""
import jax.numpy as jnp
import numpy as np
from sae import Activation, Digits, Experiment, Penalty, Source, Sweep, TopK, definition, grid, leaf, rows, static

@definition
class Noise(Source):
    """Gaussian rows."""
    scale: float = static(1.0)
    """Standard deviation."""
    def load(self):
        x = self.scale * np.random.default_rng(0).normal(size=(300, 8))
        return rows(x[:200], x[200:], "none", "Noise")

@definition
class Log(Penalty):
    """log(1 + f)."""
    weight: float = leaf(0.1)
    def cost(self, out):
        return self.weight * jnp.sum(jnp.log1p(out.latents)) / out.batch

@definition
class Square(Activation):
    def __call__(self, sae, pre_acts):
        return jnp.maximum(pre_acts, 0) ** 2

one = Experiment(name="own", data=Noise(), d_sae=16, n_steps=20, batch_size=32, penalty=Log(), activation=Square())
two = Experiment(name="own", data=Digits(), d_sae=16, n_steps=20, batch_size=32, activation=TopK(k=4))
sweep = Sweep(name="own", members=[*grid(one, {"penalty.weight": (0.1, 1.0)}), two])
'''


def test_choices_of_ones_own_need_no_registration(tiny_file, capsys):
    Path("own.py").write_text(OWN)
    for flags in (["--dry-run"], ["--help"], ["--wandb", "off"]):
        code, out, err = sae_run(capsys, "own.py", *flags)
        assert code == 0, (out, err)
    members = sae.load("runs/own").members
    assert list(members["data"]) == ["noise", "noise", "digits"] and list(members["status"]) == ["finished"] * 3
    # fields that some members lack: whole numbers stay whole, and what is missing is missing
    assert members["activation.k"].dtype == "Int64" and members["activation.k"].isna().tolist() == [True, True, False]
    assert members["penalty.weight"].dropna().tolist() == [0.1, 1.0]
    Path("bad.py").write_text(OWN.replace("return rows(x[:200]", "return x; (x[:200]"))
    assert "load() gave a ndarray, allowed: what sae.rows(...) gives" in fails(capsys, "bad.py", "--out", "bad")
    Path("worse.py").write_text(OWN.replace("return rows(x[:200]", "1 / 0; (x[:200]"))
    assert "noise: load() raised ZeroDivisionError" in fails(capsys, "worse.py", "--out", "worse")
    Path("forgot.py").write_text(OWN.replace("data=Noise()", "data=Noise"))
    assert "data: got <class" in fails(capsys, "forgot.py", "--out", "forgot")


def test_a_sweep_imports_its_own_checkout(tiny_file, capsys, tmp_path, monkeypatch):
    """Not the one that we stand in: two checkouts with different base experiments, run from the other."""
    for name, width in (("a", 10), ("b", 20)):
        (tmp_path / name / "experiments").mkdir(parents=True)
        (tmp_path / name / "sweeps" / "papers").mkdir(parents=True)
        (tmp_path / name / "experiments" / "base.py").write_text(TINY.replace("d_sae=48", f"d_sae={width}"))
        (tmp_path / name / "sweeps" / "s.py").write_text("from experiments.base import experiment\n")
        (tmp_path / name / "sweeps" / "papers" / "p.py").write_text("from sweeps.s import experiment\n")
    monkeypatch.chdir(tmp_path / "a")
    for name, width in (("b", 20), ("a", 10), ("b", 20)):
        for file in ("s.py", "papers/p.py"):
            code, out, _ = sae_run(capsys, tmp_path / name / "sweeps" / file, "--dry-run")
            assert code == 0 and f" {width} " in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"penalty.l1": (0.0, 0.1, 0.5)|"penalty.l1": 0.1', "penalty.l1: got 0.1, allowed: several values"),
        ('"penalty.l1": (0.0, 0.1, 0.5)|"b_dec_init": "mean"', "b_dec_init: got 'mean', allowed: several values"),
        ("members=grid|members=experiment or grid", "members: got one Experiment, allowed: a list"),
    ],
)
def test_slips_of_python_are_explained(tiny_file, capsys, text, message):
    Path("bad.py").write_text(SWEEP.replace(*text.split("|")))
    assert message in fails(capsys, "bad.py")


def test_more_slips_on_the_command_line(tiny_file, capsys, tmp_path):
    assert "is a folder; give one of its files: sweep.py, tiny.py" in fails(capsys, ".")
    assert "close names: --optimizer.lr" in fails(capsys, tiny_file, "--lr", "0.1")
    assert sae_run(capsys, tiny_file, "--dry-run", "--activation", "TopK", "--penalty", "elastic-net")[0] == 0
    code, out, _ = sae_run(capsys, "sweep.py", "--dry-run", "--name", "other")
    assert code == 0 and out.startswith("other: 6 members")


def test_bench_measures_a_definition(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sae.engine.bench.ROUNDS", 1)
    monkeypatch.setenv("COLUMNS", "80")
    path = tmp_path / "x.py"
    path.write_text(
        "from sae import *\nbase = Experiment(name='x', data=Digits(), d_sae=64, n_steps=40, batch_size=64)\n"
        "sweep = Sweep(name='x', members=grid(base, {'d_sae': (32, 64), 'seed': (0, 1, 2)}))\n"
    )
    assert cli.main(["bench", str(path), "--json", "--lanes", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [(c["members"], c["d_in"], c["d_sae"], c["lanes"]) for c in report["cohorts"]] == [
        (3, 64, 32, 1),
        (3, 64, 64, 1),
    ]
    for c in report["cohorts"]:
        flop = 10 * c["d_in"] * c["d_sae"] * c["batch_size"]
        assert c["gflops"] == pytest.approx(flop * c["member_steps_per_second"] / 1e9)
        assert c["member_steps_per_second"] == pytest.approx(3 / c["step_seconds"])
        assert c["fraction"] == pytest.approx(c["gflops"] / c["bare_gflops"]) and c["compile_seconds"] > 0
    assert cli.main(["bench", str(path), "--precision", "bfloat16", "--d-sae", "32"]) == 0
    out = capsys.readouterr().out
    assert "bfloat16" in out and "…" not in out
    assert cli.main(["bench", "--jsn"]) == 1 and "close names: --json" in capsys.readouterr().err


def test_a_file_that_is_not_there_has_each_close_name_once_and_none_from_deeper(tmp_path, monkeypatch, capsys):
    for path in ("sweeps/papers/one.py", "deep/er/onf.py", "one.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "sweeps/papers/onne.py"]) == 1
    assert capsys.readouterr().err.count("sweeps/papers/one.py") == 1
    assert cli.main(["run", "onf.py"]) == 1
    assert "deep" not in capsys.readouterr().err

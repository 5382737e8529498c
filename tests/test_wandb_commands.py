"""sae sync, sae pull and sae dashboard against a W&B server on the loopback interface, with wandb's own clients."""

import copy
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from wandb_server import API_KEY, ReceivedRun, WandbServer, in_process

import sae
import sae.cli.main
from sae import Heatmap, Sweep, grid
from sae.core.types import UserError
from sae.report.images import dictionary_grid
from sae.store import folder
from sae.wandb import dashboard as wandb_dashboard
from sae.wandb import pull as wandb_pull
from sae.wandb import server as wandb_api
from sae.wandb import sink
from sae.wandb import sync as wandb_sync

ROOT = Path(__file__).parents[1]
GROUP = "some_sweep"
QUESTION = """
from sae import Digits, ElasticNet, Experiment, Sweep, grid

base = Experiment(name="q", data=Digits(), d_sae=32, penalty=ElasticNet(l1=0.1), batch_size=64, n_steps=2_000)
sweep = Sweep(name="q", members=grid(base, {"d_sae": (32, 48), "seed": (0, 1)}))
"""

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb_workspaces")


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """Seven members in two cohorts, one of them diverged, recorded offline with pictures and weights."""
    members = [
        *grid(tiny, {"penalty.l1": (0.05, 0.5), "seed": (0, 1)}),
        sae.replace(tiny, {"optimizer.lr": 1e30, "penalty.l1": 0.05}),
        *grid(sae.replace(tiny, {"d_sae": 32}), {"penalty.l1": (0.05, 0.5)}),
    ]
    out = tmp_path_factory.mktemp("commands") / "run"
    options = {"wandb_images": 2, "wandb_artifacts": True, "wandb_project": "lab", "chunk_steps": 15}
    return sae.run(Sweep(name=GROUP, members=members), out=out, wandb="offline", question="Why?", **options)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One server for all tests, as wandb keeps one connection in a process; each test has a project of its own."""
    with in_process(WandbServer(lag=1.0), tmp_path_factory.mktemp("home")) as server:
        yield server


@pytest.fixture
def run(trained, server, tmp_path, monkeypatch):
    """A copy of the run, of which the server has nothing."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained.folder, "run", symlinks=True)
    server.runs.clear()
    server.unknown.clear()
    return sae.load("run")


@pytest.fixture(scope="module")
def first_upload(trained, server, tmp_path_factory):
    """What sync said, and what the server has after it."""
    out, lines = tmp_path_factory.mktemp("first") / "run", []
    shutil.copytree(trained.folder, out, symlinks=True)
    server.runs.clear()
    assert wandb_sync.sync(out, wandb_sync.Options(), lines.append)
    return lines, dict(server.runs)


@pytest.fixture
def uploaded(run, server, first_upload):
    """The copy of the run, of which the server has all."""
    server.runs |= copy.deepcopy(first_upload[1])
    return run


@pytest.fixture
def lines():
    return []


@pytest.fixture
def sync(run, lines):
    return lambda **options: wandb_sync.sync(run.folder, wandb_sync.Options(**options), lines.append)


@pytest.fixture
def fails(capsys):
    """The one line with which a command fails, exit code 1."""

    def fails(*argv) -> str:
        assert sae.cli.main.main([*map(str, argv)]) == 1
        out, err = capsys.readouterr()
        (line,) = err.splitlines()
        assert line.startswith("sae: ") and "Traceback" not in out + err
        return line

    return fails


def of(server, results, member):
    name = member if isinstance(member, str) else f"{member:04d}"
    return server.runs[f"{results.definition['token']}-{name}"]


def same(ours, theirs) -> bool:
    """JSON says NaN as a word, and W&B's summaries leave it out."""
    if isinstance(ours, float | np.floating) and np.isnan(ours):
        return theirs in ("NaN", None) or theirs != theirs
    return ours == theirs


def assert_whole(server, results, members=range(7)):
    """The server has what the tables have, every row once and in order."""
    assert server.unknown == []
    table = results.members.set_index("member")
    for member in members:
        received, history = of(server, results, member), results.history[results.history.member == member]
        *rows, last = received.history
        assert [row["_step"] for row in rows] == list(history.step) == [15, 30, 45, 60]
        for name in history.columns.drop(["member", "step", "examples"]):
            assert all(same(a, row[name]) for a, row in zip(history[name], rows, strict=True)), name
        assert [row["train/examples"] for row in rows] == list(history.examples)
        assert last["eval/log10_firing_rate"]["_type"] == "histogram"
        for name in ("status", *(name for name in table if name.startswith("eval/"))):
            assert same(table.at[member, name], received.summary.get(name)), name
        assert received.exit_code == 0 and received.bucket["tags"] == ["digits", "relu", "l1"]
        assert received.bucket["groupName"] == GROUP and received.config["member"] == member


def snapshot(server):
    return {name: {file: dict(rows) for file, rows in run.lines.items()} for name, run in server.runs.items()}


# sync


def test_offline_runs_arrive_as_they_are_and_a_second_call_sends_nothing(server, first_upload, uploaded, sync, lines):
    run = uploaded
    assert first_upload[0] == ["uploading 8 offline runs to tester/lab", "tester/lab: 8 of 8 runs arrived"]
    assert_whole(server, run)
    pictures = [name for name in of(server, run, 0).files if name.endswith(".png")]
    assert len([name for name in pictures if "train/dictionary" in name]) == 2
    (last,) = [of(server, run, 0).files[name] for name in pictures if "eval/dictionary" in name]
    drawn = dictionary_grid(run.sae(0).W_dec[...], (8, 8), run.cohorts[0].firing_rates()[0])
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(last))), drawn)
    sweep = of(server, run, "sweep")
    assert (sweep.bucket["jobType"], sweep.config["question"]) == ("sweep", "Why?")
    assert (sweep.summary["members"], sweep.summary["diverged"]) == (7, 1)
    (table,) = [json.loads(body) for name, body in sweep.files.items() if name.startswith("media/table/results")]
    assert table["columns"] == list(run.members) and [row[0] for row in table["data"]] == list(run.members["name"])
    assert {"members.parquet", "definition.json", "cohorts/001/weights.safetensors"} <= set(server.artifact_files)
    weights = (run.folder / "cohorts/001/weights.safetensors").read_bytes()
    assert server.artifact_files["cohorts/001/weights.safetensors"] == weights

    before = snapshot(server)
    assert sync()
    assert lines[-1] == "tester/lab: 8 of 8 runs arrived, 8 were there already"
    assert snapshot(server) == before


def test_what_the_server_lacks_comes_from_the_tables(server, uploaded, sync, lines):
    """Nothing offline, one run that is not there, one without its end, and a figure that is new."""
    run = uploaded
    shutil.rmtree(run.folder / "wandb")
    del server.runs[f"{run.definition['token']}-0006"]
    cut = of(server, run, 1)
    for position in (2, 3, 4):
        del cut.lines["wandb-history.jsonl"][position]
    cut.lines["wandb-summary.json"] = {0: '{"train/step": 30}'}
    before = snapshot(server)
    (run.folder / "report").mkdir()
    Image.new("L", (8, 8)).save(run.folder / "report" / "frontier.png")
    assert sync()
    assert lines == [
        "uploading 3 runs from the tables to tester/lab",
        "tester/lab: 8 of 8 runs arrived, 5 were there already",
    ]
    assert_whole(server, run)
    assert "figures/frontier" in of(server, run, "sweep").summary
    assert "media/images/eval/dictionary" in " ".join(of(server, run, 6).files)
    untouched = [name for name in before if not name.endswith(("-0001", "-sweep"))]
    assert {name: snapshot(server)[name] for name in untouched} == {name: before[name] for name in untouched}


@pytest.mark.long
def test_a_run_whose_server_fell_silent_is_whole_after_sync(tmp_path):
    (tmp_path / "question.py").write_text(QUESTION)
    command = [
        sys.executable,
        "-m",
        "sae.cli",
        "run",
        "question.py",
        "--out",
        "run",
        "--wandb",
        "online",
        "--no-report",
    ]
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    env |= {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    with WandbServer() as server:
        job = subprocess.Popen(command, cwd=tmp_path, env=env | server.env, stderr=subprocess.PIPE, text=True)
        while job.poll() is None and len(server.runs) < 2:
            time.sleep(0.05)
        server.fall_silent()
        _, err = job.communicate()
        assert job.returncode == 0 and "sae sync run" in err, err
        assert sum(len(run.rows("wandb-history.jsonl")) for run in server.runs.values()) < 2 * 50
    with WandbServer() as server:
        command = [sys.executable, "-m", "sae.cli", "sync", "run"]
        done = subprocess.run(command, cwd=tmp_path, env=env | server.env, capture_output=True, text=True)
        assert done.returncode == 0 and "5 of 5 runs arrived" in done.stdout, done.stdout + done.stderr
        results = sae.load(tmp_path / "run")
        for member in range(4):
            steps = [row["train/step"] for row in of(server, results, member).history if "train/l0" in row]
            assert steps == list(results.history[results.history.member == member].step)


def test_rows_that_an_older_upload_doubled_are_told_of(server, uploaded, sync, lines, monkeypatch):
    run, doubled = uploaded, of(server, uploaded, 3)
    monkeypatch.setattr(server, "lag", 0.0)
    monkeypatch.setattr(wandb_sync, "COUNT_SECONDS", 1)
    rows = doubled.rows("wandb-history.jsonl")
    doubled.receive("wandb-history.jsonl", len(rows), rows[:2])
    assert not sync()
    assert lines[-2] == "tester/lab: 7 of 8 runs arrived, 7 were there already"
    assert (
        lines[-1] == f"{run.definition['token']}-0003 has 7 rows where the tables have 5: delete it in W&B, then repeat"
    )


def test_a_sweep_in_the_middle(server, run, sync, lines):
    """A cohort that was interrupted has rows and no end; one that another process works on is left to it."""
    history = run.history
    shutil.rmtree(run.folder / "wandb")
    run.cohorts[1].mark(status="interrupted", checksums={})
    with folder.lock(run.cohorts[0].path):
        assert not sync()
    assert lines[0].startswith("left out: run/cohorts/000 is in use by process ")
    assert lines[-1] == "tester/lab: 2 of 2 runs arrived"
    assert sorted(server.runs) == [f"{run.definition['token']}-000{member}" for member in (5, 6)]
    for member in (5, 6):
        received = of(server, run, member)
        assert [row["train/step"] for row in received.history] == list(history[history.member == member].step)
        assert "status" not in received.summary and received.exit_code == 1


# pull


def test_a_pulled_run_has_the_tables_of_the_one_that_was_uploaded(uploaded, lines):
    run = uploaded
    pulled = wandb_pull.pull("tester/lab", wandb_pull.Options(group=GROUP), lines.append)
    assert lines[-1] == f"runs/{GROUP}-pulled: 7 members"
    history, members = run.history, run.members
    pd.testing.assert_frame_equal(pulled.history[list(history)], history, check_dtype=False, rtol=1e-12)
    assert set(pulled.history) == set(history) and set(pulled.members) == set(members)
    pd.testing.assert_frame_equal(pulled.members[list(members)], members, check_dtype=False, rtol=1e-12)
    pd.testing.assert_frame_equal(pd.read_parquet(pulled.folder / "members.parquet"), pulled.members)
    assert pulled.definition["question"] == "Why?" and pulled.figures == run.figures
    assert pulled.status == "finished" and pulled.definition["pulled"]["from"] == "tester/lab"
    with pytest.raises(UserError, match="has no weights: it was pulled from W&B"):
        pulled.sae(0)
    assert [cohort.firing_rates() for cohort in pulled.cohorts] == [{}, {}]
    with pytest.raises(UserError, match="was pulled from W&B, so there is nothing to upload"):
        wandb_sync.sync(pulled.folder, wandb_sync.Options(), lines.append)
    theirs = pulled.folder / "notes.txt", pulled.folder.with_name(f"{pulled.folder.name}.new") / "notes.txt"
    theirs[1].parent.mkdir()
    for path in theirs:
        path.write_text("mine")
    again = wandb_pull.pull("tester/lab", wandb_pull.Options(group=GROUP), lines.append)
    pd.testing.assert_frame_equal(again.members, pulled.members)
    assert [path.read_text() for path in theirs] == ["mine", "mine"], "what others put there stays"
    assert sorted(path.name for path in Path("runs").iterdir() if path.name.startswith(".")) == []
    with pytest.raises(UserError, match="allowed: a folder that you are not in"):
        wandb_pull.pull("tester/lab", wandb_pull.Options(group=GROUP, out=Path(".")), lines.append)


def test_runs_of_another_program_and_unfinished_ones(server, run, lines, monkeypatch):
    monkeypatch.setattr(server, "lag", 0.0)
    for name, group, state in (("a", "g1", 0), ("b", "g2", 0), ("c", "g2", None)):
        config = {"lr": {"value": 0.1}, "model": {"value": {"width": 3 if name == "a" else 4}}}
        bucket = {"project": "theirs", "groupName": group, "config": json.dumps(config)}
        received = server.runs.setdefault(name, ReceivedRun())
        received.bucket |= bucket
        received.receive("wandb-history.jsonl", 0, [json.dumps({"_step": i, "loss": 1 / (1 + i)}) for i in range(3)])
        received.receive("wandb-summary.json", 0, [json.dumps({"eval/fvu": 0.25, "loss": 0.33})])
        received.exit_code = state
    pulled = wandb_pull.pull("tester/theirs", wandb_pull.Options(out=Path("theirs")), lines.append)
    assert lines[-1] == "theirs: 3 members, 1 of them not finished" and pulled.status == "running"
    members = pulled.members
    assert list(members["group"]) == ["g1", "g2"] and list(members["model.width"]) == [3, 4]
    assert list(members["eval/fvu"]) == [0.25, 0.25]
    assert list(pulled.history[pulled.history.member == 2]["loss"]) == [1, 1 / 2, 1 / 3]


def test_pull_says_what_is_not_there(uploaded, fails):
    wrong = f"sae: tester/lab has no runs of group 'some_swep'; close names: {GROUP}"
    assert fails("pull", "tester/lab", "--group", "some_swep") == wrong
    assert "nobody/lab: no such project" in fails("pull", "nobody/lab")
    assert "allowed: ENTITY/PROJECT" in fails("pull", "lab")
    assert "pull has no option '--grup'; close names: --group" in fails("pull", "tester/lab", "--grup", "x")
    assert "run holds something that was not pulled from W&B" in fails("pull", "tester/lab", "--out", "run")
    assert sae.load("run").finished


# dashboard


def panels(spec):
    """{section: its panels} of a workspace's spec."""
    return {s["name"]: s["panels"] for s in spec["section"]["panelBankConfig"]["sections"]}


def test_the_specs_hold_every_figure(run):
    assert sae.cli.main.main(["dashboard", "run", "--dry-run"]) == 0
    workspace = json.loads((run.folder / "wandb-workspace.json").read_text())
    shown = panels(workspace["spec"])
    assert list(shown) == [
        *("Frontier", "Heatmaps", "Parallel coordinates", "Curves", "Firing rates", "Dictionaries", "Members")
    ]
    (frontier,) = shown["Frontier"]
    assert frontier["viewType"] == "Scatter Plot"
    scatter = {"xAxis": "summary:eval/fvu", "yAxis": "summary:eval/l0", "zAxis": "config:d_sae.value"}
    assert scatter.items() <= frontier["config"].items()
    assert frontier["config"]["xAxisLogScale"] and frontier["config"]["yAxisLogScale"]
    (parallel,) = shown["Parallel coordinates"]
    axes = [column["accessor"] for column in parallel["config"]["columns"]]
    assert "config:penalty.l1.value" in axes, "a name with a dot in it, not a nested config"
    assert axes[-3:] == ["summary:eval/fvu", "summary:eval/l0", "summary:eval/dead_fraction"]
    curves = [panel["config"] for panel in shown["Curves"]]
    names = ("fvu", "l0", "dead_fraction", "loss", "grad_norm")
    assert [config["metrics"] for config in curves] == [[f"train/{name}"] for name in names]
    assert {config["xAxis"] for config in curves} == {"train/step"}
    assert {config["groupBy"] for config in curves} == {"d_sae.value"}
    tables = [panel["config"]["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]["val"] for panel in shown["Heatmaps"]]
    assert set(tables) < set(sink.tables(run)) and len(tables) == 3
    (filtered,) = workspace["spec"]["section"]["runSets"][0]["filters"]["filters"]
    assert (filtered["key"]["name"], filtered["value"]) == ("group", GROUP)

    report = json.loads((run.folder / "wandb-report.json").read_text())
    blocks = report["spec"]["blocks"]
    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    kinds = [[panel["viewType"] for panel in grid["panelBankSectionConfig"]["panels"]] for grid in grids]
    assert kinds == [[panel["viewType"] for panel in section] for section in shown.values()]
    jobs = [grid["runSets"][0]["filters"]["filters"][1]["value"] for grid in grids]
    assert jobs == ["sweep" if name in ("Heatmaps", "Members") else "train" for name in shown]
    (fvu, *_) = [figure for figure in run.figures if isinstance(figure, Heatmap)]
    number = f"{sink.pivot(run.members, fvu, fvu.along[0]).iloc[0, 1]:.3g}"
    assert number in json.dumps([block for block in blocks if "markdown" in json.dumps(block)])


def test_without_runs_there_is_nothing_to_show(run, fails):
    assert "tester/lab has no runs of 'some_sweep' to show; upload them: sae sync run" in fails("dashboard", "run")


def test_both_are_saved_where_the_runs_are(server, uploaded, capsys):
    run = uploaded
    server.views.clear()
    assert sae.cli.main.main(["dashboard", "run"]) == 0
    workspace, report = capsys.readouterr().out.splitlines()
    assert workspace.startswith("workspace: http") and report.startswith("report: http")
    assert server.unknown == []
    assert [(view["type"], view["entityName"], view["projectName"]) for view in server.views] == [
        ("project-view", "tester", "lab"),
        ("runs", "tester", "lab"),
    ]
    made = wandb_dashboard.spec(wandb_dashboard.workspace(run, wandb_api.Server("tester", "lab", "", None)))
    without = lambda shown: {name: [panel["config"] for panel in of] for name, of in shown.items()}
    assert without(panels(json.loads(server.views[0]["spec"]))) == without(panels(made["spec"]))


# a server that is not there, or does not know us


@pytest.mark.parametrize("command", [("sync", "run"), ("pull", "tester/lab"), ("dashboard", "run")], ids=lambda c: c[0])
def test_without_a_key_or_a_server_a_command_ends_with_one_line(run, fails, monkeypatch, command):
    monkeypatch.setenv("WANDB_API_KEY", "")
    assert "not logged in at 127.0.0.1" in fails(*command)
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(wandb_api, "CONNECT_SECONDS", 1)
    assert "W&B at 127.0.0.1:9: no answer within 1 s" in fails(*command)


def test_an_entity_that_is_not_ours(run, fails):
    for command in ("sync", "dashboard"):
        assert "entity: got 'taem'; close names: team, as W&B at " in fails(command, "run", "--entity", "taem")


def test_a_folder_that_holds_no_run(server, fails, tmp_path):
    for command in ("sync", "dashboard"):
        assert "no definition.json there, so no run" in fails(command, tmp_path)


def test_a_name_that_wandb_refuses_is_one_line(trained, tmp_path, fails):
    said = "got 't5/large', allowed: 1 to 128 characters"
    for command in ("sync", "dashboard"):
        assert f"W&B project: {said}" in fails(command, trained.folder, "--project", "t5/large")
        assert f"W&B entity: {said}" in fails(command, trained.folder, "--entity", "t5/large")
    assert "W&B project: got '50%'" in fails("pull", "tester/50%")
    assert "W&B entity: got 'my:team'" in fails("pull", "my:team/lab")

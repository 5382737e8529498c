"""A run's folder with anything in it: a command ends with 0 or 1 and one line, and writes nowhere else."""

import contextlib
import copy
import io
import json
import pickle
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sae
from sae import UserError
from sae.cli.main import main
from sae.core.files import read_checked
from sae.runner.launchers import slurm
from sae.runner.launchers.parts import Part
from sae.study import claims
from sae.wandb import sink

FILE = """
from sae import Adam, AtMost, Claim, Curves, Digits, ElasticNet, Experiment, Sweep, grid
from sae.study.quantities import Peak

base = Experiment(
    name="tiny", data=Digits(), d_sae=48, penalty=ElasticNet(l1=0.1),
    optimizer=Adam(lr=3e-3, warmup_steps=5, decay_steps=20), dead_after=2_000, batch_size=64, n_steps=60,
)
members = grid(base, {"penalty.l1": (0.05, 0.2)})
sweep = Sweep(name="x", members=members, figures=[Curves()], claims=[Claim("few", AtMost(lambda results: {}, 1))])
"""
FILES = ("definition.json", "cohorts/000/cohort.json", "claims.json", "wandb.json")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning", "ignore::UserWarning")


def few(n):
    return settings(
        max_examples=n, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "x.py").write_text(FILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["run", "x.py", "--wandb", "off", "--no-report"]) == 0
        (folder / "runs/x/wandb.json").write_text(json.dumps({"entity": "e", "project": "p", "artifacts": False}))
        yield Path("runs/x")


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
LEAVES |= st.sampled_from(
    ["\ud800", "../../x", "/etc/passwd", "\x1b]0;x\x07", "eval/fvu", 10**400, -1, 0, 2**63, "d_sae"]
)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner), max_leaves=6
)


def places(value, path=()):
    """Every place in a value of JSON."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
        yield from places(inner, (*path, key))


@st.composite
def changed(draw, value):
    """A value of JSON, of which one to three places hold something else, or are gone."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(sorted(places(value), key=repr)))
        if not path:
            return draw(JSON)
        inside = value
        for key in path[:-1]:
            inside = inside[key]
        if isinstance(inside, dict) and draw(st.booleans()):
            del inside[path[-1]]
        else:
            inside[path[-1]] = draw(JSON)
    return value


@contextlib.contextmanager
def holding(folder, name, content):
    """A folder one of whose files holds something else for a moment."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (folder / name).write_bytes(content)
    try:
        yield
    finally:
        for path in folder.rglob("*"):
            if path.is_file() and path not in before:
                path.unlink()
        for path, content in before.items():
            path.write_bytes(content)


def ends_well(*argv):
    """The command ends with 0, or with 1 and one line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*map(str, argv)])
    assert code in (0, 1), argv
    lines = err.getvalue().splitlines()
    assert code == 0 or (len(lines) >= 1 and lines[-1].startswith("sae: ")), (argv, lines)
    assert not any(ord(c) < 32 and c not in "\n\t" for c in out.getvalue() + err.getvalue())


def read_all(run):
    ends_well("watch", run, "--once")
    ends_well("claims", run, "x.py")
    ends_well("claims", run)
    ends_well("sync", run)
    ends_well("dashboard", run, "--dry-run")


def of(run):
    """A strategy: the name of a file of the run, and what it holds."""
    known = {name: read_checked(run / name) for name in FILES}
    one = lambda name: st.tuples(st.just(name), changed(known[name]).map(lambda value: json.dumps(value).encode()))
    return st.sampled_from(FILES).flatmap(one) | st.tuples(st.sampled_from(FILES), st.binary(max_size=40))


def check(run, commands, n):
    @few(n)
    @given(of(run))
    def one(case):
        with holding(run, *case):
            commands(run)

    one()


def test_any_json_in_a_folder_is_read_or_refused_in_one_line(run):
    check(run, read_all, 25)


def test_any_json_in_a_folder_is_reported_or_refused_in_one_line(run):
    check(run, lambda run: ends_well("report", run), 12)


def test_a_run_goes_on_or_is_refused_in_one_line_whatever_its_folder_holds(run):
    check(run, lambda run: ends_well("run", "x.py", "--wandb", "off", "--no-report"), 10)


@pytest.mark.long
def test_much_json_in_a_folder(run):
    check(run, read_all, 400)
    check(run, lambda run: ends_well("report", run), 150)
    check(run, lambda run: ends_well("run", "x.py", "--wandb", "off", "--no-report"), 50)


def test_a_wrong_place_is_named_with_what_is_allowed(run):
    def refusal(*path, value):
        definition = read_checked(run / "definition.json")
        inside = definition
        for key in path[:-1]:
            inside = inside[key]
        inside[path[-1]] = value
        with holding(run, "definition.json", json.dumps(definition).encode()), pytest.raises(UserError) as error:
            sae.load(run)
        return str(error.value).removeprefix("runs/x/definition.json is damaged, or was edited by hand: ")

    assert refusal("members", 1, "n_steps", value="9") == "members[1].n_steps: got '9', allowed: int"
    assert refusal("members", 1, "n_steps", value=0) == "members[1].n_steps: got 0, allowed: at least 1"
    assert refusal("members", 0, "data", value=[1]) == "members[0].data: got [1], allowed: str"
    assert refusal("cohorts", 0, value=[0]) == "cohorts: got [[0]], allowed: each of the 2 members in one of them"
    assert refusal("name", value="\ud800") == "name: got '\\ud800', allowed: str"
    assert refusal("token", value="../x") == "token: got '../x', allowed: letters and digits"
    assert refusal("figures", 0, "metrics", value=[3]) == "figures[0].metrics[0]: got 3, allowed: str"
    assert refusal("figures", 0, "kind", value="Curve") == "figure: got 'Curve', close names: Curves"
    assert refusal("packages", value=[]) == "packages: got [], allowed: an object"
    assert refusal("data", 0, "member", value=9).startswith("data[0]: got {'member': 9")


def test_checksums_name_no_file_elsewhere(run, tmp_path):
    path = run / "cohorts/000/cohort.json"
    state = read_checked(path) | {"checksums": {"../../../../etc/passwd": "0"}}
    with holding(run, "cohorts/000/cohort.json", json.dumps(state).encode()):
        with pytest.raises(UserError, match="cohort.json is damaged, or was edited by hand: a name of a file"):
            _ = sae.load(run).cohorts[0].state


@pytest.mark.parametrize("link", [".lock", "report.html.tmp", "cohorts/000/steps", "wandb/wandb-process.log", "logs"])
def test_nothing_is_written_through_a_link_in_a_folder(run, tmp_path, link, monkeypatch, capsys):
    shutil.copytree(run.parents[1], tmp_path / "at")
    monkeypatch.chdir(tmp_path / "at")
    outside = tmp_path / "outside"
    if link.endswith(("steps", "logs")):
        outside.mkdir()
        (outside / "mine.safetensors").write_text("mine")
    else:
        outside.write_text("mine")
    (run / link).parent.mkdir(exist_ok=True)
    (run / link).unlink(missing_ok=True)
    (run / link).symlink_to(outside)
    for command in (["report", run], ["run", "x.py", "--wandb", "offline"], ["claims", run, "x.py"], ["sync", run]):
        assert main([*map(str, command)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "link" in line
    kept = outside / "mine.safetensors" if outside.is_dir() else outside
    assert kept.read_text() == "mine" and len(list(tmp_path.iterdir())) == 2


def test_links_inside_a_folder_and_those_of_wandb_are_fine(run, tmp_path):
    shutil.copytree(run, tmp_path / "x")
    (tmp_path / "x/wandb").mkdir()
    (tmp_path / "x/wandb/latest-run").symlink_to("/gone/offline-run-1")
    (tmp_path / "x/wandb/debug-internal.log").symlink_to("/gone/debug.log")
    (tmp_path / "x/mine.json").symlink_to(tmp_path / "x/definition.json")
    (tmp_path / "linked").symlink_to(tmp_path / "x")
    assert sae.load(tmp_path / "linked").finished


@pytest.mark.parametrize("place", ["wandb", ".wandb"])
def test_wandbs_settings_in_a_folder_are_refused(run, place):
    """They name the server that gets the user's API key."""
    (run / place).mkdir()
    (run / place / "settings").write_text("[default]\nbase_url = http://evil.example\n")
    try:
        with pytest.raises(UserError, match=f"{place}/settings: got W&B's settings in a run's folder, allowed: none"):
            sae.load(run)
    finally:
        shutil.rmtree(run / place)


class Evil:
    def __reduce__(self):
        return (open, ("executed", "w"))


def test_what_submitit_left_in_a_folder_is_not_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(slurm, "SETTLE", 0.0)
    monkeypatch.setattr(slurm, "POLL", 0.0)
    monkeypatch.setattr(slurm, "_states", lambda ids: {})
    left = tmp_path / "logs/submitit"
    left.mkdir(parents=True)
    said = []

    def job(id, code=None, error=""):
        result = left / f"{id}_0_result.pkl"
        result.write_bytes(pickle.dumps(Evil()))
        (left / f"{id}_0_log.err").write_text(error)
        if code is not None:
            slurm._end(tmp_path / "logs", id).write_text(code)
        part = Part(f"cohort {id}", [])
        return slurm._Job(part, id, time.time(), slurm._end(tmp_path / "logs", id), result, left / f"{id}_0_log.err")

    jobs = [job("1", "0"), job("2", "3"), job("3", "-9"), job("4", "-7000", "Trace\nValueError: no\n"), job("5", "x")]
    failures = []
    slurm._wait(jobs, failures, tmp_path / "logs", said.append, [])
    assert [failure.reason for failure in failures] == [
        "exit code 3, job 2", "killed by SIGKILL, job 3", "no, job 4", "it ended before its part, job 5",
    ]  # fmt: skip
    assert not Path("executed").exists() and said[0].startswith("cohort 1: job 1 finished")


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"a": {"id": "../../x", "submitted": 1}}', '{"a": {"id": 7}}', '{"a": 1}']
)
def test_jobs_that_a_folder_names_are_numbers(tmp_path, text):
    (tmp_path / "jobs.json").write_text(text)
    assert slurm._read_jobs(tmp_path) == {}


def test_a_place_in_wandb_that_a_folder_notes_is_checked(tmp_path):
    for noted in ({"run_id": "../../x"}, {"project": 3}, [], {"entity": {}}):
        (tmp_path / "wandb.json").write_text(json.dumps(noted))
        assert sink.noted(tmp_path) == {}
    (tmp_path / "wandb.json").write_text(json.dumps({"run_id": "abc-1", "project": "p"}))
    assert sink.noted(tmp_path) == {"run_id": "abc-1", "project": "p"}


def test_claims_that_are_none_are_named(run):
    sound = claims.read(run)
    assert [claim["text"] for claim in sound] == ["few"]
    for wrong in ({}, [{}], [sound[0] | {"verdict": "maybe"}], [sound[0] | {"clauses": [{}]}]):
        with (
            holding(run, "claims.json", json.dumps(wrong).encode()),
            pytest.raises(UserError, match="claims.json is damaged, or was edited by hand: .*; `sae run`"),
        ):
            claims.read(run)

"""What is damaged, older, edited by hand or somebody else's in a run's folder and in the caches beside it."""

import errno
import gc
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import psutil
import pyarrow.parquet
import pytest
from rich.console import Console

import sae
from sae import Digits, ElasticNet, Experiment, Superposition, UserError
from sae.cli.main import main
from sae.core.files import DamagedError, read_checked, write_checked
from sae.engine import lanes, runtime
from sae.engine.checkpoints import Checkpoints
from sae.report import watch
from sae.store import storage

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def short() -> Experiment:
    return Experiment(name="short", data=Digits(), d_sae=16, n_steps=20, batch_size=64, penalty=ElasticNet(l1=0.1))


@pytest.fixture(scope="module")
def whole(short, tmp_path_factory) -> sae.Results:
    return run(short, tmp_path_factory.mktemp("whole") / "run", keep_every=10)


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole.folder, tmp_path / "run"))


def run(experiment, out, console=None, **options) -> sae.Results:
    return sae.run(experiment, out=out, wandb="off", console=console or Console(file=io.StringIO()), **options)


def same(a: sae.Results, b: sae.Results) -> None:
    pd.testing.assert_frame_equal(a.members, b.members, check_exact=True)
    pd.testing.assert_frame_equal(a.history, b.history, check_exact=True)
    np.testing.assert_array_equal(a.sae(0).W_dec[...], b.sae(0).W_dec[...])


def test_a_folder_older_than_the_checksums_is_read_and_goes_on_as_before(short, whole, folder, quiet):
    for path in folder.rglob("*.json"):
        path.write_text(json.dumps(read_checked(path)))
    for path in folder.rglob("*.parquet"):
        pd.read_parquet(path).to_parquet(path, index=False)
    state = read_checked(folder / "cohorts/000/cohort.json")
    names = state["checksums"]
    sums = {name: storage.sha256(folder / "cohorts/000" / name) for name in names}
    write_checked(folder / "cohorts/000/cohort.json", state | {"checksums": sums})
    same(sae.load(folder), whole)
    same(run(short, folder, quiet), whole)
    assert "this run is finished already" in quiet.file.getvalue()


def test_a_hand_edit_is_told_from_what_was_written_and_can_be_accepted(short, folder, capsys):
    path = folder / "definition.json"
    path.write_text(path.read_text().replace('"question": ""', '"question": "why?"'))
    fix = 'its checksum is another; delete its entry "checksum" to have it read as it is'
    with pytest.raises(DamagedError, match=fix):
        sae.load(folder)
    with pytest.raises(DamagedError, match=f"{fix}; or add --fresh to move the run aside"):
        run(short, folder)
    assert main(["report", str(folder)]) == 1 and len(capsys.readouterr().err.splitlines()) == 1
    definition = json.loads(path.read_text())
    del definition["checksum"]
    path.write_text(json.dumps(definition))
    assert sae.load(folder).definition["question"] == "why?"


WRONG = {
    "members": [1, 2],
    "cohorts": [[0, 1]],
    "name": 5,
    "packages": [],
    "device": {"kind": "CPU"},
    "figures": [{"title": "x"}],
    "claims": [[]],
    "data": [{"member": "0", "fingerprint": {}}],
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_types_in_a_definition_are_one_line(folder, capsys, name):
    path = folder / "definition.json"
    path.write_text(json.dumps(read_checked(path) | {name: WRONG[name]}))
    for command in ("report", "watch", "claims", "sync"):
        assert main([command, str(folder)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "definition.json is damaged, or was edited by hand" in line


def test_every_byte_of_a_table_counts(folder):
    """Parquet's own checksums leave out the footer, where the names of columns stand."""
    path, files = folder / "cohorts/000/history.parquet", storage.CohortFiles(folder, 0)
    files.mark(status="running", checksums={})
    data, table, named = path.read_bytes(), files.history(), 0
    assert pyarrow.parquet.read_table(path).num_rows == len(pd.read_parquet(path)) == len(table), "others read it"
    for at in range(len(data) % 41, len(data), 41):
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        try:
            pd.testing.assert_frame_equal(files.history(), table, check_exact=True)  # of the checksum's own mark
        except DamagedError:
            named += 1
    assert named > len(data) // 41 - 5


def test_a_cohort_whose_state_is_damaged_is_named_and_trained_again(short, whole, folder, quiet):
    (folder / "cohorts/000/cohort.json").write_text('{"status": "finished", "checksums": 5}')
    with pytest.raises(DamagedError, match="cohort.json is damaged, or was edited by hand: checksums is 5"):
        sae.load(folder).members  # noqa: B018
    (folder / "cohorts/000/steps/notes.txt").write_text("mine")
    results = run(short, folder, quiet, keep_every=10)
    same(results, whole)
    assert results.steps(0) == whole.steps(0) == (10, 20)
    assert "checksums is 5; the cohort is trained again" in quiet.file.getvalue()
    assert (folder / "cohorts/000/steps/notes.txt").read_text() == "mine"


def test_joined_tables_are_those_of_the_cohorts_whatever_happened_to_them(short, whole, folder):
    before = {name: (folder / name).read_bytes() for name in ("members.parquet", "history.parquet")}
    pd.read_parquet(folder / "members.parquet").head(0).to_parquet(folder / "members.parquet")
    (folder / "history.parquet").unlink()
    (folder / "cohorts/000/checkpoints/20").mkdir(parents=True)
    run(short, folder)
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert not (folder / "cohorts/000/checkpoints").exists()


def test_what_a_killed_process_leaves_is_nothing_and_what_others_leave_is_theirs(short, tmp_path):
    leftover, theirs = tmp_path / "run/.0123456789abcdef.tmp", tmp_path / "run/definition.json.tmp"
    leftover.parent.mkdir()
    leftover.touch(), (tmp_path / "run/.lock").touch(), theirs.write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        run(short, tmp_path / "run")
    with pytest.raises(UserError, match="holds no run, so --fresh leaves it where it is"):
        run(short, tmp_path / "run", fresh=True)
    theirs.rename(tmp_path / "elsewhere")
    assert run(short, tmp_path / "run").finished and not leftover.exists()
    (tmp_path / "elsewhere").rename(theirs)
    run(short, tmp_path / "run", report=True)
    assert theirs.read_text() == "mine"


@pytest.mark.parametrize("content", ["[]", "null", "2.5", '{"KEY": -3}', '{"KEY": 1000000000}', '{"KEY": "4"}', "{"])
def test_what_the_cache_of_lanes_says_is_not_trusted(content, short, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    from sae.engine.cohort import plan

    (cohort,) = plan([short, sae.replace(short, {"seed": 1})])
    expected = cohort.placement(64).lanes
    assert lanes.expected(cohort, 64) == expected
    path, key = lanes._path(), lanes._key(cohort, 64, None)
    path.write_text(content.replace("KEY", key))
    assert lanes.expected(cohort, 64) == expected
    write_checked(path, lanes._remembered() | {key: 2})
    assert lanes.expected(cohort, 64) == 2


def test_a_damaged_entry_of_the_cache_of_programs_is_deleted_and_written_again(tmp_path):
    from jax._src.lru_cache import LRUCache

    cache, value = runtime.CheckedCache(LRUCache(str(tmp_path), max_size=-1)), os.urandom(1000)
    cache.put("key", value)
    (path,) = tmp_path.iterdir()
    sound = path.read_bytes()
    assert cache.get("key") == value and cache.get("other") is None
    for harmed in (b"", sound[:500], sound[:700] + bytes([sound[700] ^ 1]) + sound[701:]):
        path.write_bytes(harmed)
        assert cache.get("key") is None
        cache.put("key", value)
        assert cache.get("key") == value


def test_a_checkpoint_that_cannot_be_written_is_one_line_and_the_one_before_stays(tmp_path):
    from sae.data.feed import Feed
    from sae.engine import cohort, programs
    from sae.engine.placement import Placement

    e = Experiment(name="x", data=Digits(), d_sae=512, n_steps=10, batch_size=64)
    sample = Feed(e.data.load(), 0, 64, 10).candidates(0, 64)[0]
    (one,) = cohort.plan([e])
    state = jax.device_get(programs.init(one.stacked(Placement(1)), sample, placement=Placement(1)))
    checkpoints = Checkpoints(tmp_path / "checkpoints", print)
    checkpoints.save(3, state, [])
    checkpoints.close()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError) as raised:
            checkpoints.save(6, state, [])
            checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert raised.value.errno == errno.EFBIG and raised.value.strerror == os.strerror(errno.EFBIG)
    assert raised.value.filename == str(tmp_path / "checkpoints")
    assert Checkpoints(tmp_path / "checkpoints", print).restore(state)[0] == 3


def programs_and_arrays() -> tuple[int, int]:
    gc.collect()
    return sum(type(each).__name__ == "Jaxpr" for each in gc.get_objects()), len(jax.live_arrays())


@pytest.mark.parametrize("data", [Digits(), Superposition(d_in=16, n_features=32)], ids=["rows", "sampler"])
def test_a_run_leaves_no_program_and_no_array_that_the_one_before_did_not(short, data, tmp_path):
    experiment = sae.replace(short, {"data": data})
    for i in range(3):
        run(experiment, tmp_path / str(i))
    before = programs_and_arrays()
    for i in range(3, 6):
        run(experiment, tmp_path / str(i))
    assert programs_and_arrays() == before


def test_a_process_keeps_a_bounded_number_of_programs(monkeypatch):
    cleared = []
    monkeypatch.setattr(runtime, "_programs", set())
    monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(len(runtime._programs)))
    for i in range(100):
        runtime.forget_old_programs(i)
        runtime.forget_old_programs(i)
    assert len(cleared) == (100 - 1) // runtime.MOST_PROGRAMS and len(runtime._programs) <= runtime.MOST_PROGRAMS


@pytest.mark.long
@pytest.mark.parametrize("data", [Digits(), Superposition(d_in=16, n_features=32)], ids=["rows", "sampler"])
def test_memory_is_flat_after_the_twentieth_run(short, data, tmp_path):
    experiment, rss = sae.replace(short, {"data": data}), []
    for i in range(60):
        run(experiment, tmp_path / "run", report=i % 10 == 0)
        shutil.rmtree(tmp_path / "run")
        rss.append(psutil.Process().memory_info().rss / 2**20)
    assert rss[-1] - rss[19] < 20, "MiB; it was 2.3 a run"


def test_watch_says_where_a_run_is_gone(short, folder, monkeypatch):
    (folder / "cohorts/000/cohort.json").unlink()
    monkeypatch.setattr(time, "sleep", lambda seconds: shutil.rmtree(folder))
    with pytest.raises(UserError, match="is gone, or holds no run any more"):
        watch.watch(sae.load(folder), Console(file=io.StringIO(), force_terminal=True))


LONG = """
from sae import Digits, ElasticNet, Experiment
experiment = Experiment(name="x", data=Digits(), d_sae=64, penalty=ElasticNet(l1=0.1), batch_size=128, n_steps=10**6)
"""


@pytest.mark.parametrize(
    "signals",
    [(signal.SIGINT, signal.SIGTERM), *(pytest.param((n,) * 4, marks=pytest.mark.long) for n in (signal.SIGINT, 15))],
)
def test_a_second_signal_ends_the_process_in_one_line(signals, tmp_path):
    (tmp_path / "x.py").write_text(LONG)
    command = [sys.executable, "-m", "sae.cli", "run", "x.py", "--out", "run", "--wandb", "off"]
    process = subprocess.Popen(
        [*command, "--checkpoint-minutes", "0"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while "compiled" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.5)
    for number in signals:
        process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode in (130, 143) and "Traceback" not in err and "ignored" not in err, err
    assert err.splitlines()[-1].endswith("and the same command goes on from there") or "stopped at once" in err, err

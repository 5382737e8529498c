"""Runs from W&B: ours, another program's, and a hostile project's are pulled, reported, and opened in a browser."""

import json
import sys
from pathlib import Path

import chromium
import numpy as np
import pytest
from wandb_server import ReceivedRun, WandbServer, in_process

import sae
from sae import Sweep, grid
from sae.cli.main import main
from sae.wandb import sink
from sae.wandb import sync as wandb_sync

EVIL = "</script><img src=x onerror=bad=1><b>\x1b]0;x\x07\u202e ../../../evil\n=1+1"
needs_chromium = pytest.mark.skipif(chromium.COMMAND is None, reason="no Chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with in_process(WandbServer(), tmp_path_factory.mktemp("home")) as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    with chromium.Browser() as browser:
        yield browser


def put(server, project, name, config, history, summary, group="g", job="train"):
    """Let the server have a finished run."""
    run = server.runs[name] = ReceivedRun()
    run.bucket |= {"project": project, "groupName": group, "jobType": job}
    run.bucket["config"] = json.dumps({key: {"value": value} for key, value in config.items()})
    run.receive("wandb-history.jsonl", 0, [json.dumps({"_step": i, **row}) for i, row in enumerate(history)])
    run.receive("wandb-summary.json", 0, [json.dumps(summary)])
    run.exit_code = 0


def ours(server, tiny, folder):
    results = sae.run(Sweep(name="ours", members=grid(tiny, {"penalty.l1": (0.05, 0.2, 0.6)})), out=folder, wandb="off")
    table, past = results.members.set_index("member"), results.history
    for i, flat in enumerate(results.definition["members"]):
        rows = past[past["member"] == i].drop(columns="member").to_dict("records")
        rows = [row | {"train/step": row.pop("step"), "train/examples": row.pop("examples")} for row in rows]
        numbers = {name: float(value) for name, value in table.loc[i].items() if name.startswith("eval/")}
        put(server, "ours", f"o{i}", flat | {"member": i, "cohort": 0}, rows, numbers | {"status": "finished"})
    put(server, "ours", "osweep", {name: results.definition[name] for name in sink.SWEEP_CONFIG}, [], {}, job="sweep")


def others(server, *_):
    for i in range(3):
        config = {"lr": 0.1 * (i + 1), "model": {"width": 3.0 + i, "words": ["a", {"b": 1}]}, "batch_size": "many"}
        put(
            server,
            "others",
            f"t{i}",
            config,
            [{"loss": 1 / (1 + s), "step": s} for s in range(4)],
            {"eval/fvu": 0.2 + i},
        )


def silent(server, *_):
    put(server, "silent", "s0", {"lr": 1}, [], {})


def hostile(server, *_):
    names = (
        "__proto__",
        "constructor",
        EVIL,
        "name",
        "group",
        "status",
        "eval/fvu",
        "penalty",
        "seed",
        "data",
        "d_sae",
    )
    for i in range(4):
        config = {name: EVIL + str(i % 2) for name in names} | {"member": EVIL, "cohort": [EVIL], "penalty.l1": 0.1 * i}
        rows = [{"train/fvu": 0.9**s, "member": 5, "step": -1, EVIL: s, "train/step": 1e300} for s in range(3)]
        rows += [{"__proto__": 1, "train/l0": 10**30, "train/step": "NaN"}]
        summary = {
            "eval/fvu": 0.2 + 0.1 * i,
            "eval/l0": 30 - i,
            f"eval/{EVIL}": 1,
            "eval/__proto__": 10**400,
            "status": EVIL,
        }
        put(server, "hostile", f"h{i}", config, rows, summary, group=EVIL)
    sweep = {name: EVIL for name in sink.SWEEP_CONFIG} | {
        "figures": [{"kind": EVIL}],
        "arms": [EVIL],
        "token": "../../x",
    }
    put(server, "hostile", "hsweep", sweep, [], {}, group=EVIL, job="sweep")


@needs_chromium
@pytest.mark.parametrize("made", [ours, others, silent, hostile])
def test_a_pulled_run_is_reported_without_what_it_lacks(server, browser, tiny, tmp_path, monkeypatch, capsys, made):
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    server.runs.clear()
    made(server, tiny, tmp_path / "trained")
    before = sorted(tmp_path.iterdir())
    group = ["--group", EVIL] if made is hostile else []
    assert main(["pull", f"tester/{made.__name__}", *group]) == 0
    (folder,) = Path("runs").iterdir()
    assert main(["report", str(folder)]) == 0
    assert main(["watch", str(folder), "--once"]) == 0
    out, err = capsys.readouterr()
    assert not any((ord(c) < 32 and c not in "\n\t") or c == "\u202e" for c in out + err)
    assert "Firing rates: the run keeps no firing rates; one pulled from W&B has no weights" in out

    browser.open(folder / "report.html")
    plots = browser.js("document.querySelectorAll('.plot').length")
    for i in range(plots):
        browser.js(f"document.querySelectorAll('.plot')[{i}].scrollIntoView({{behavior: 'instant'}})")
        browser.wait(f"'drawn' in document.querySelectorAll('.plot')[{i}].dataset")
        marks = ".scatterlayer path, .heatmaplayer image, .gl-canvas"
        assert browser.js(f"document.querySelectorAll('.plot')[{i}].querySelectorAll('{marks}').length"), i
    assert browser.errors == [] and browser.requests == [] and browser.js("typeof bad") == "undefined"
    assert plots == {"ours": 7, "others": 1, "silent": 0, "hostile": 2}[made.__name__]
    lacks = browser.js(
        "document.querySelector('#figures').textContent + document.querySelector('#dictionaries')?.textContent"
    )
    assert "no firing rates" in lacks and ("it has no weights" in lacks or made is silent)
    assert sorted(tmp_path.iterdir()) == before and list(Path().iterdir()) == [Path("runs")], "nothing is elsewhere"


def test_a_pulled_hostile_project_keeps_its_numbers(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server.runs.clear()
    hostile(server)
    assert main(["pull", "tester/hostile", "--out", "x"]) == 0
    results = sae.load("x")
    assert list(results.members["eval/fvu"]) == pytest.approx([0.2, 0.3, 0.4, 0.5])
    assert list(results.members["status"]) == ["finished"] * 4 and list(results.members["member"]) == [0, 1, 2, 3]
    assert set(results.history["member"]) == {0, 1, 2, 3} and set(results.history["step"]) == {0}
    assert "d_sae" not in results.members, "a word is no width"
    assert results.definition["token"] == "pulled" and results.definition["question"] == EVIL
    assert np.isfinite(results.members["eval/l0"]).all()


def test_a_folder_that_is_called_wandb_is_not_run(tmp_path, monkeypatch):
    """`python -m wandb` would take the package of the working directory, which may be a run's folder."""
    called = []

    class Job:
        pid = 0

        def __init__(self, command, **_):
            called.append(command)

        def wait(self, *_):
            raise KeyboardInterrupt

    monkeypatch.setattr(wandb_sync.subprocess, "Popen", Job)
    monkeypatch.setattr(wandb_sync.os, "killpg", lambda *_: None)
    upload = object.__new__(wandb_sync._Upload)
    upload.server, upload.log = type("Server", (), {"entity": "e", "project": "p"}), tmp_path / "log"
    with pytest.raises(KeyboardInterrupt):
        upload.send_offline({0: tmp_path})
    assert called[0][:4] == [sys.executable, "-P", "-m", "wandb"]

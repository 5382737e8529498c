"""What W&B holds is what the tables hold: read back with wandb's own tool, for every member of a real run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sae
from sae import Sweep, grid
from sae.core.metrics import HISTOGRAM_EDGES


@pytest.fixture(scope="module")
def results(tiny, tmp_path_factory):
    members = [
        *grid(tiny, {"penalty.l1": (0.1, 0.5), "seed": (0, 1)}),
        sae.replace(tiny, {"optimizer.lr": 1e30}),
        sae.replace(tiny, {"activation": sae.TopK(k=5), "penalty.l1": 0.0}),
    ]
    out = tmp_path_factory.mktemp("wandb_tables")
    return sae.run(Sweep(name="some_sweep", members=members), out=out / "run", wandb="offline", chunk_steps=25)


def inspect(results, member: int) -> list[dict]:
    folder = next((results.folder / "wandb").glob(f"offline-run-*-{member:04d}"))
    leet = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(folder)]
    out = subprocess.run(leet, capture_output=True, text=True, check=True, cwd=results.folder, env=os.environ).stdout
    return [json.loads(line) for line in out.splitlines()]


def same(ours, theirs) -> bool:
    """JSON says NaN as a word, and W&B's summaries as null."""
    if isinstance(ours, float | np.floating) and np.isnan(ours):
        return theirs in ("NaN", None) or theirs != theirs
    return ours == theirs


@pytest.mark.parametrize("member", range(6))
def test_every_number_of_every_member_agrees(results, member):
    records = inspect(results, member)
    row = results.members.set_index("member").loc[member]
    history = results.history[results.history.member == member]

    run = next(record["run"] for record in records if record["type"] == "run")
    assert run["run_group"] == "some_sweep" and run["run_id"] == f"{results.definition['token']}-{member:04d}"
    config = {item["key"]: item["value"] for item in run["config"]["update"]} if isinstance(
        run["config"]["update"], list) else run["config"]["update"]  # fmt: skip
    for name, value in results.definition["members"][member].items():
        if not (isinstance(value, float) and np.isnan(value)):
            assert config[name] == value, name

    logged = [record["history"]["item"] for record in records if record["type"] == "history"]
    logged = [dict_of(items) for items in logged]
    steps = [items for items in logged if "train/l0" in items]
    assert [items["train/step"] for items in steps] == [25, 50, 60] == list(history.step)
    for items, (_, ours) in zip(steps, history.iterrows(), strict=True):
        assert items["train/examples"] == ours.examples
        for name in history.columns.drop(["member", "step", "examples"]):
            assert same(ours[name], items[name]), (name, ours[name], items[name])

    summary = {}
    for record in records:
        if record["type"] == "summary":
            summary |= dict_of(record["summary"]["update"])
    assert summary["status"] == row["status"]
    for name in [name for name in row.index if name.startswith("eval/")]:
        assert same(row[name], summary.get(name)), (name, row[name], summary.get(name))

    histogram = next(i for i in logged if any(k.startswith("eval/log10_firing_rate") for k in i))
    np.testing.assert_allclose(histogram["eval/log10_firing_rate.bins"], HISTOGRAM_EDGES)
    assert sum(histogram["eval/log10_firing_rate.values"]) == 48


def dict_of(items) -> dict:
    return {item["key"]: item["value"] for item in items} if isinstance(items, list) else items


def test_a_diverged_member_says_so(results):
    assert list(results.members.status) == ["finished"] * 4 + ["diverged", "finished"]

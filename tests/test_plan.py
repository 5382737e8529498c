"""How a sweep is cut, and what it is expected to need."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sae
from sae import Digits, ElasticNet, Experiment, Sweep, UserError, grid
from sae.engine import cohort, cost, plan
from sae.engine.loading import load_data
from sae.study.sweep import as_sweep

ROOT = Path(__file__).parents[1]

LARGE = """
from sae import Experiment, ElasticNet, Superposition, Sweep, grid

base = Experiment(
    name="large", data=Superposition(d_in=256, n_features=512, n_held_out=1024), d_sae=2048, batch_size=512, n_steps=2,
    penalty=ElasticNet(l1=0.1),
)
sweep = Sweep(name="large", members=grid(base, {"seed": range(16)}))
"""


@pytest.fixture(scope="module")
def sweep() -> Sweep:
    base = Experiment(name="x", data=Digits(), d_sae=16, n_steps=100, batch_size=64, penalty=ElasticNet(l1=0.1))
    return as_sweep(Sweep(name="x", members=grid(base, {"d_sae": (16, 64, 32), "seed": range(4)})))


def test_pieces_divide_the_heaviest_cohorts_and_lose_no_member(sweep):
    assert [len(c.members) for c in plan.make(sweep)] == [4, 4, 4]
    pieces = plan.make(sweep, 6)
    assert [(c.example.d_sae, len(c.members)) for c in pieces] == [(16, 4), *[(64, 1)] * 4, (32, 4)]
    assert len(plan.make(sweep, 100)) == 12
    for n in (1, 6, 100):
        assert sorted(i for c in plan.make(sweep, n) for i in c.members) == list(range(12))


def test_shards_are_disjoint_complete_and_even(sweep):
    cohorts = plan.make(sweep, 6)
    shards = [plan.shard(cohorts, f"{i}/3") for i in (1, 2, 3)]
    assert sorted(sum(shards, [])) == list(range(6))
    loads = [sum(cost.work(cohorts[i]) for i in shard) for shard in shards]
    assert max(loads) <= 1.5 * min(loads)
    assert plan.shard(cohorts[:1], "2/2") == [], "there may be nothing to do"
    for wrong in ("2", "0/2", "3/2", "a/b", "1/2/3"):
        with pytest.raises(UserError, match="shard: got .*, allowed: i/n"):
            plan.parse_shard(wrong)


def test_a_cohort_that_does_not_fit_is_divided(sweep, monkeypatch):
    cohorts = plan.make(sweep)
    data = load_data(cohorts)
    assert cost.fit(cohorts, data, free=2**40) == cohorts
    monkeypatch.setattr("sae.engine.runtime.compiler_bytes", lambda: 0)
    two = cost.memory_bytes(cohort.divide(cohorts[1], 2)[0], data[Digits()], 2)
    fitting = cost.fit(cohorts, data, free=int(two / cost.ROOM) + 1)
    assert [(c.example.d_sae, len(c.members)) for c in fitting] == [(16, 4), (64, 2), (64, 2), (32, 2), (32, 2)]
    assert [len(c.members) for c in cost.fit(cohorts, data, free=1)] == [1] * 12, "a member is never divided"


@pytest.mark.long
def test_the_expected_peak_is_within_a_fifth_of_the_measured_one(tmp_path):
    """The plan counts what its own process holds, so it is made in a process like the one that trains."""
    (tmp_path / "large.py").write_text(LARGE)
    command = [sys.executable, "-m", "sae.cli", "run", "large.py", "--wandb", "off", "--no-report"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    run = lambda *flags: subprocess.run([*command, *flags], cwd=tmp_path, env=env, capture_output=True, text=True)
    out = run("--dry-run").stdout
    expected = float(re.search(r"([\d,]+) MiB", out)[1].replace(",", "")) * 2**20
    done = run("--checkpoint-minutes", "0.0001")
    assert done.returncode == 0, done.stderr
    measured = sae.load(tmp_path / "runs/large").cohorts[0].state["peak_bytes"]
    assert 2**30 < measured, "large enough to tell"
    assert expected == pytest.approx(measured, rel=0.2), f"{expected / measured:.2f}"


def test_a_process_is_not_charged_with_the_memory_of_the_one_that_started_it():
    peak = lambda mib: f"import numpy; numpy.ones({mib} << 20, 'u1'); {inner if mib > 1 else tell}"
    tell = "from sae.engine.runtime import peak_bytes; print(peak_bytes())"
    inner = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {tell!r}], check=True)"
    run = lambda code: int(subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=-1, check=True).stdout)
    assert run(peak(2000)) < 2**30

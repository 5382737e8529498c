"""What a person sees of a run in progress, and what it says before it begins."""

import numpy as np
import pandas as pd

import sae
from sae.engine.cohort import Cohort
from sae.engine.records import Record, Start
from sae.report import plan, terminal, warnings
from sae.store import tables
from sae.study.sweep import as_sweep


def test_what_cannot_act_on_dead_latents_is_said_with_its_numbers():
    members = pd.DataFrame({
        "member": range(3), "status": "finished", "n_steps": 400, "batch_size": 64,
        "dead_after": [2_560, 25_536, 100_000], "revival": "resample",
        "revival.every": [100, 100, 100], "revival.times": 4, "auxiliary": "aux-k",
    }, dtype=object)  # fmt: skip
    told = list(warnings.idle(members))
    assert told == [
        "No latent of member 2 can count as dead while it trains (train/dead_fraction stays 0): dead_after is 100,000 "
        "examples, the training 25,600.",
        "Resample finds no dead latent in members 1-2: its last time comes after 19,200 examples, and dead_after is "
        "25,536 to 100,000.",  # after step 300, as nothing is revived after the last
        "AuxK never acts on member 2: no latent is dead before the last step, as dead_after is 100,000 examples.",
    ]
    late = members[:1].assign(**{"revival.every": 400})
    assert list(warnings.idle(late)) == [
        "Resample never acts on member 0: its first time would be after step 400, and training has 400 steps."
    ]
    assert list(warnings.idle(members[:1])) == []
    without = members[:2].drop(columns=["revival.every", "revival.times"]).assign(revival="mine", auxiliary="mine")
    assert list(warnings.idle(without)) == [], "of a class of one's own nothing is known"
    held_out = members.assign(**{"eval/fvu": 0.3, "eval/l0": 5.0, "eval/dead_fraction": 0.0})
    assert warnings.warnings(held_out, pd.DataFrame(), [], []) == told, "the report says it too"


def test_a_plan_and_the_terminal_say_what_cannot_act(tiny, tmp_path, quiet):
    one = sae.replace(tiny, {"dead_after": 10_000, "revival": sae.Resample(every=20)})
    sae.run(one, out=tmp_path / "run", wandb="off", console=quiet)
    plan.describe_plan(as_sweep(one), quiet)
    text = quiet.file.getvalue()
    for start in ("cohort 0 of 1: ", "\n"):
        assert f"{start}No latent of member 0 can count as dead while it trains" in text
        assert f"{start}Resample finds no dead latent in member 0: its last time comes after 2,560 examples" in text


def test_ranges_over_members_are_shown_and_not_a_median_alone():
    assert terminal.spread(np.array([1.0, 8.0, 60.0, np.nan])) == "8 (1 to 60)"
    assert terminal.spread(np.array([0.25, 0.25])) == "0.25" and terminal.spread(np.array([np.nan])) == "nan"


def test_the_tables_of_a_run_in_progress_lag_a_second(tiny, tmp_path, monkeypatch):
    """A log point is on the disk at once where the one before it is a second old."""
    now = [0.0]
    monkeypatch.setattr(tables.time, "monotonic", lambda: now[0])
    cohort = Cohort((0,), (tiny,))
    sink = tables.Tables(tmp_path)
    sink.start(Start(0, cohort, ("x",), 1, 0.0))
    seen = []
    for i in range(1, 6):
        now[0] += 0.6
        sink.record(Record(0, cohort, i, 64 * i, {"train/l0": np.ones(1)}))
        table = sink.files.history()
        seen.append(0 if table is None else int(table["step"].max()))
    assert seen == [0, 2, 2, 4, 4]

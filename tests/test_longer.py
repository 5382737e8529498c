"""Weights kept on the way, what is logged of a step, and a finished run that trains for longer."""

import errno
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import sae
from sae import Resample, Superposition, Sweep, UserError, grid
from sae.core import model
from sae.core.files import read_checked, write_checked
from sae.data.feed import Feed
from sae.experiment import tied_to_length
from sae.store import storage
from sae.study.sweep import as_sweep

HOW = {"wandb": "off", "chunk_steps": 5}


def sweep_of(tiny, n_steps: int, **changes) -> Sweep:
    fixed = {"optimizer.decay_steps": 0, "n_steps": n_steps} | {n.replace("__", "."): v for n, v in changes.items()}
    return Sweep(name="longer", members=grid(sae.replace(tiny, fixed), {"penalty.l1": (0.1, 0.5)}))


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """60 steps in one go, with the weights after every 17th."""
    return sae.run(sweep_of(tiny, 60), out=tmp_path_factory.mktemp("whole") / "run", keep_every=17, **HOW)


@pytest.fixture(scope="module")
def short(tiny, tmp_path_factory):
    """34 steps, with the last state."""
    return sae.run(sweep_of(tiny, 34), out=tmp_path_factory.mktemp("short") / "run", keep_state=True, **HOW)


def same(one: sae.Sae, other: sae.Sae) -> None:
    a, b = model.parameters(one), model.parameters(other)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_weights_are_kept_at_the_steps_that_were_asked_for_and_change_nothing(tiny, whole, tmp_path, quiet):
    assert whole.steps(0) == whole.steps(1) == (17, 34, 51, 60)
    same(whole.sae(1, step=60), whole.sae(1))
    assert not np.array_equal(whole.sae(1, step=34).W_dec[...], whole.sae(1, step=51).W_dec[...])
    without = sae.run(sweep_of(tiny, 60), out=tmp_path / "run", console=quiet, **HOW)
    assert without.steps(0) == (60,)
    pd.testing.assert_frame_equal(without.members, whole.members, check_exact=True)
    pd.testing.assert_frame_equal(without.history, whole.history, check_exact=True)
    same(without.sae(1), whole.sae(1))
    with pytest.raises(UserError, match="member 1: got step 18, allowed: those that are kept: 17, 34, 51, 60"):
        whole.sae(1, step=18)
    with pytest.raises(UserError, match="got member 7, allowed: 0 to 1"):
        whole.steps(7)


def test_what_is_kept_is_what_a_run_of_so_many_steps_ends_with(whole, short):
    for member in (0, 1):
        same(whole.sae(member, step=34), short.sae(member))


def test_the_numbers_of_a_step_are_those_of_its_whole_batch_with_the_weights_after_it(tiny, whole):
    experiment, one = sweep_of(tiny, 60).members[1], whole.sae(1)
    feed = Feed(experiment.data.load(), experiment.data_seed, experiment.batch_size, experiment.n_steps)
    x = feed.block(59).batches(jnp.int32(59))[0]
    W_enc, b_enc, W_dec, b_dec = (model.parameters(one)[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec"))

    def terms(W_enc, b_enc, W_dec, b_dec):
        f = jnp.maximum(W_enc @ (x - b_dec[:, None]) + b_enc[:, None], 0)
        error = W_dec.T @ f + b_dec[:, None] - x
        return jnp.sum(error**2) / 64, 0.5 * jnp.sum(f) / 64

    reconstruction, penalty = terms(W_enc, b_enc, W_dec, b_dec)
    gradient = jax.grad(lambda *args: sum(terms(*args)), argnums=(0, 1, 2, 3))(W_enc, b_enc, W_dec, b_dec)
    along = jnp.sum(gradient[2] * W_dec, axis=1, keepdims=True) * W_dec  # unit norms take this part away
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in (*gradient[:2], gradient[2] - along, gradient[3])))
    row = whole.history.set_index(["member", "step"]).loc[(1, 60)]
    found = row[["train/reconstruction", "train/penalty", "train/loss", "train/grad_norm", "train/lr"]].astype(float)
    np.testing.assert_allclose(found, [reconstruction, penalty, reconstruction + penalty, norm, 3e-3], rtol=1e-4)
    first = whole.history.set_index(["member", "step"]).loc[(1, 5)]
    assert (
        first["train/lr"] == pytest.approx(3e-3) and "train/auxiliary" not in row and "train/activation_cost" not in row
    )


def test_the_numbers_of_a_step_do_not_depend_on_the_length_of_a_chunk(tiny, whole, tmp_path, quiet):
    other = sae.run(sweep_of(tiny, 60), out=tmp_path / "run", console=quiet, wandb="off", chunk_steps=20)
    names = ["member", "step", "train/loss", "train/reconstruction", "train/penalty", "train/grad_norm", "train/lr"]
    at = lambda results: results.history[results.history.step % 20 == 0][names].reset_index(drop=True)
    pd.testing.assert_frame_equal(at(other), at(whole), check_exact=True)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation": sae.BatchTopK(k=4.0), "auxiliary": sae.AuxK(), "average": sae.Ema(), "dead_after": 300},
        pytest.param(
            {"activation": sae.JumpRelu(), "penalty": sae.L0(), "control": sae.SaeLensTargetL0(l0=5.0)},
            marks=pytest.mark.long,
        ),
    ],
    ids=["relu", "batch-top-k, aux-k, ema", "jump-relu, sae-lens-target-l0"],
)
def test_a_finished_run_goes_on_to_the_bits_of_a_longer_one(tiny, whole, short, changes, tmp_path, quiet):
    definition = lambda n_steps: sae.replace(tiny, {"optimizer.decay_steps": 0, "n_steps": n_steps, **changes})
    sweep = (lambda n: sweep_of(tiny, n)) if not changes else definition
    folder = tmp_path / "run"
    if changes:
        sae.run(definition(34), out=folder, keep_state=True, console=quiet, **HOW)
        whole = sae.run(definition(60), out=tmp_path / "whole", console=quiet, **HOW)
    else:
        shutil.copytree(short.folder, folder)
    longer = sae.run(sweep(60), out=folder, keep_state=True, console=quiet, **HOW)
    assert "trained for 34 steps, goes on to 60" in quiet.file.getvalue()
    pd.testing.assert_frame_equal(longer.members, whole.members, check_exact=True)
    for member in whole.members.member:
        same(longer.sae(member), whole.sae(member))
    common = lambda results: results.history[~results.history.step.isin([34, 35])].reset_index(drop=True)
    pd.testing.assert_frame_equal(common(longer), common(whole), check_exact=True)
    again = sae.run(sweep(60), out=folder, console=quiet, **HOW)
    assert again.finished and "this run is finished already" in quiet.file.getvalue()
    assert (folder / "cohorts/000/state").exists() and not (folder / "cohorts/000/checkpoints").exists()


def test_a_stop_between_the_new_definition_and_the_cohorts_is_made_good(tiny, whole, short, tmp_path, quiet):
    shutil.copytree(short.folder, tmp_path / "run")
    path = tmp_path / "run/definition.json"
    definition = read_checked(path)
    for member in definition["members"]:
        member["n_steps"] = 60
    write_checked(path, definition)
    same(sae.run(sweep_of(tiny, 60), out=tmp_path / "run", console=quiet, **HOW).sae(0), whole.sae(0))


REFUSED = {
    "cohort 0 cannot be trained for longer: its last state was not kept; a run keeps it with --keep-state": {},
    "optimizer.decay_steps = 20, which end with the run; use --out DIR or --fresh": {"optimizer.decay_steps": 20},
    "penalty.p falls from 1 to 0.5 over a share of the run": {"penalty": sae.Lp()},
    "revival: it acts after step 20, where the shorter run ended": {"revival": Resample(every=10)},
    "dead_after of member 0 follows from n_steps, 128 in the folder and 256 in the sweep; add --dead-after 128": {
        "dead_after": None
    },
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_run_that_cannot_go_on_says_why_and_stays_as_it_is(message, tiny, tmp_path, quiet):
    changes = {"optimizer.decay_steps": 0, "n_steps": 20, **REFUSED[message]}
    short = sae.replace(tiny, changes)
    results = sae.run(short, out=tmp_path / "run", wandb="off", console=quiet)
    before = results.definition
    with pytest.raises(UserError, match=message) as error:
        sae.run(sae.replace(short, {"n_steps": 40}), out=tmp_path / "run", wandb="off", console=quiet)
    assert "\n" not in str(error.value)
    assert sae.load(tmp_path / "run").definition == before and sae.load(tmp_path / "run").finished


def test_a_choice_of_ones_own_that_is_told_the_length_is_taken_to_follow_it(tiny):
    @sae.definition
    class Mine(sae.Penalty):
        """A penalty."""

    one = sae.replace(tiny, {"optimizer.decay_steps": 0})
    assert tied_to_length(one, 30) is None
    why = "penalty: Mine is told n_steps, and may follow it"
    assert tied_to_length(sae.replace(one, {"penalty": Mine()}), 30) == why


def test_sampled_examples_go_on_where_as_many_are_drawn_at_a_time(tmp_path, quiet):
    data = Superposition(d_in=16, n_features=32)
    base = sae.Experiment(name="sampled", data=data, d_sae=24, n_steps=30, batch_size=64, dead_after=500)
    run = lambda n, to, **how: sae.run(
        sae.replace(base, {"n_steps": n}), out=tmp_path / to, wandb="off", console=quiet, **how
    )
    run(30, "run", keep_state=True)
    with pytest.raises(UserError, match="under 1,280 steps, n_steps affects how sampled examples are rounded"):
        run(100, "run")
    run(1_290, "long", keep_state=True)
    same(run(1_300, "long").sae(0), run(1_300, "whole").sae(0))


def test_a_full_disk_leaves_what_was_kept_and_the_run_goes_on(tiny, whole, tmp_path, quiet, monkeypatch):
    write, written = storage.write_atomically, []

    def full(path, data):
        if path.parent.name == "steps":
            written.append(path)
            if len(written) == 3:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, data)

    monkeypatch.setattr(storage, "write_atomically", full)
    how = {"out": tmp_path / "run", "keep_every": 17, "console": quiet} | HOW
    with pytest.raises(OSError, match="No space left"):
        sae.run(sweep_of(tiny, 60), **how)
    unfinished = sae.load(tmp_path / "run")
    assert unfinished.steps(0) == (17, 34)
    same(unfinished.sae(1, step=34), whole.sae(1, step=34))
    monkeypatch.undo()
    results = sae.run(sweep_of(tiny, 60), **how)
    files = lambda results: {path.name: path.read_bytes() for path in results.folder.glob("cohorts/000/steps/*")}
    assert files(results) == files(whole) and len(files(whole)) == 3
    path = next(results.folder.glob("cohorts/000/steps/*34.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="000000034.safetensors is damaged or missing"):
        results.sae(0, step=34)
    same(results.sae(0), whole.sae(0))


def test_weights_that_the_disk_has_no_room_for_are_refused_before_training(tiny, tmp_path, quiet, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    with pytest.raises(UserError, match="keep_every: got 1, that is .* allowed: what the disk has room for"):
        sae.run(sweep_of(tiny, 60), out=tmp_path / "run", keep_every=1, console=quiet, **HOW)
    assert not list(tmp_path.glob("run/cohorts/000/*.parquet"))


def test_a_window_that_is_left_open_follows_the_length_of_training(tiny, tmp_path, quiet):
    open_ = sae.replace(tiny, {"dead_after": None})
    short, long = as_sweep(Sweep(name="x", members=grid(open_, {"n_steps": (60, 200_000)}))).members
    assert (short.dead_after, long.dead_after) == (60 * 64 // 10, 100_000)
    assert as_sweep(sae.replace(open_, {"n_steps": 2})).members[0].dead_after == 64, "a batch at least"
    assert sae.study.sweep.varying([short, long]) == ["n_steps"], "it follows, and is no axis of its own"
    assert sae.study.sweep.varying([short, sae.replace(short, {"dead_after": 5})]) == ["dead_after"]
    results = sae.run(open_, out=tmp_path / "run", wandb="off", console=quiet)
    assert results.definition["members"][0]["dead_after"] == results.members["dead_after"][0] == 384

"""Measures of trained members: taken once, kept beside the tables, read by claims and figures."""

import dataclasses
import html
import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

import sae
from sae import AtMost, Claim, Digits, ElasticNet, Experiment, Profile, Sweep, UserError, grid
from sae.analysis import copying, denoising, members, one_latent
from sae.analysis.copying import Copying
from sae.analysis.denoising import Denoising
from sae.analysis.one_latent import OneLatent
from sae.analysis.small_latents import SmallLatents, small_latents
from sae.cli.main import main as cli
from sae.core.model import on_examples
from sae.core.types import Interrupted
from sae.report import build
from sae.store import storage
from sae.study import claims
from sae.study.quantities import Arm, AtEnd

BASE = Experiment(name="asked", data=Digits(), d_sae=8, penalty=ElasticNet(), batch_size=64, n_steps=40)
MEMBERS = grid(BASE, {"d_sae": (8, 16), "penalty.l1": (0.0, 0.5), "seed": (0, 1)})
CLAIM = Claim("copies less", AtMost(AtEnd(arm=Arm(along="penalty.l1"), metric="analysis/copy_index"), 1.0))
SWEEP = Sweep(
    name="asked",
    members=MEMBERS,
    measures=[Copying(n=100)],
    claims=[CLAIM],
    figures=[Profile(metric="analysis/copy_index", x="penalty.l1")],
)


@dataclasses.dataclass(frozen=True)
class Broken:
    """A measure that fails."""

    columns = {"analysis/broken": "nothing"}

    def __call__(self, results):
        raise ValueError("no such thing")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return sae.run(SWEEP, out=tmp_path_factory.mktemp("asked") / "run", wandb="off")


def test_the_members_table_gains_the_columns_of_each_member(results):
    members = results.members
    x = Digits().load()
    x = jnp.asarray(x.examples(x.held_out)[:100])
    for row in members.to_dict("records"):
        one = copying.copying(on_examples(results.sae(row["member"])), x, jax.random.key(0))
        for name in ("fvu_permuted", "degrees_of_freedom", "copy_index"):
            np.testing.assert_allclose(row[f"analysis/{name}"], one[name], rtol=1e-5)
    pd.testing.assert_frame_equal(sae.load(results.folder).members, members)
    pd.testing.assert_frame_equal(results.everyone[["analysis/copy_index"]], members[["analysis/copy_index"]])


def test_claims_and_figures_read_them(results):
    (claim,) = claims.read(results.folder)
    assert claim["verdict"] == "holds" and len(claim["clauses"]) == 2
    assert len(results.draw(SWEEP.figures[0]).data)
    text = lambda page: html.unescape(page.read_text()).replace("\\u0027", "'")
    page = text(build.build([results]))
    meaning = Copying.columns["analysis/copy_index"]
    assert page.count(meaning) >= 2, "under its figure, and over its column in the table of members"
    assert meaning in text(build.build([results, results], results.folder / "both.html"))


def test_what_was_asked_is_not_asked_again_and_what_is_new_is(results, monkeypatch, capsys):
    before = (results.folder / storage.ANALYSIS).stat().st_mtime_ns
    sae.run(SWEEP, out=results.folder, wandb="off")
    assert (results.folder / storage.ANALYSIS).stat().st_mtime_ns == before
    with_other = dataclasses.replace(SWEEP, measures=[Copying(n=50)])
    sae.run(with_other, out=results.folder, wandb="off")
    assert results.asked == ("Copying(n=50, seed=0)",), "the columns of one measure stand once"
    sae.run(SWEEP, out=results.folder, wandb="off")
    assert results.asked == ("Copying(n=100, seed=0)",)


def test_a_measure_that_fails_costs_only_its_columns(results, capsys):
    lost = Claim("x", AtMost(AtEnd(arm=Arm(along="penalty.l1"), metric="analysis/broken"), 1.0))
    sweep = dataclasses.replace(SWEEP, measures=[Broken(), Copying(n=100)], claims=[lost, CLAIM])
    sae.run(sweep, out=results.folder, wandb="off")
    assert "Broken has no answer: no such thing" in capsys.readouterr().err
    verdicts = claims.read(results.folder)
    assert [claim["verdict"] for claim in verdicts] == ["undecided", "holds"]
    assert verdicts[0]["clauses"][0]["reason"] == "analysis/broken was not measured"


@dataclasses.dataclass(frozen=True)
class Slow:
    """A measure that is interrupted by a signal."""

    columns = {"analysis/slow": "nothing"}

    def __call__(self, results):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)


def test_a_signal_ends_a_measure_at_once_and_what_was_asked_before_is_kept(results):
    (results.folder / storage.ANALYSIS).unlink()
    sweep = dataclasses.replace(SWEEP, measures=[Copying(n=100), Slow()])
    before, begun = signal.getsignal(signal.SIGTERM), time.monotonic()
    with pytest.raises(Interrupted):
        sae.run(sweep, out=results.folder, wandb="off")
    assert time.monotonic() - begun < 50 and signal.getsignal(signal.SIGTERM) == before
    assert results.asked == ("Copying(n=100, seed=0)",)


def test_a_run_all_of_whose_members_diverged_has_no_answer(tmp_path, capsys):
    base = sae.replace(BASE, {"optimizer": sae.Adam(lr=1e30), "n_steps": 30})
    results = sae.run(Sweep(name="x", members=[base], measures=[Copying(n=10)]), out=tmp_path / "run", wandb="off")
    assert list(results.members["status"]) == ["diverged"]
    assert "Copying has no answer: all members diverged" in capsys.readouterr().err


def test_a_damaged_file_of_answers_is_asked_again(results):
    path = results.folder / storage.ANALYSIS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(sae.UserError, match="analysis.parquet is damaged: .* `sae run` makes it anew"):
        _ = results.members
    sae.run(SWEEP, out=results.folder, wandb="off")
    assert results.members["analysis/copy_index"].notna().all()


def test_sae_claims_asks_what_was_never_asked(results, tmp_path, capsys):
    (results.folder / storage.ANALYSIS).unlink()
    (tmp_path / "asked.py").write_text("from tests.test_measures import SWEEP as sweep\n")
    assert cli(["claims", str(results.folder), str(tmp_path / "asked.py")]) == 0
    assert "holds" in capsys.readouterr().out
    assert results.asked == ("Copying(n=100, seed=0)",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"measures": [Copying]}, "allowed: measures such as"),
        ({"measures": [Copying(), Copying(n=3)]}, "two measures have the column"),
        ({"measures": []}, "no metric 'analysis/copy_index'"),
    ],
)
def test_a_sweep_is_checked_before_it_is_trained(changes, message):
    with pytest.raises(UserError, match=message):
        sae.study.sweep.as_sweep(dataclasses.replace(SWEEP, **changes))


def test_small_latents_of_each_member(results):
    table = SmallLatents(n=50)(results)
    rows = Digits().load()
    x = jnp.asarray(rows.examples(rows.held_out)[:50])
    for member, row in table.iterrows():
        found = small_latents(on_examples(results.sae(member)), x)
        np.testing.assert_allclose(row["analysis/small_latents"], np.mean(found["count"]), rtol=1e-6)
        np.testing.assert_allclose(row["analysis/small_share"], found["share"], rtol=1e-6)


def test_one_latent_of_each_member_beside_its_controls(results):
    table = OneLatent()(results)
    assert set(table) == set(OneLatent.columns)
    source = Digits()
    rows, labels = source.load(), source.labels()[1]
    x, train = rows.examples(rows.held_out), rows.examples(rows.train)
    found = one_latent.one_latent(on_examples(results.sae(1)), x, jnp.asarray(labels), train, jax.random.key(0))
    row = table.loc[1]
    for name, of in (("tau_1", "tau_1"), ("one_latent_share", "share"), ("purity", "purity"), ("winners", "winners")):
        np.testing.assert_allclose(row[f"analysis/{name}"], found[of], rtol=1e-5)
    (narrow,) = {float(v) for v in table["analysis/purity_k_means"][:4]}
    (wide,) = {float(v) for v in table["analysis/purity_k_means"][4:]}
    assert wide > narrow > row["analysis/purity_chance_k_means"] > 0.1, "more centroids, purer; chance is below"
    assert (table["analysis/nearest_cosine_k_means"] > 0.7).all(), "a centroid looks like digits"


def test_one_latent_needs_labels_and_denoising_needs_images(tmp_path):
    base = sae.replace(BASE, {"data": sae.Superposition(n_held_out=128), "n_steps": 2})
    results = sae.run(base, out=tmp_path / "run", wandb="off")
    for measure, message in ((OneLatent(), "allowed: data with labels"), (Denoising(), "allowed: data of images")):
        with pytest.raises(UserError, match=message):
            measure(results)


def test_denoising_of_each_member_beside_its_controls(results):
    measure = Denoising(n=200)
    table = measure(results)
    assert set(table) == set(measure.columns)
    rows = Digits().load()
    x, scale = jnp.asarray(rows.examples(rows.held_out)[100:200]), denoising.scale_of(rows.examples(rows.train))
    key = jax.random.split(jax.random.fold_in(jax.random.key(0), 2))[1]  # the third corruption, the test half
    seen, _ = denoising.Gaussian(sigma=0.3)(key, x, scale, (8, 8))
    gains = [float(denoising.mean_delta_psnr(on_examples(results.sae(member)), seen, x)) for member in table.index]
    np.testing.assert_allclose(table["analysis/gain_gaussian_0.3"], gains, atol=1e-4)
    from sae.analysis import controls

    pca = controls.pca_of_each_rank(rows.examples(rows.train))
    by_rank = np.asarray(members.each(denoising.mean_delta_psnr, pca, seen, x))
    rank = int(table["analysis/rank_gaussian_0.3_pca"].iloc[0])
    np.testing.assert_allclose(table["analysis/gain_gaussian_0.3_pca"], by_rank[rank], atol=1e-3)
    assert by_rank[rank] > by_rank.max() - 0.2, "a rank chosen on one half is nearly the best on the other"
    np.testing.assert_allclose(table["analysis/gain_gaussian_0.3_mean"], by_rank[0], atol=1e-3)
    assert (table["analysis/gain_gaussian_0.1_blur"].abs() < 1).all()


def test_denoising_chooses_on_one_half_of_the_images_and_reports_the_other(results):
    table = Denoising(n=200)(results)
    rows = Digits().load()
    x, scale = jnp.asarray(rows.examples(rows.held_out)[:200]), denoising.scale_of(rows.examples(rows.train))
    for i, (name, corruption) in enumerate(denoising.CORRUPTIONS.items()):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), i))
        for key, half, suffix in ((keys[0], x[:100], "_validation"), (keys[1], x[100:], "")):
            seen, mask = corruption(key, half, scale, (8, 8))
            gains = [
                float(denoising.mean_delta_psnr(on_examples(results.sae(member)), seen, half)) for member in table.index
            ]
            np.testing.assert_allclose(table[f"analysis/gain_{name}{suffix}"], gains, atol=1e-4)
        if name in denoising.LOCAL:
            off = np.abs(np.asarray(seen - on_examples(results.sae(2))(seen)))
            by_hand = roc_auc_score(np.asarray(mask).ravel(), off.ravel())
            assert table["analysis/auroc_" + name][2] == pytest.approx(by_hand, abs=1e-6)
            off = np.abs(np.asarray(seen) - rows.examples(rows.train).mean(axis=0))
            by_hand = roc_auc_score(np.asarray(mask).ravel(), off.ravel())
            assert table[f"analysis/auroc_{name}_mean"][2] == pytest.approx(by_hand, abs=1e-3), "but for ties"

"""Measures of a sweep's trained members: asked once, kept beside the tables, read by claims and figures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import sae
from sae import AtMost, Claim, Digits, ElasticNet, Experiment, Profile, Sweep, UserError, claims, cli, grid, storage
from sae.analysis import copying
from sae.analysis.copying import Copying
from sae.quantities import Arm, AtEnd

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
    """A measure that cannot be asked."""

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
        one = copying.copying(results.sae(row["member"]), x, jax.random.key(0))
        for name in ("fvu_permuted", "degrees_of_freedom", "copy_index"):
            np.testing.assert_allclose(row[f"analysis/{name}"], one[name], rtol=1e-5)
    pd.testing.assert_frame_equal(sae.load(results.folder).members, members)
    pd.testing.assert_frame_equal(results.everyone[["analysis/copy_index"]], members[["analysis/copy_index"]])


def test_claims_and_figures_read_them(results):
    (claim,) = claims.read(results.folder)
    assert claim["verdict"] == "holds" and len(claim["clauses"]) == 2
    assert len(results.draw(SWEEP.figures[0]).data)


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


def test_a_damaged_file_of_answers_is_asked_again(results):
    path = results.folder / storage.ANALYSIS
    path.write_bytes(path.read_bytes()[:-100])
    assert results.asked == () and "analysis/copy_index" not in results.members
    sae.run(SWEEP, out=results.folder, wandb="off")
    assert results.members["analysis/copy_index"].notna().all()


def test_sae_claims_asks_what_was_never_asked(results, tmp_path, capsys):
    (results.folder / storage.ANALYSIS).unlink()
    (tmp_path / "asked.py").write_text("from tests.test_measures import SWEEP as sweep\n")
    assert cli.main(["claims", str(results.folder), str(tmp_path / "asked.py")]) == 0
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
        sae.sweep.as_sweep(dataclasses.replace(SWEEP, **changes))

"""Transcoders and crosscoders: rows of several parts, from files to trained weights, against what can be known."""

import dataclasses
import io
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import sae
from sae import (
    Adam,
    Arrays,
    AuxK,
    BatchTopK,
    Crosscoder,
    Digits,
    ElasticNet,
    Experiment,
    Free,
    JumpRelu,
    Relu,
    Resample,
    Sae,
    Transcoder,
    UserError,
    train,
)
from sae.analysis import sources
from sae.analysis.copying import Copying
from sae.analysis.small_latents import SmallLatents
from sae.core import model
from sae.core.normalization import split
from sae.core.types import Interrupted
from sae.data.feed import Feed
from sae.data.rows import table_fingerprint
from sae.data.source import parts_of
from sae.engine import cohort, cost
from sae.engine.loading import load_data
from sae.experiment import validate
from sae.runner import training

RNG = np.random.default_rng(0)
A = RNG.normal(size=(3, 5))
X = RNG.normal(2.0, 3.0, size=(600, 5)).astype(np.float32)
Y = (X @ A.T + 7).astype(np.float32)


def normal(*shape) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Inputs [600, 5] and their targets [600, 3], a linear map of them."""
    folder = tmp_path_factory.mktemp("pairs")
    np.save(folder / "x.npy", X)
    np.save(folder / "y.npy", Y)
    return str(folder / "x.npy"), str(folder / "y.npy")


@pytest.fixture(scope="module")
def transcoder(files) -> Experiment:
    return Experiment(
        name="transcoder", data=Arrays(path=files, normalize="standardize"), d_sae=12, task=Transcoder(skip=True),
        penalty=ElasticNet(l1=0.1), auxiliary=AuxK(), apply_b_dec_to_input=False, b_dec_init="mean", dead_after=64,
        revival=Resample(every=15, times=1, n_candidates=128), optimizer=Adam(lr=1e-2), batch_size=32, n_steps=40,
    )  # fmt: skip


@pytest.fixture(scope="module")
def crosscoder(files) -> Experiment:
    return Experiment(
        name="crosscoder", data=Arrays(path=files, normalize="unit-mean-norm"), d_sae=12, task=Crosscoder(),
        penalty=ElasticNet(l1=0.05, weighted=True), constraint=Free(), apply_b_dec_to_input=False,
        optimizer=Adam(lr=1e-2), batch_size=32, n_steps=40,
    )  # fmt: skip


# --- rows ---


def test_each_array_is_normalized_on_its_own():
    found = sae.rows((X[:500], Y[:500]), (X[500:], Y[500:]), "centre-unit-mean-norm", "pairs")
    assert found.parts == (5, 3) and found.d_in == 8 and found.n_train == 500
    for examples, raw in zip(found.split(found.training_examples()), (X[:500], Y[:500]), strict=True):
        centred = raw - raw.mean(0, dtype=np.float64)
        np.testing.assert_allclose(examples, centred / np.linalg.norm(centred, axis=1).mean(), rtol=1e-4, atol=1e-6)
    alone = [sae.rows(raw[:500], raw[500:], "standardize", "one") for raw in (X, Y)]
    both = sae.rows((X[:500], Y[:500]), (X[500:], Y[500:]), "standardize", "pairs")
    np.testing.assert_array_equal(both.normalization.scale, np.concatenate([one.normalization.scale for one in alone]))


def test_a_row_is_left_out_where_one_of_its_arrays_is_an_outlier():
    x, y = X.copy(), Y.copy()
    x[3], y[5] = 1e4, 1e4
    found = sae.rows((x[:500], y[:500]), (x[500:], y[500:]), "none", "pairs", max_norm=10.0)
    np.testing.assert_array_equal(found.train[:], np.delete(np.concatenate([x, y], 1)[:500], [3, 5], axis=0))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (((X, Y[:-1]), (X, Y)), "train: got 600 and 599 rows, allowed: equally many"),
        (((X, Y), (X, X)), r"train has 5 \+ 3 columns and held-out 5 \+ 5"),
        (((X, np.ones_like(Y)), (X, Y)), "all 600 training rows of array 2 are equal"),
        (((X, np.where(Y == Y[4, 1], np.nan, Y)), (X, Y)), "nan at row 4, column 1 of array 2"),
        (((X, Y[:, 0]), (X, Y)), r"train has shape \(600,\)"),
    ],
)
def test_arrays_that_do_not_belong_together_are_one_line(arrays, message):
    with pytest.raises(UserError, match=message):
        sae.rows(*arrays, "centre", "pairs")


def test_files_side_by_side_and_their_fingerprints(tmp_path, files):
    source = Arrays(path=files)
    assert source.load().parts == (5, 3)
    np.testing.assert_array_equal(source.load().train[:], np.concatenate([X, Y], axis=1)[:540])
    named = source.fingerprint()
    assert len(named) == 8 and named.items() >= Arrays(path=files[0]).fingerprint().items()
    assert named.items() >= table_fingerprint(Y[:540], "training", of=" of array 2").items()

    np.savez(tmp_path / "both.npz", x=X.astype(np.float16), y=Y)
    one_file = Arrays(path=str(tmp_path / "both.npz"), key=("x", "y"), held_out_path=files, normalize="none")
    with pytest.raises(UserError, match="key: got 2, allowed: as many as arrays"):
        validate(Experiment(name="keys", data=dataclasses.replace(one_file, path=files[:1] * 3), d_sae=2, n_steps=1))
    loaded = dataclasses.replace(one_file, held_out_path=None).load()
    assert loaded.parts == (5, 3) and loaded.training_examples().dtype == np.float32
    np.save(tmp_path / "short.npy", Y[:-1])
    with pytest.raises(UserError, match=r"x.npy 600 and .*short.npy 599, allowed: equally many"):
        Arrays(path=(files[0], str(tmp_path / "short.npy"))).load()


def test_what_streams_from_files_is_what_stays_on_the_device(files):
    data = Arrays(path=files).load()
    feeds = [Feed(data, 3, 32, 40, resident_bytes=most) for most in (2**31, 0)]
    first, second = (feed.block(4).batches(jnp.int32(4)) for feed in feeds)
    assert first.shape[1:] == (8, 32)
    np.testing.assert_array_equal(first, second)


# --- one pass ---


def test_a_transcoder_does_by_hand_what_it_says():
    W_enc, W_dec, W_skip, b_enc, b_dec = normal(4, 5), normal(4, 3), normal(3, 5), normal(4), normal(3)
    one = Sae(W_enc, b_enc, W_dec, b_dec, Relu(), apply_b_dec_to_input=False, W_skip=W_skip)
    x, y = normal(5, 7), normal(3, 7)
    out = model.forward(one, jnp.concatenate([x, y]))
    f = np.maximum(np.asarray(W_enc) @ x + b_enc[:, None], 0)
    np.testing.assert_allclose(out.latents, f, atol=1e-5)
    np.testing.assert_allclose(out.x_hat, W_dec.T @ f + b_dec[:, None] + W_skip @ x, atol=1e-5)
    np.testing.assert_array_equal(out.y, y)
    np.testing.assert_allclose(one(x.T), out.x_hat.T, atol=1e-6)
    np.testing.assert_allclose(one.decode(one.encode(x.T)), out.x_hat.T - x.T @ W_skip.T, atol=1e-5)


@pytest.mark.parametrize("skip", [False, True])
def test_folding_keeps_the_function_of_raw_rows(skip):
    seen = sae.rows((X, Y), (X, Y), "standardize", "pairs").normalization
    W_skip = normal(3, 5) if skip else None
    one = Sae(
        normal(4, 5), normal(4), normal(4, 3), normal(3), Relu(), apply_b_dec_to_input=False,
        normalization=seen, W_skip=W_skip,
    )  # fmt: skip
    folded = model.fold(one)
    assert folded.normalization is None
    np.testing.assert_allclose(folded.encode(X), one.encode(X), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(folded(X), one(X), rtol=1e-3, atol=1e-3)


def losses(e: Experiment, parts, n=9):
    """A state, a batch of rows, and the loss as a function of the parameters."""
    rows = normal(sum(parts), n)
    one = train.init(e, rows, parts).sae
    one = jax.tree.map(lambda leaf: leaf + 0.3 * normal(*leaf.shape), one)
    return one, rows, lambda sae, rows=rows, e=e: train.loss(sae, e, jnp.int32(0), rows)[0]


@pytest.mark.parametrize("name", ["transcoder", "crosscoder"])
def test_gradients_are_those_of_finite_differences(name, request):
    e = dataclasses.replace(request.getfixturevalue(name), activation=Relu())
    with jax.enable_x64(True):
        one, rows, loss = losses(e, (5, 3))
        one, rows = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (one, rows))
        loss = jax.jit(loss)
        gradient = jax.jit(jax.grad(lambda s: loss(s, rows)))(one)
        for key in model.parameters(one):
            value = getattr(one, key)[...]
            along = jnp.asarray(RNG.normal(size=value.shape))
            at = lambda t, key=key, value=value, along=along: loss(model.replace(one, **{key: value + t * along}), rows)
            by_difference = (at(1e-6) - at(-1e-6)) / 2e-6
            assert float(jnp.sum(getattr(gradient, key)[...] * along)) == pytest.approx(float(by_difference), rel=1e-5)


def test_a_crosscoder_of_two_copies_is_the_autoencoder(crosscoder):
    """Half the encoder and the whole decoder for each copy: the same latents, and twice the loss."""
    W_enc, W_dec, b_enc, b_dec, x = normal(12, 5), normal(12, 5), normal(12), normal(5), normal(5, 9)
    penalized = dataclasses.replace(crosscoder, penalty=ElasticNet(l1=0.3, weighted=True))
    alone = dataclasses.replace(penalized, task=sae.Autoencoder())
    one = Sae(W_enc, b_enc, W_dec, b_dec, None, False, own={})
    twice = Sae(
        jnp.tile(W_enc / 2, 2), b_enc, jnp.tile(W_dec, 2), jnp.tile(b_dec, 2), None, False, own={}, parts=(5, 5)
    )
    loss = lambda e: jax.value_and_grad(lambda s, rows: train.loss(s, e, jnp.int32(0), rows), has_aux=True)
    (a, out), by_one = loss(alone)(one, x)
    (b, both), by_two = loss(penalized)(twice, jnp.concatenate([x, x]))
    np.testing.assert_allclose(both.latents, out.latents, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(both.norms, 2 * out.norms, rtol=1e-5)
    assert float(b) == pytest.approx(2 * float(a), rel=1e-5)
    np.testing.assert_allclose(by_two.W_dec[...], jnp.tile(by_one.W_dec[...], 2), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(by_two.W_enc[...], 2 * jnp.tile(by_one.W_enc[...], 2), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(sources.norm_shares(twice), 0.5, rtol=1e-6)
    np.testing.assert_allclose(sources.source_cosines(twice)[:, 0, 1], 1, rtol=1e-5)


def test_norms_of_a_crosscoders_rows_are_sums_over_sources():
    W = jnp.array([[3.0, 4.0, 5.0], [0.0, 0.0, 2.0]])
    one = Sae(W, jnp.zeros(2), W, jnp.zeros(3), BatchTopK(k=1.0), parts=(2, 1))
    np.testing.assert_allclose(model.decoder_norms(one), [10, 2])
    np.testing.assert_allclose(sources.norm_shares(one), [[0.5, 0.5], [0, 1]], atol=1e-6)
    latents, _ = one.activation.training(one, jnp.array([[1.0], [4.9]]))  # contributions 10 and 9.8
    np.testing.assert_allclose(latents, [[1], [0]])
    with pytest.raises(UserError, match="got sources of widths"):
        sources.source_cosines(one)


def test_a_revived_latent_of_a_transcoder_reads_the_input_and_writes_what_is_left(transcoder):
    rows, e = normal(8, 64), dataclasses.replace(transcoder, revival=Resample(every=1, encoder_scale=0.5))
    state = train.init(e, rows, (5, 3))
    moved = model.replace(state.sae, W_skip=normal(3, 5), b_dec=normal(3))
    state = dataclasses.replace(state, sae=moved, silent=jnp.full(12, 10**6))
    new = train.revive(e, state, jnp.int32(1), rows[None]).sae
    x, y = rows[:5].T, rows[5:].T
    directions = model.unit_rows(y - moved.b_dec[...] - x @ moved.W_skip[...].T)
    nearest = jnp.argmax(new.W_dec[...] @ directions.T, axis=1)
    np.testing.assert_allclose(new.W_dec[...], directions[nearest], atol=1e-5)
    np.testing.assert_allclose(new.W_enc[...], 0.5 * model.unit_rows(x)[nearest], atol=1e-5)


# --- definitions ---


def test_a_task_that_does_not_fit_is_one_line(transcoder, crosscoder, files, tmp_path, quiet):
    wrong = {
        "task.transcoder: got apply_b_dec_to_input=True": (transcoder, {"apply_b_dec_to_input": True}),
        "constraint.tied: got True, allowed: False": (transcoder, {"constraint": sae.UnitNormNoBias(tied=True)}),
    }
    for message, (base, changes) in wrong.items():
        with pytest.raises(UserError, match=message):
            validate(sae.replace(base, changes))
    misfits = {
        "task: got rows of 2 parts, allowed: one with autoencoder; transcoder .* and crosscoder": (
            transcoder, {"task": sae.Autoencoder()},
        ),
        "task: got rows of 1 part, allowed: two with transcoder": (transcoder, {"data": Digits()}),
        "task: got rows of one part, allowed: two or more": (crosscoder, {"data": Arrays(path=files[0])}),
    }  # fmt: skip
    for message, (base, changes) in misfits.items():
        with pytest.raises(UserError, match=message):
            sae.run(sae.replace(base, changes), out=tmp_path / "never", wandb="off", console=quiet)
    assert not (tmp_path / "never").exists()


@sae.definition
class Fresh(sae.Source):
    """Fresh rows of two parts, with features of the target."""

    width: int = sae.static(3)
    image_shape: tuple[int, ...] | None = sae.static(None)
    parts: tuple[int, ...] = sae.static((5, 3))

    def load(self):
        features = np.eye(4, self.width, dtype=np.float32)
        return sae.Sampler(
            d_in=8, sample=lambda key, n: jax.random.normal(key, (n, 8)), mean=np.zeros(8, np.float32), n_held_out=9,
            features=features, frequencies=np.ones(4), parts=self.parts, image_shape=self.image_shape,
        )  # fmt: skip


def test_a_source_of_ones_own_says_how_its_rows_divide(transcoder):
    plan = lambda **fields: cohort.plan([dataclasses.replace(transcoder, data=Fresh(**fields))])
    assert parts_of(load_data(plan())[Fresh()]) == (5, 3)
    for message, fields in {
        "features: got width 8, allowed: that of what is reconstructed, 3": {"width": 8},
        r"image_shape: got \(2, 4\), allowed: None": {"image_shape": (2, 4)},
        r"parts: got 5 \+ 4, allowed: widths that make 8": {"parts": (5, 4)},
    }.items():
        with pytest.raises(UserError, match=message):
            load_data(plan(**fields))


def test_cost_counts_the_products_of_both_sides(transcoder):
    e = dataclasses.replace(transcoder, auxiliary=sae.NoAuxiliary())
    both_sides = 2 * 32 * 12 * (2 * 5 + 3 * 3)  # forward and backward: the input of a step needs no gradient
    assert cost.step_flops(e, (5, 3)) == both_sides + 2 * 2 * 32 * 5 * 3
    assert cost.step_flops(dataclasses.replace(e, task=Transcoder()), (5, 3)) == both_sides
    assert cost.parameters(e, (5, 3)) == 12 * (5 + 3 + 1) + 3 + 5 * 3


# --- whole runs ---


def run(definition, folder, quiet, **how):
    return sae.run(definition, out=folder, wandb="off", console=quiet, **how)


def test_a_skip_alone_recovers_a_linear_map(files, tmp_path, quiet):
    """No latent fires, so W_skip and b_dec are all there is; folded, they are the map of raw rows."""
    e = Experiment(
        name="linear", data=Arrays(path=files, normalize="standardize"), d_sae=2, task=Transcoder(skip=True),
        activation=JumpRelu(threshold=1e6), apply_b_dec_to_input=False, batch_size=64, n_steps=1_500,
        optimizer=Adam(lr=0.02, decay_steps=1_000),
    )  # fmt: skip
    results = run(e, tmp_path / "linear", quiet)
    one = model.fold(results.sae(0))
    np.testing.assert_allclose(one.W_skip[...], A, atol=1e-5)
    np.testing.assert_allclose(one.b_dec[...], 7, atol=1e-4)
    assert results.members["eval/fvu"][0] < 1e-10
    assert results.members["eval/l0"][0] == 0


def same(a, b):
    a, b = model.parameters(a), model.parameters(b)
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@pytest.fixture(scope="module")
def whole(transcoder, crosscoder, tmp_path_factory):
    """A sweep of two transcoders and a crosscoder on the same rows, its results, and what the run said."""
    folder, console = tmp_path_factory.mktemp("tasks"), Console(file=io.StringIO(), width=200)
    members = [*sae.grid(transcoder, {"seed": (0, 1)}), dataclasses.replace(crosscoder, data=transcoder.data)]
    sweep = sae.Sweep(name="tasks", members=members, measures=[SmallLatents(), Copying()])
    return sweep, run(sweep, folder / "whole", console, report=True), console.file.getvalue()


def test_runs_stream_and_resume_bit_for_bit(whole, tmp_path, quiet, monkeypatch):
    sweep, results, _ = whole
    saved = iter([(0, False), (signal.SIGTERM, True)])
    with monkeypatch.context() as patch:
        patch.setattr(training.Work, "orders", lambda work, since: next(saved, (0, False)))
        with pytest.raises(Interrupted):
            run(sweep, tmp_path / "cut", quiet, chunk_steps=9, resident_bytes=0)
    cut = run(sweep, tmp_path / "cut", quiet, chunk_steps=9, resident_bytes=0)
    for i in range(3):
        same(results.sae(i), cut.sae(i))


def unexplained(one, y, y_hat):
    """fvu in the units of training, of targets and reconstructions in their own."""
    scale = model.target_normalization(one).scale
    error, variation = (y - y_hat) * scale, (y - y.mean(0)) * scale
    return [
        np.sum(e**2) / np.sum(v**2) for e, v in zip(*(split(a, one.parts) for a in (error, variation)), strict=True)
    ]


def test_a_transcoder_is_read_back_and_takes_raw_inputs(whole):
    _, results, said = whole
    members, one = results.members, sae.load(results.folder).sae(1)
    assert (one.d_in, one.d_out, one.W_skip[...].shape) == (5, 3, (3, 5))
    assert one.encode(X[540:]).shape == (60, 12)
    assert unexplained(one, Y[540:], np.asarray(one(X[540:]))) == pytest.approx([members["eval/fvu"][1]], rel=1e-3)
    assert members["eval/fvu"][1] < 0.5
    assert "analysis/small_latents" in members and "analysis/copy_index" not in members
    assert "a transcoder, allowed: what reconstructs its own input" in said


def test_a_crosscoder_has_numbers_for_every_source(whole):
    _, results, _ = whole
    members, one, data = results.members, sae.load(results.folder).sae(2), results.data(2)
    assert one.parts == data.parts == (5, 3)
    raw = np.concatenate([X, Y], axis=1)[540:]
    np.testing.assert_array_equal(data.split(raw)[1], Y[540:])
    found = unexplained(one, raw, np.asarray(one(raw)))
    assert list(members.loc[2, ["eval/fvu_1", "eval/fvu_2"]]) == pytest.approx(found, rel=1e-3)
    assert members[["eval/fvu_1", "eval/fvu_2"]].loc[:1].isna().all(axis=None)
    assert {"train/fvu_1", "train/fvu_2"} <= set(results.history)
    page = (results.folder / "report.html").read_text()
    assert "fvu_2" in page and "has no answer" not in page

"""What a source does to raw rows: each normalization is its formula, and it is kept with the weights."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sae
from sae import Arrays, BatchTopK, ElasticNet, Gated, Relu, Sae, Superposition, TopK, UserError
from sae.core import model
from sae.core.normalization import Normalization
from sae.study.definition_files import load_file

NAMES = ("none", "centre", "unit-mean-norm", "mean-norm-sqrt-d", "centre-unit-mean-norm", "standardize")


def values(n=400, d=8) -> np.ndarray:
    """Rows far from 0, with dimensions of unequal scale, one of them constant."""
    x = 5 + np.arange(1, d + 1) * np.random.default_rng(0).normal(size=(n, d))
    x[:, 2] = 7
    return x.astype(np.float32)


def expected(x: np.ndarray, normalize: str, measured: np.ndarray) -> np.ndarray:
    mean, norm = measured.mean(0), lambda rows: np.linalg.norm(rows, axis=1).mean()
    deviation = np.where(measured.std(0) > 1e-5, measured.std(0), 1)
    return {
        "none": x,
        "centre": x - mean,
        "unit-mean-norm": x / norm(measured),
        "mean-norm-sqrt-d": x * np.sqrt(x.shape[1]) / norm(measured),
        "centre-unit-mean-norm": (x - mean) / norm(measured - mean),
        "standardize": (x - mean) / deviation,
    }[normalize]


@pytest.mark.parametrize("normalize", NAMES)
def test_examples_are_its_formula_with_the_numbers_of_the_training_rows(normalize):
    x = values()
    data = sae.rows(x[:300], x[300:], normalize, "values")
    train, held_out = data.examples(data.train), data.examples(data.held_out)
    np.testing.assert_allclose(train, expected(x[:300], normalize, x[:300].astype(np.float64)), rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(held_out, expected(x[300:], normalize, x[:300].astype(np.float64)), rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(data.mean, train.mean(0), atol=1e-4)
    np.testing.assert_allclose(data.normalization.undo(held_out), x[300:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("normalize", NAMES)
def test_sampled_examples_are_normalized_by_estimated_numbers(normalize):
    key = jax.random.key(3)
    data = Superposition(d_in=16, n_features=32, normalize=normalize).load()
    x = np.asarray(data.sample(key, 20_000))
    raw = np.asarray(Superposition(d_in=16, n_features=32).load().sample(key, 20_000), np.float64)
    np.testing.assert_allclose(data.normalization.undo(x), raw, atol=1e-4)
    np.testing.assert_allclose(x, expected(raw, normalize, raw), atol=0.03 * np.abs(x).max())
    np.testing.assert_allclose(x.mean(0), data.mean, atol=0.05)


def test_standardizing_data_whose_mean_is_350_deviations_keeps_their_digits():
    x = np.random.default_rng(0).normal(size=(5_000, 4)) + 350
    data = sae.rows(x[:4_000].astype(np.float32), x[4_000:].astype(np.float32), "standardize", "far")
    np.testing.assert_allclose(data.examples(data.train).std(0), 1, rtol=1e-4)
    np.testing.assert_allclose(data.normalization.scale, 1 / x[:4_000].std(0), rtol=1e-4)


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """A run on rows that are far from 0 and of unequal scale, standardized."""
    folder = tmp_path_factory.mktemp("normalization")
    rng = np.random.default_rng(0)
    sparse = (rng.random((600, 24)) < 0.2) @ rng.normal(size=(24, 16))
    x = (40 + np.arange(1, 17) * sparse).astype(np.float32)
    np.save(folder / "x.npy", x)
    base = sae.replace(tiny, {"data": Arrays(path=str(folder / "x.npy"), normalize="standardize"), "n_steps": 200})
    return sae.run(base, out=folder / "run", wandb="off"), x


def test_a_kept_autoencoder_takes_raw_rows_and_gives_raw_reconstructions(trained):
    results, x = trained
    row, one = results.members.iloc[0], results.sae(0)
    held_out = x[540:]
    deviation = (np.asarray(one(held_out)) - held_out) / x[:540].std(0)
    fvu = (deviation**2).sum() / (((held_out - held_out.mean(0)) / x[:540].std(0)) ** 2).sum()
    assert fvu == pytest.approx(row["eval/fvu"], rel=1e-3) and fvu < 0.5
    assert float((np.asarray(one.encode(held_out)) != 0).sum(1).mean()) == pytest.approx(row["eval/l0"], rel=1e-5)
    np.testing.assert_array_equal(one(held_out), one.decode(one.encode(held_out)))
    np.testing.assert_allclose(one(held_out[0]), one(held_out)[0], rtol=1e-5)


def test_it_needs_no_data(trained, tmp_path):
    """The data may be gone, or have more rows: the numbers are in the weights file."""
    results, x = trained
    before = np.asarray(results.sae(0)(x[540:]))
    moved = results.folder.parent / "x.npy"
    kept = moved.read_bytes()
    np.save(moved, np.concatenate([x, 1_000 * x]))
    try:
        np.testing.assert_array_equal(sae.load(results.folder).sae(0)(x[540:]), before)
    finally:
        moved.write_bytes(kept)


def test_examples_go_to_the_autoencoder_without_it(trained):
    results, x = trained
    one, data = results.sae(0), results.data(0)
    bare, examples = model.normalized(one, jnp.asarray(x))
    assert bare.normalization is None
    np.testing.assert_allclose(examples, data.examples(x), rtol=1e-6)
    np.testing.assert_array_equal(bare.encode(examples), one.encode(x))
    np.testing.assert_array_equal(model.normalized(bare, examples)[1], examples)


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("activation", [Relu(), TopK(k=3), Gated()], ids=["relu", "top-k", "gated"])
def test_folded_weights_are_the_same_function_of_raw_rows(activation, apply_b_dec_to_input):
    rng, (d_in, d_sae) = np.random.default_rng(0), (6, 12)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    kept = Normalization(10 * draw(d_in), jnp.exp(draw(d_in)))
    weights = (draw(d_sae, d_in), draw(d_sae), draw(d_sae, d_in), draw(d_in))
    one = Sae(*weights, activation, apply_b_dec_to_input, normalization=kept)
    x = draw(50, d_in) / kept.scale + kept.shift
    if isinstance(activation, Gated) and not apply_b_dec_to_input:  # its magnitude reads b_enc, which folding changes
        with pytest.raises(UserError, match="Gated reads the weights"):
            model.fold(one)
        return
    folded = model.fold(one)
    assert folded.normalization is None
    np.testing.assert_allclose(folded.encode(x), one.encode(x), atol=1e-4)
    np.testing.assert_allclose(folded(x), one(x), rtol=1e-3, atol=1e-3)
    assert model.fold(folded) is folded


def test_folding_refuses_an_activation_that_reads_decoder_norms():
    W = model.unit_rows(jnp.asarray(np.random.default_rng(0).normal(size=(12, 6)), jnp.float32))
    own = {"threshold": jnp.asarray(0.5)}
    kept = Normalization(np.zeros(6, np.float32), np.full(6, 4, np.float32))
    one = Sae(W, jnp.zeros(12), W, jnp.zeros(6), BatchTopK(k=3.0), own=own, normalization=kept)
    with pytest.raises(UserError, match="BatchTopK reads the weights, so folding would change its latents; keep"):
        model.fold(one)


def sinks(n=2_000, d=16) -> np.ndarray:
    """Sparse sums of features; of the rows, .6 % have norm 3,000, as attention sinks do."""
    rng = np.random.default_rng(0)
    features = model.unit_rows(jnp.asarray(rng.normal(size=(32, d)), jnp.float32))
    x = ((rng.random((n, 32)) < 0.1) * rng.exponential(size=(n, 32))) @ np.asarray(features)
    x[rng.permutation(n)[: n * 6 // 1_000]] = 3_000 * np.eye(d)[0]
    return x.astype(np.float32)


def test_rows_of_huge_norm_are_left_out(tmp_path):
    x = sinks()
    np.save(tmp_path / "x.npy", x)
    source = Arrays(path=str(tmp_path / "x.npy"), normalize="none", max_norm=10.0)
    all_rows, kept = sae.replace(source, {"max_norm": None}).load(), source.load()
    norms = np.linalg.norm(x, axis=1)
    assert (norms > 100).sum() == 12 and len(kept.train) + len(kept.held_out) == 2_000 - 12
    ordinary = np.concatenate([x[:1_800][norms[:1_800] < 100], x[1_800:][norms[1_800:] < 100]])
    np.testing.assert_array_equal(np.concatenate([kept.train[:], kept.held_out[:]]), ordinary)
    np.testing.assert_array_equal(kept.train[np.array([5, 3])], ordinary[[5, 3]])
    median = np.median(norms[:1_800][norms[:1_800] > 0])
    assert all_rows.norm_max_ratio == pytest.approx(3_000 / median, rel=1e-3) and kept.norm_max_ratio < 10
    with pytest.raises(UserError, match="max_norm = 1 leaves no held-out row; allowed: a larger one, or None"):
        sae.rows(x[:1_000], 50 * x[:3] + 100, "none", "x", max_norm=1.0)


def test_rows_of_zeros_are_no_measure_of_a_norm():
    """Padding: the median row of most files of padded texts is 0."""
    x = np.random.default_rng(0).normal(size=(1_000, 4)).astype(np.float32)
    x[:700] = 0
    x[999] *= 1_000
    data = sae.rows(x[::2], x[1::2], "none", "padded", max_norm=10.0)
    assert len(data.train) == 500 and len(data.held_out) == 499 and data.norm_max_ratio < 10
    assert 100 < sae.rows(x[::2], x[1::2], "none", "padded").norm_max_ratio < 3_000


def outlier_dimensions(n: int) -> np.ndarray:
    """Sparse sums of features in 16 dimensions, of which one has nearly all of the variance, and a large mean."""
    x = sinks(n)
    x = x[np.linalg.norm(x, axis=1) < 100]
    x[:, 3] += 1_500 + 20 * np.random.default_rng(1).normal(size=len(x))
    return x


@pytest.mark.long
@pytest.mark.parametrize("data", [sinks, outlier_dimensions], ids=["rows", "dimensions"])
def test_the_shipped_recipe_is_right_for_outliers(tmp_path, data):
    """FVU of ordinary rows in ordinary dimensions. With unit mean norm it is .35 and .82; .52 and .91 are dead."""
    shipped = load_file(Path(__file__).parents[1] / "experiments/activations_topk.py").data
    x = data(4_000)
    np.save(tmp_path / "x.npy", x)
    base = sae.Experiment(
        name="outliers",
        data=sae.replace(shipped, {"path": str(tmp_path / "x.npy")}),
        d_sae=64,
        activation=TopK(k=4),
        penalty=ElasticNet(),
        optimizer=sae.Adam(lr=1e-3),
        batch_size=256,
        n_steps=600,
        b_dec_init="geometric-median",
    )
    older = sae.replace(base, {"data.normalize": "unit-mean-norm", "data.max_norm": None})
    results = sae.run(sae.Sweep(name="outliers", members=[base, older]), out=tmp_path / "run", wandb="off")
    held_out = x[len(x) - len(x) // 10 :]
    ordinary, fvu = held_out[np.linalg.norm(held_out, axis=1) < 2_000], []
    others = [i for i in range(16) if i != 3]
    for member in (0, 1):
        error = np.asarray(results.sae(member)(ordinary)) - ordinary
        fvu.append((error[:, others] ** 2).sum() / ((ordinary - ordinary.mean(0))[:, others] ** 2).sum())
    table, low = results.members, 0.2
    assert fvu[0] < low and table["eval/dead_fraction"][0] < low and table["eval/r2_median"][0] > 1 - low
    assert table["eval/fvu"][1] < 0.02  # which looks fine
    assert fvu[1] > 2 * fvu[0] and table["eval/dead_fraction"][1] > 0.4 and table["eval/r2_median"][1] < 0.7
    if data is sinks:
        assert table["eval/norm_max_ratio"][0] < 10 < 1_000 < table["eval/norm_max_ratio"][1]

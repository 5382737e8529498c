"""Copying, one latent for a whole output, small latents, recovery: on autoencoders built by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from sklearn.datasets import load_digits
from sklearn.metrics.cluster import contingency_matrix

from sae import Digits, Relu, Sae, TopK, metrics, model
from sae.analysis import controls, copying, members, one_latent, recovery, small_latents

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def digits():
    images, labels = Digits().load(), Digits().labels()
    return images.examples(images.train), images.examples(images.held_out), *labels


def random_sae(activation, d=12, f=30, seed=0, precision="float32"):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / 3, jnp.float32)
    return Sae(draw(f, d), draw(f) - 0.3, draw(f, d), draw(d), activation, precision=precision)


def examples(n=300, d=12, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, d)), jnp.float32)


def test_a_copy_is_0_1_1_and_a_projection_is_not():
    x = examples(2_000) * jnp.where(jnp.arange(12) < 3, 1.0, 0.0)  # three dimensions of twelve,
    x = x @ jnp.asarray(scipy.stats.ortho_group.rvs(12, random_state=0), jnp.float32)  # no axis a pixel
    saes = {"copy": controls.signed_identity(12), "pixels": controls.identity(12), "pca": controls.pca(x, 3)}
    got = {name: {k: float(v) for k, v in copying.copying(sae, x, KEY).items()} for name, sae in saes.items()}
    names = ("fvu_permuted", "degrees_of_freedom", "copy_index")
    assert [got["copy"][name] for name in names] == pytest.approx([0, 1, 1], abs=1e-6)
    assert [got["pixels"][name] for name in names] == pytest.approx([0, 1, 1], abs=1e-6)
    assert got["copy"]["fvu"] == pytest.approx(0, abs=1e-6) and got["pca"]["fvu"] == pytest.approx(0, abs=1e-5)
    assert got["pca"]["degrees_of_freedom"] == pytest.approx(3 / 12, abs=1e-5)
    assert got["pca"]["fvu_permuted"] == pytest.approx(9 / 12, abs=0.1)  # noise keeps 3 of its 12 dimensions
    assert got["pca"]["copy_index"] == pytest.approx(float(jnp.max(saes["pca"].W_dec[...] ** 2, 1).sum() / 12))
    assert got["pca"]["copy_index"] < 0.2


@pytest.mark.parametrize("activation", [Relu(), TopK(k=4)], ids=repr)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_degrees_of_freedom_are_the_trace_of_the_jacobian(activation, precision):
    sae, x = random_sae(activation, precision=precision), examples(1_100)  # one part and a rest
    got = copying.degrees_of_freedom(sae, x)
    active = np.asarray(sae.encode(x)) != 0
    closed_form = active @ np.sum(np.asarray(sae.W_enc[...] * sae.W_dec[...], np.float64), axis=1) / 12
    np.testing.assert_allclose(got, closed_form, atol=1e-5 if precision == "float32" else 0.02)
    if precision == "float32":
        whole = jax.vmap(jax.jacfwd(sae))(x[:20])
        np.testing.assert_allclose(got[:20], jnp.trace(whole, axis1=1, axis2=2) / 12, atol=1e-5)


def test_degrees_of_freedom_of_the_controls(digits):
    train, x, *_ = digits
    dof = lambda sae: np.asarray(copying.degrees_of_freedom(sae, x[:50]))
    np.testing.assert_allclose(dof(controls.k_means(train, 10)), 0)
    blur = controls.blur((8, 8), 1.0)
    np.testing.assert_allclose(dof(blur), float(jnp.trace(blur.W_dec[...])) / 64, rtol=1e-5)
    stacked = members.stack([controls.pca(train, rank) for rank in (0, 5, 20)])
    got = members.each(copying.copying, stacked, x[:50], KEY)
    np.testing.assert_allclose(got["degrees_of_freedom"], np.array([0, 5, 20]) / 64, atol=1e-5)
    assert np.isfinite(got["fvu_permuted"]).all()  # zero rows and all


def test_fvu_is_that_of_the_tables_and_permuting_keeps_every_value():
    sae, x = random_sae(Relu()), examples() + 1
    s = metrics.sums(model.forward(sae, x.T), x.T)
    table = metrics.finish(s, metrics.moments(x.T, jnp.mean(x, 0), jnp.ones(300)))
    assert float(copying.fvu(sae, x)) == pytest.approx(float(table["fvu"]), rel=1e-5)
    shuffled = copying.permute_pixels(KEY, x)
    np.testing.assert_array_equal(np.sort(shuffled, axis=1), np.sort(x, axis=1))
    order = np.argsort(np.asarray(shuffled), axis=1) != np.argsort(np.asarray(x), axis=1)
    assert order.any(1).all() and len(np.unique(np.argmax(np.asarray(shuffled) == x[:, :1], axis=1))) == 12


def test_tau_1_by_hand():
    W = jnp.array([[1.0, 0, 0], [0, 2.0, 0], [0, 0, 1.0], [3.0, 8.0, 0]])  # the last is parallel to the first output
    b_enc = jnp.array([0.0, 0, 0, -1e3])  # but never active
    sae = Sae(W, b_enc, W, jnp.array([1.0, 1.0, 1.0]), Relu())
    x = jnp.array([[3.0, 2.0, 0], [0, 0, 3.0], [0, 0, 0]]) + 1
    tau, winner = one_latent.tau_1(sae, x)
    np.testing.assert_allclose(tau, [64 / 73, 1, 0], rtol=1e-6)  # the output of the first is (3, 8, 0)
    assert winner[:2].tolist() == [1, 2]


def test_k_means_is_the_limit_of_one_latent_for_one_output(digits):
    train, x, train_labels, labels = digits
    sae = controls.k_means(train, 40)
    got = {k: float(v) for k, v in one_latent.one_latent(sae, x, labels, train, KEY).items()}
    assert [got["tau_1"], got["share"]] == pytest.approx([1, 1], abs=1e-6)
    winner = np.argmax(np.asarray(sae.encode(x)), axis=1)
    table = contingency_matrix(labels, winner)
    assert got["winners"] == table.shape[1]
    assert got["purity"] == pytest.approx(table.max(axis=0).sum() / 397)
    rng = np.random.default_rng(0)
    shuffled = [contingency_matrix(rng.permutation(labels), winner).max(axis=0).sum() / 397 for _ in range(100)]
    assert got["purity_chance"] == pytest.approx(np.mean(shuffled), abs=0.02)
    assert got["purity"] > 0.85 > 0.4 > got["purity_chance"]

    unit = lambda a: a / np.linalg.norm(a, axis=1, keepdims=True)
    cosines = (unit(np.asarray(sae.W_dec[...])) @ unit(train - np.asarray(sae.b_dec[...])).T).max(axis=1)
    np.testing.assert_allclose(one_latent.nearest_cosine(sae, train), cosines, atol=1e-5)
    assert got["nearest_cosine"] == pytest.approx(cosines[np.unique(winner)].mean(), abs=1e-5)
    assert got["nearest_cosine"] > 0.85


def test_dictionaries_of_training_images_of_noise_and_of_principal_components(digits):
    train, x, _, labels = digits
    W = model.unit_rows(jnp.asarray(train[:128]))
    pictures = Sae(W, jnp.zeros(128), W, jnp.zeros(64), TopK(k=1))
    noise = model.unit_rows(jax.random.normal(KEY, (128, 64)))
    random = Sae(noise, jnp.zeros(128), noise, jnp.zeros(64), TopK(k=1))
    found = members.each(one_latent.one_latent, members.stack([pictures, random]), x, labels, train, KEY)
    assert found["share"].tolist() == pytest.approx([1, 1])  # one latent alone is always the whole output
    assert float(found["nearest_cosine"][0]) == pytest.approx(1, abs=1e-5) and float(found["nearest_cosine"][1]) < 0.6
    assert float(found["purity"][0]) > float(found["purity"][1]) + 0.1
    pca = one_latent.one_latent(controls.pca(train, 20), x, labels, train, KEY)
    assert float(pca["share"]) < 0.05 and float(pca["tau_1"]) < 0.7
    copy = one_latent.one_latent(controls.signed_identity(64), x, labels, train, KEY)
    assert float(copy["share"]) == 0 and np.isnan(float(copy["purity"])) and np.isnan(float(copy["nearest_cosine"]))


def test_labels_belong_to_the_rows_of_the_same_split():
    for source in (Digits(normalize="none"), Digits(n_held_out=100, split_seed=3, normalize="none")):
        found, everything = source.load(), load_digits()
        for array, labels in zip((found.train, found.held_out), source.labels(), strict=True):
            assert len(array) == len(labels)
            for row, label in list(zip(array, labels, strict=True))[::40]:
                assert label in everything.target[(everything.data == row * 16).all(axis=1)]


def test_small_latents_by_hand():
    eye = jnp.eye(4)
    sae = Sae(eye, jnp.zeros(4), eye, jnp.zeros(4), Relu())
    x = jnp.array([[10.0, 0.9, 0.0, 1.1], [10.0, 0.5, 0.4, 0.3], [-1.0, 0, 0, 0], [0.01, 0, 0, 0.0001]])
    got = small_latents.small_latents(sae, x)
    assert got["count"].tolist() == [1, 3, 0, 1] and float(got["share"]) == pytest.approx(5 / 9)
    assert small_latents.small_latents(sae, x, below=0.045)["count"].tolist() == [0, 2, 0, 1]


def test_a_dictionary_equal_to_the_truth_and_a_random_one():
    truth, other, larger = (np.random.default_rng(i).normal(size=(n, 32)) for i, n in enumerate((64, 64, 128)))
    unit = lambda a: a / np.linalg.norm(a, axis=1, keepdims=True)
    got = lambda a, b: {k: float(v) for k, v in recovery.mmcs(jnp.asarray(a), jnp.asarray(b), KEY).items()}
    same = got(truth, 7 * truth[::-1])
    assert same["mmcs"] == pytest.approx(1, abs=1e-5) and same["mmcs_reverse"] == pytest.approx(1, abs=1e-5)
    twice = got(truth, np.concatenate([truth, other]))
    chance = np.mean((unit(other) @ unit(truth).T).max(axis=1))
    assert twice["mmcs"] == pytest.approx(1, abs=1e-5)
    assert twice["mmcs_reverse"] == pytest.approx((1 + chance) / 2, abs=1e-5)
    random = got(truth, larger)
    cosines = unit(truth) @ unit(larger).T
    assert random["mmcs"] == pytest.approx(cosines.max(axis=1).mean(), abs=1e-5)
    assert random["mmcs_reverse"] == pytest.approx(cosines.max(axis=0).mean(), abs=1e-5)
    assert random["mmcs"] == pytest.approx(random["mmcs_chance"], abs=0.02)
    assert random["mmcs_reverse"] == pytest.approx(random["mmcs_reverse_chance"], abs=0.02)
    assert random["mmcs_chance"] > same["mmcs_chance"] + 0.02  # of twice as many rows


@pytest.mark.parametrize("l1", [0.05, 0.1, 0.2, 0.4, 0.8, 1.6])
def test_shrinkage_is_its_integrals(l1):
    shrunk = lambda a: max(0.0, a - l1 / 2)
    integral = lambda f: scipy.integrate.quad(f, 0.5, 1.5, points=[max(0.5, l1 / 2)])[0]
    expected = integral(lambda a: shrunk(a) ** 2) / integral(lambda a: a * shrunk(a))
    assert float(recovery.shrinkage(l1)) == pytest.approx(expected, rel=1e-5)
    assert float(recovery.shrinkage(0.0)) == 1 and np.isnan(float(recovery.shrinkage(3.0)))


@pytest.mark.parametrize("l1", [0.1, 0.8])
def test_the_closed_form_of_p5_on_the_autoencoder_that_solves_it(l1):
    rng = np.random.default_rng(0)
    d, features = 16, scipy.stats.ortho_group.rvs(16, random_state=0)
    magnitudes = np.where(rng.random((20_000, d)) < 0.05, rng.uniform(0.5, 1.5, (20_000, d)), 0)
    x, W = jnp.asarray(magnitudes @ features, jnp.float32), jnp.asarray(features, jnp.float32)
    solution = Sae(W, jnp.full(d, -l1 / 2), W, jnp.zeros(d), Relu())
    measured = metrics.finish(
        metrics.sums(model.forward(solution, x.T), x.T), metrics.moments(x.T, x[0], jnp.ones(20_000))
    )["shrinkage"]
    assert float(measured) == pytest.approx(float(recovery.shrinkage(l1)), abs=0.002)
    assert float(recovery.shift(solution, x, W)) == pytest.approx(l1 / 2, rel=1e-4)
    unpenalised = Sae(W, jnp.zeros(d), W, jnp.zeros(d), Relu())
    assert float(recovery.shift(unpenalised, x, W)) == pytest.approx(0, abs=1e-6)

"""Copying, one latent for a whole output, small latents, recovery: on autoencoders built by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from sklearn.datasets import load_digits
from sklearn.metrics.cluster import contingency_matrix

from sae import Digits, Relu, Sae, TopK
from sae.analysis import controls, copying, members, one_latent, recovery, small_latents

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def digits():
    images, labels = Digits().load(), Digits().labels()
    return images.examples(images.train), images.examples(images.held_out), *labels


# compiling is what these tests cost: one program each, and the same shapes where they can be
apply = jax.jit(lambda sae, x: (sae.encode(x), sae(x)))


def random_sae(activation, precision="float32"):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / 3, jnp.float32)
    return Sae(draw(24, 12), draw(24) - 0.3, draw(24, 12), draw(12), activation, precision=precision)


def examples():
    """Three dimensions of twelve, no axis a pixel; two parts of `over_examples`, the second not whole."""
    x = np.random.default_rng(1).normal(size=(1_100, 12)) * (np.arange(12) < 3)
    return jnp.asarray(x @ scipy.stats.ortho_group.rvs(12, random_state=0), jnp.float32)


def test_a_copy_is_0_1_1_and_a_projection_is_not():
    x = examples()
    saes = {"copy": controls.signed_identity(12), "pixels": controls.identity(12), "pca": controls.pca(x, 3)}
    got = {name: {k: float(v) for k, v in copying.copying(sae, x, KEY).items()} for name, sae in saes.items()}
    names = ("fvu_permuted", "degrees_of_freedom", "copy_index")
    assert [got["copy"][name] for name in names] == pytest.approx([0, 1, 1], abs=1e-6)
    assert [got["pixels"][name] for name in names] == pytest.approx([0, 1, 1], abs=1e-6)
    assert got["copy"]["fvu"] == pytest.approx(0, abs=1e-6) and got["pca"]["fvu"] == pytest.approx(0, abs=1e-5)
    assert got["pca"]["degrees_of_freedom"] == pytest.approx(3 / 12, abs=1e-5)
    assert got["pca"]["fvu_permuted"] == pytest.approx(9 / 12, abs=0.1)  # noise keeps 3 of its 12 dimensions
    components = np.asarray(saes["pca"].W_dec[...])
    assert got["pca"]["copy_index"] == pytest.approx((components**2).max(axis=1).sum() / 12)
    assert got["pca"]["copy_index"] < 0.2
    # stacked members, and the fvu of the tables
    stacked = members.each(copying.copying, members.stack([saes["copy"], random_sae(Relu())]), x, KEY)
    for name, value in got["copy"].items():
        assert float(stacked[name][0]) == pytest.approx(value, abs=1e-6)
    x_hat = np.asarray(apply(random_sae(Relu()), x)[1])
    fvu = np.sum((x - x_hat) ** 2) / np.sum((x - np.mean(x, axis=0)) ** 2)
    assert float(stacked["fvu"][1]) == pytest.approx(float(fvu), rel=1e-5)


@pytest.mark.parametrize("activation, precision", [(Relu(), "float32"), (TopK(k=4), "float32"), (Relu(), "bfloat16")])
def test_degrees_of_freedom_are_the_trace_of_the_jacobian(activation, precision):
    sae, x = random_sae(activation, precision), examples()
    got = copying.degrees_of_freedom(sae, x)
    active = np.asarray(apply(sae, x)[0]) != 0
    assert 0.1 < active.mean() < 0.6
    closed_form = active @ np.sum(np.asarray(sae.W_enc[...] * sae.W_dec[...], np.float64), axis=1) / 12
    np.testing.assert_allclose(got, closed_form, atol=1e-5 if precision == "float32" else 0.02)
    if precision == "float32":
        whole = jax.jit(jax.vmap(jax.jacfwd(sae)))(x[:20])
        np.testing.assert_allclose(got[:20], np.trace(whole, axis1=1, axis2=2) / 12, atol=1e-5)


def test_k_means_has_no_degrees_of_freedom():
    np.testing.assert_array_equal(copying.degrees_of_freedom(controls.k_means(examples(), 10), examples()), 0)


def test_permuting_keeps_every_value_and_gives_each_example_an_order_of_its_own():
    x = examples()
    shuffled = np.asarray(copying.permute_pixels(KEY, x))
    np.testing.assert_array_equal(np.sort(shuffled, axis=1), np.sort(x, axis=1))
    went_to = np.argmax(shuffled == np.asarray(x)[:, :1], axis=1)
    np.testing.assert_allclose(np.bincount(went_to, minlength=12) / 1_100, 1 / 12, atol=0.04)


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
    got = {k: float(v) for k, v in one_latent.one_latent(sae, x, labels, train, KEY, 0.9).items()}
    none = one_latent.one_latent(sae, x, labels, train, KEY, 1.1)
    assert float(none["share"]) == 0 and np.isnan([float(none["purity"]), float(none["nearest_cosine"])]).all()
    assert [got["tau_1"], got["share"]] == pytest.approx([1, 1], abs=1e-6)
    winner = np.argmax(apply(sae, x)[0], axis=1)
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


def test_the_chance_of_purity_shuffles_only_what_is_won(digits):
    """Where all that is won is of one class, any winners are pure: chance is 1 too."""
    train, x, _, labels = digits
    sae = controls.pca(train, 20)
    tau, _ = one_latent.tau_1(sae, x)
    least = float(np.median(tau))
    labels = jnp.where(tau >= least, 3, labels)
    got = one_latent.one_latent(sae, x, labels, train, KEY, least)
    assert 0.4 < float(got["share"]) < 0.6
    assert [float(got["purity"]), float(got["purity_chance"])] == pytest.approx([1, 1])


def test_dictionaries_of_training_images_of_noise_and_of_principal_components(digits):
    train, x, _, labels = digits
    unit = lambda a: jnp.asarray(a / np.linalg.norm(a, axis=1, keepdims=True), jnp.float32)
    W = unit(train[:128])
    pictures = Sae(W, jnp.zeros(128), W, jnp.zeros(64), TopK(k=1))
    noise = unit(np.random.default_rng(0).normal(size=(128, 64)))
    random = Sae(noise, jnp.zeros(128), noise, jnp.zeros(64), TopK(k=1))
    found = members.each(one_latent.one_latent, members.stack([pictures, random]), x, labels, train, KEY)
    assert found["share"].tolist() == pytest.approx([1, 1])  # one latent alone is always the whole output
    assert float(found["nearest_cosine"][0]) == pytest.approx(1, abs=1e-5) and float(found["nearest_cosine"][1]) < 0.6
    assert float(found["purity"][0]) > float(found["purity"][1]) + 0.1
    tau, _ = one_latent.tau_1(controls.pca(train, 20), x)
    assert float(np.mean(tau >= 0.9)) < 0.05 and float(np.mean(tau)) < 0.7


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
    truth, other, random = (np.random.default_rng(i).normal(size=(n, 32)) for i, n in enumerate((64, 64, 128)))
    unit = lambda a: a / np.linalg.norm(a, axis=1, keepdims=True)
    got = lambda a, b: {k: float(v) for k, v in recovery.mmcs(jnp.asarray(a), jnp.asarray(b), KEY).items()}
    same = got(truth, np.concatenate([7 * truth, truth[::-1]]))
    assert same["mmcs"] == pytest.approx(1, abs=1e-5) and same["mmcs_reverse"] == pytest.approx(1, abs=1e-5)
    twice = got(truth, np.concatenate([truth, other]))
    chance = np.mean((unit(other) @ unit(truth).T).max(axis=1))
    assert twice["mmcs"] == pytest.approx(1, abs=1e-5)
    assert twice["mmcs_reverse"] == pytest.approx((1 + chance) / 2, abs=1e-5)
    control, cosines = got(truth, random), unit(truth) @ unit(random).T
    assert control["mmcs"] == pytest.approx(cosines.max(axis=1).mean(), abs=1e-5)
    assert control["mmcs_reverse"] == pytest.approx(cosines.max(axis=0).mean(), abs=1e-5)
    assert control["mmcs"] == pytest.approx(control["mmcs_chance"], abs=0.02) and control["mmcs"] < 0.6
    assert control["mmcs_reverse"] == pytest.approx(control["mmcs_reverse_chance"], abs=0.02)


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
    x_hat = apply(solution, x)[1]
    measured = np.sum(np.square(x_hat)) / np.sum(np.multiply(x_hat, x))  # metrics' `shrinkage`
    assert float(measured) == pytest.approx(float(recovery.shrinkage(l1)), abs=0.002)
    assert float(recovery.shift(solution, x, W)) == pytest.approx(l1 / 2, rel=1e-4)
    unpenalised = Sae(W, jnp.zeros(d), W, jnp.zeros(d), Relu())
    assert float(recovery.shift(unpenalised, x, W)) == pytest.approx(0, abs=1e-6)

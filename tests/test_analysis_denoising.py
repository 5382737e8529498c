"""Denoising and its controls, on noise of known variance and projections that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.ndimage
import scipy.special
import scipy.stats
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from sae import Digits, Relu, Sae, TopK, UserError
from sae.analysis import controls, denoising, members
from sae.analysis.denoising import AberrantPixel, Blob, Gaussian, SaltAndPepper, Scale
from sae.core.model import replace

KEY = jax.random.key(0)
apply = jax.jit(lambda sae, x: sae(x))  # one program, where an eager call compiles a dozen
UNIT = Scale(std=jnp.float32(1), low=jnp.float32(-1), high=jnp.float32(1))


def on_a_subspace(residual, n=2_000, d=16, rank=4, seed=0):
    """Examples whose part outside the first `rank` axes has exactly the norm `residual`, and the projection on them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * 3
    x[:, rank:] *= residual / np.linalg.norm(x[:, rank:], axis=1, keepdims=True)
    keep, zeros = jnp.asarray(np.diag(np.arange(d) < rank), jnp.float32), jnp.zeros(d)
    return jnp.asarray(x, jnp.float32), Sae(keep, zeros, keep, zeros, controls.Linear())


def expected_gain(sigma, d, rank, residual):
    """E 10 log10(sigma² chi²_d / (residual² + sigma² chi²_rank)), the exact mean for such examples."""
    log_chi2 = lambda k: scipy.special.digamma(k / 2) + np.log(2)
    inside = scipy.stats.chi2(rank).expect(lambda c: np.log(residual**2 + sigma**2 * c))
    return 10 / np.log(10) * (2 * np.log(sigma) + log_chi2(d) - inside)


@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_a_known_projection_gains_what_it_must(sigma):
    x, projection = on_a_subspace(residual=0.8)
    corrupted, mask = Gaussian(sigma=sigma)(KEY, x, UNIT, (4, 4))
    assert mask.all()
    got = denoising.delta_psnr(projection, corrupted, x)
    error = float(np.std(got)) / 2_000**0.5
    assert float(jnp.mean(got)) == pytest.approx(expected_gain(sigma, 16, 4, 0.8), abs=4 * error)
    assert np.sign(expected_gain(0.1, 16, 4, 0.8)) == -1 and np.sign(expected_gain(0.5, 16, 4, 0.8)) == 1


def test_the_crossover_is_where_filtering_starts_to_pay():
    x, projection = on_a_subspace(residual=0.8)
    sigmas = jnp.geomspace(0.05, 1.0, 16)
    curve = denoising.noise_curve(projection, KEY, x, sigmas, UNIT)
    exact = scipy.optimize.brentq(lambda s: expected_gain(s, 16, 4, 0.8), 0.05, 1.0)
    assert exact == pytest.approx(0.8 / 12**0.5, rel=0.05)  # where residual² = (d - rank) sigma², but for the logarithm
    assert denoising.crossover(sigmas, curve) == pytest.approx(exact, rel=0.01)


def test_a_crossover_is_read_off_and_never_guessed():
    sigmas = np.array([0.1, 0.2, 0.4, 0.8])
    rows = np.array([[-1.0, -1, 1, 2], [1, 2, 3, 4], [-4, -3, -2, -1], [-1, 1, -1, 3], [-1, 1, 1, -1]])
    got = denoising.crossover(sigmas, rows)
    np.testing.assert_allclose(got, [np.sqrt(0.08), np.nan, np.nan, 0.4 * 2**0.25, np.nan])


def test_the_identity_gains_nothing_and_a_perfect_answer_everything():
    x, _ = on_a_subspace(residual=0.8)
    corrupted, _ = Gaussian(sigma=0.3)(KEY, x, UNIT, (4, 4))
    np.testing.assert_allclose(denoising.delta_psnr(controls.identity(16), corrupted, x), 0, atol=1e-5)
    np.testing.assert_allclose(denoising.delta_psnr(controls.signed_identity(16), corrupted, x), 0, atol=1e-5)
    assert np.isnan(denoising.delta_psnr(controls.identity(16), x, x)).all()


def test_psnr_by_hand_and_its_peak_cancels():
    x = jnp.zeros((1, 4))
    assert float(denoising.psnr(x + 0.1, x, 1.0)[0]) == pytest.approx(20, abs=1e-4)
    assert float(denoising.psnr(x + 0.1, x, 10.0)[0]) == pytest.approx(40, abs=1e-4)
    x, projection = on_a_subspace(residual=0.8)
    corrupted, _ = Gaussian(sigma=0.3)(KEY, x, UNIT, (4, 4))
    by_psnr = denoising.psnr(apply(projection, corrupted), x, 7.0) - denoising.psnr(corrupted, x, 7.0)
    np.testing.assert_allclose(denoising.delta_psnr(projection, corrupted, x), by_psnr, atol=2e-5)


def test_corruptions_change_what_they_say():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3_000, 30)) * 0.2, jnp.float32)
    shape, scale = (5, 6), UNIT.replace(low=jnp.float32(-2), high=jnp.float32(3), std=jnp.float32(0.2))
    noisy, _ = Gaussian(sigma=0.5)(KEY, x, scale, shape)
    assert float(jnp.std(noisy - x)) == pytest.approx(0.1, rel=0.01)

    salted, mask = SaltAndPepper(share=0.05)(KEY, x, scale, shape)
    assert float(mask.mean()) == pytest.approx(0.05, abs=4 * (0.05 * 0.95 / x.size) ** 0.5)
    np.testing.assert_array_equal(salted[~mask], x[~mask])
    assert set(np.unique(salted[mask])) == {-2.0, 3.0}
    assert float((salted[mask] == 3).mean()) == pytest.approx(0.5, abs=0.03)

    for corruption, size in ((Blob(), 2), (AberrantPixel(), 1)):
        spoilt, mask = corruption(KEY, x, scale, shape)
        np.testing.assert_array_equal(spoilt[~mask], x[~mask])
        assert np.unique(mask.sum(1)) == [size**2]
        images = np.asarray(mask).reshape(-1, *shape)
        np.testing.assert_array_equal(np.unique(images.any(1).sum(1)), [size])  # as wide
        np.testing.assert_array_equal(np.unique(images.any(2).sum(1)), [size])  # as it is high
        assert images.any(0).all() and len(np.unique(images.argmax(1).argmax(1))) > 1  # anywhere in the image
        means = np.asarray((x * mask).sum(1) / mask.sum(1))
        np.testing.assert_array_equal((spoilt * mask).max(1) == 3, means < 0.5)  # the farther of -2 and 3
    colour, mask = Blob()(KEY, jnp.zeros((10, 48)), scale, (4, 4, 3))
    np.testing.assert_array_equal(mask.reshape(10, 16, 3).all(-1).sum(1), 4)
    assert np.unique(mask.sum(1)) == [12]


def test_the_scale_is_that_of_deviations_from_the_mean_example():
    rng = np.random.default_rng(0)
    train = 100 * rng.normal(size=(1, 20)) + rng.normal(size=(5_000, 20)) * np.linspace(0.5, 2, 20)
    scale = denoising.scale_of(train, tail=0.01)
    assert float(scale.std) == pytest.approx(np.sqrt(np.mean(np.linspace(0.5, 2, 20) ** 2)), rel=0.02)
    assert float((train < float(scale.low)).mean()) == pytest.approx(0.01, rel=0.01)
    assert float((train > float(scale.high)).mean()) == pytest.approx(0.01, rel=0.01)


def test_auroc_of_a_sure_a_blind_and_a_wrong_detector():
    rng = np.random.default_rng(0)
    mask = rng.random((200, 30)) < 0.1
    sure, blind = mask + rng.random(mask.shape) * 0.5, rng.random(mask.shape)
    got = denoising.auroc(np.stack([sure, blind, -sure, np.zeros(mask.shape)]), mask)
    np.testing.assert_allclose(got, [1, 0.5, 0, 0.5], atol=0.04)
    assert got[0] == 1 and got[3] == 0.5
    assert np.isnan(denoising.auroc(sure, np.ones_like(mask)))


def test_an_aberrant_pixel_is_found_by_pca_of_the_right_rank_only():
    x, _ = on_a_subspace(residual=0.3, n=4_000)
    x = jnp.asarray(x @ scipy.stats.ortho_group.rvs(16, random_state=0).astype(np.float32))  # no axis is a pixel
    scale = denoising.scale_of(np.asarray(x))
    train, valid, test = x[:1_000], x[:2_000], x[2_000:]
    ranks = controls.pca_of_each_rank(np.asarray(train))
    key_valid, key_test = jax.random.split(KEY)
    best = denoising.best(ranks, AberrantPixel()(key_valid, valid, scale, (4, 4))[0], valid)
    assert best == 4
    spoilt, mask = AberrantPixel()(key_test, test, scale, (4, 4))
    gains = members.each(denoising.mean_delta_psnr, ranks, spoilt, test)
    assert gains.shape == (17,) and int(jnp.argmax(gains)) == 4 and float(gains[4]) > 2
    assert float(gains[0]) < float(gains[4]) - 2  # the mean example, which has no aberrant pixel either
    assert float(gains[16]) == pytest.approx(0, abs=1e-3)  # everything
    areas = denoising.auroc(members.each(denoising.residual, ranks, spoilt), mask)
    assert areas[4] > 0.9 and areas[4] > areas[0]


def test_controls_are_what_scipy_and_scikit_learn_make():
    images = Digits().load()
    train, x = images.examples(images.train), images.examples(images.held_out)[:100]
    blurred = scipy.ndimage.gaussian_filter(x.reshape(-1, 8, 8), (0, 0.8, 0.8)).reshape(-1, 64)
    np.testing.assert_allclose(apply(controls.blur((8, 8), 0.8), x), blurred, atol=1e-6)
    of_channels = np.random.default_rng(0).random((4, 5, 6, 3)).astype(np.float32)
    np.testing.assert_allclose(
        apply(controls.blur((5, 6, 3), 1.2), of_channels.reshape(4, -1)),
        scipy.ndimage.gaussian_filter(of_channels, (0, 1.2, 1.2, 0)).reshape(4, -1),
        atol=1e-6,
    )

    found = PCA(7).fit(train)
    np.testing.assert_allclose(apply(controls.pca(train, 7), x), found.inverse_transform(found.transform(x)), atol=1e-5)
    np.testing.assert_allclose(apply(controls.pca(train, 0), x), np.broadcast_to(found.mean_, x.shape), atol=1e-6)

    nearest = KMeans(10, n_init=4, random_state=0).fit(train)
    one_each = controls.k_means(train, 10)
    np.testing.assert_allclose(apply(one_each, x), nearest.cluster_centers_[nearest.predict(x)], atol=1e-5)
    assert set(np.unique(one_each.encode(x))) == {0, 1}
    with pytest.raises(UserError, match="rank 65, allowed: 0 to 64"):
        controls.pca(train, 65)


def test_parts_of_the_examples_and_stacked_members_give_what_one_does():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2_000, 16)), jnp.float32)  # one part and a rest
    copy = controls.signed_identity(16)
    saes = [replace(copy, W_dec=jnp.asarray(rng.normal(size=(32, 16)), jnp.float32)) for _ in range(3)]
    corrupted, _ = Gaussian(sigma=0.3)(KEY, x, UNIT, (4, 4))
    stacked = members.each(denoising.delta_psnr, members.stack(saes), corrupted, x)
    for sae, got in zip(saes, stacked, strict=True):
        size = lambda error: np.sum(np.square(error), axis=1)
        expected = 10 * np.log10(size(corrupted - x) / size(apply(sae, corrupted) - x))
        np.testing.assert_allclose(got, expected, atol=1e-4)
    few = members.over_examples(lambda rows: rows + 1, x[:3])
    np.testing.assert_array_equal(few, x[:3] + 1)
    assert members.over_examples(lambda rows: rows.sum(1), x[:0]).shape == (0,)
    other = Sae(copy.W_enc[...], copy.b_enc[...], copy.W_dec[...], copy.b_dec[...], TopK(k=2))
    with pytest.raises(UserError, match="one activation and one shape"):
        members.stack([saes[0], other])
    assert isinstance(members.stack(saes).activation, Relu)

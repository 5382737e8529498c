"""Gabor fits and criteria on images whose answers are known, and on the controls that must fail."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import sae
from sae import Experiment, ImagePatches, UserError
from sae.analysis import controls, gabor, gabor_fit
from sae.analysis.gabor import GaborLike

SHAPE, N = (12, 12), 12
Y, X = np.indices(SHAPE).reshape(2, -1).astype(float)
PARAMETERS = ("x0", "y0", "sigma_x", "sigma_y", "theta", "frequency", "phase")


def gabors(n, seed=0):
    """Parameters of n Gabor functions that are localised, oriented and bandpass."""
    rng = np.random.default_rng(seed)
    drawn = {"amplitude": (1, 1), "x0": (3, 8), "y0": (3, 8), "sigma_x": (1.3, 2.2), "sigma_y": (1.3, 2.6)}
    drawn |= {"theta": (0.02, np.pi - 0.02), "frequency": (0.17, 0.3), "phase": (-np.pi, np.pi)}
    return [{name: rng.uniform(*ends) for name, ends in drawn.items()} for _ in range(n)]


def by_hand(amplitude, x0, y0, sigma_x, sigma_y, theta, frequency, phase):
    u = (X - x0) * np.cos(theta) + (Y - y0) * np.sin(theta)
    v = -(X - x0) * np.sin(theta) + (Y - y0) * np.cos(theta)
    envelope = np.exp(-(u**2) / (2 * sigma_x**2) - v**2 / (2 * sigma_y**2))
    return amplitude * envelope * np.cos(2 * np.pi * frequency * u + phase)


@pytest.fixture(scope="module")
def kinds():
    """Rows by kind: 64 Gabor functions, a bin of orientation after the other, and 64 of everything else."""
    source = ImagePatches(size=12, n_train=2_000, n_held_out=1).load()
    patches = source.examples(source.train)
    wave = 2 * np.pi * 0.2 * (X * np.cos(0.7) + Y * np.sin(0.7))
    made = {
        "gabor": np.stack([by_hand(**p) for p in gabors(64)]),
        "raised": by_hand(**gabors(1)[0])[None] + 1,
        "grating": np.stack([np.cos(wave + 1), np.cos(2 * np.pi * X / 4)]),
        "blob": np.stack([np.exp(-((X - c) ** 2 + (Y - 5) ** 2) / (2 * s**2)) for c, s in ((5, 1.5), (4.3, 2.0))]),
        "zero": np.zeros((1, 144)),
        "noise": np.random.default_rng(0).normal(size=(16, 144)),
        "pca": np.asarray(controls.pca(patches, 144).W_dec[...])[::7],
        "patch": patches[:21],
    }
    return {kind: np.asarray(rows, np.float32) for kind, rows in made.items()}


@pytest.fixture(scope="module")
def both(kinds):
    """All of them scored, as two members of 64 rows."""
    return gabor.scores(jnp.asarray(np.concatenate(list(kinds.values())).reshape(2, 64, 144)), SHAPE)


@pytest.fixture(scope="module")
def scored(kinds, both):
    """Scores by kind."""
    ends = np.cumsum([0, *(len(rows) for rows in kinds.values())])
    return {
        kind: {name: np.asarray(value).reshape(128)[a:b] for name, value in both.items()}
        for kind, (a, b) in zip(kinds, itertools.pairwise(ends), strict=True)
    }


def test_a_gabor_function_is_found_again_and_passes_all_four(kinds, scored):
    drawn, got = gabors(64), scored["gabor"]
    np.testing.assert_allclose(gabor_fit.gabor(SHAPE, **drawn[0]), kinds["gabor"][0], atol=1e-5)
    for name in ("localised", "oriented", "bandpass", "gabor_like"):
        assert got[name].all(), name
    assert got["r2"].min() > 0.97 and np.median(got["r2"]) > 0.999  # a row loses its mean, the function keeps its own
    np.testing.assert_allclose(got["theta"], [p["theta"] for p in drawn], atol=0.1)


def test_the_fit_alone_is_exact(kinds):
    drawn = gabors(64)
    got = gabor_fit.fit(jnp.asarray(3 * kinds["gabor"]), SHAPE)
    assert float(jnp.min(got["r2"])) > 0.99999
    np.testing.assert_allclose(got["amplitude"], 3, rtol=1e-3)
    for name in PARAMETERS:
        np.testing.assert_allclose(got[name], [p[name] for p in drawn], atol=2e-3, err_msg=name)


def test_it_is_as_good_a_fit_as_scipy_finds_from_random_starts(kinds, scored):
    images = kinds["patch"].astype(float) - kinds["patch"].mean(axis=1, keepdims=True)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    got, rng = scored["patch"], np.random.default_rng(0)
    low = [-np.inf, -0.5, -0.5, np.log(0.5), np.log(0.5), -np.inf, 0, -np.inf]
    high = [np.inf, 11.5, 11.5, np.log(48), np.log(48), np.inf, 0.5**0.5, np.inf]
    good = np.flatnonzero(got["r2"] > 0.5)[:4]
    assert len(good) == 4
    for i in good:

        def error(p, image=images[i]):
            a, x0, y0, log_x, log_y, theta, f, phase = p
            return by_hand(a, x0, y0, np.exp(log_x), np.exp(log_y), theta, f, phase) - image

        starts = [(0.3, *rng.uniform(2, 9, 2), *rng.uniform(0, 1, 2), *rng.uniform(0, 0.4, 3)) for _ in range(6)]
        costs = [scipy.optimize.least_squares(error, s, bounds=(low, high), max_nfev=100).cost for s in starts]
        assert got["r2"][i] >= 1 - 2 * min(costs) - 1e-4
        found = [float(got[name][i]) for name in ("amplitude", *PARAMETERS)]
        found[3:5] = np.log(found[3:5])
        assert np.sum(error(found) ** 2) == pytest.approx(1 - got["r2"][i], abs=1e-4)
        again = scipy.optimize.least_squares(error, np.clip(found, low, high), bounds=(low, high), max_nfev=100)
        assert got["r2"][i] == pytest.approx(1 - 2 * again.cost, abs=1e-3)  # from there scipy cannot better it


def test_a_grating_has_a_high_r2_and_is_not_localised(scored):
    assert (scored["grating"]["r2"] > 0.98).all() and scored["grating"]["oriented"].all()
    assert not scored["grating"]["localised"].any() and not scored["grating"]["gabor_like"].any()
    assert (scored["grating"]["box"] > 0.8).all()


def test_a_blob_is_not_bandpass_and_noise_nothing(scored):
    assert scored["blob"]["localised"][0] and not scored["blob"]["bandpass"].any()
    assert (scored["blob"]["dc"] > 0.05).all() and not scored["blob"]["gabor_like"].any()
    assert (scored["noise"]["r2"] < 0.5).all() and not scored["noise"]["gabor_like"].any()
    assert not scored["zero"]["gabor_like"].any() and scored["zero"]["r2"] == 0


def test_principal_components_are_not_gabor_like(scored):
    assert float(gabor.summary(scored["pca"], np.ones(21, bool))["share"]) <= 0.15


def test_a_row_with_a_mean_is_fitted_without_it_and_its_dc_is_counted(kinds, scored):
    raised = kinds["raised"].astype(float)
    assert scored["raised"]["dc"] == pytest.approx(raised.sum() ** 2 / (144 * (raised**2).sum()), rel=1e-4)
    assert scored["raised"]["r2"] == pytest.approx(scored["gabor"]["r2"][0], abs=1e-4)
    assert not scored["raised"]["bandpass"].any() and scored["gabor"]["dc"].max() < 0.05


def test_a_summary_of_stacked_members_counts_live_rows_only(both, scored):
    everything = np.ones((2, 64), bool)
    got = gabor.summary(both, everything)
    bins = np.histogram(scored["gabor"]["theta"], bins=6, range=(0, np.pi))[0]
    assert float(got["share"][0]) == 1 and float(got["share"][1]) < 0.2
    assert float(got["least_orientation"][0]) == pytest.approx(bins.min() / 64) and bins.min() > 0
    np.testing.assert_allclose(got["median_r2"], np.median(both["r2"], axis=1), rtol=1e-6)
    mixed = {**both, "gabor_like": jnp.asarray(np.arange(64) % 4 == 0)[None].repeat(2, axis=0)}
    half = gabor.summary(mixed, np.stack([np.arange(64) < 6, np.arange(64) >= 60]))["share"]
    np.testing.assert_allclose(half, [2 / 6, 1 / 4], rtol=1e-6)
    looser = {**both, "r2": jnp.where(both["gabor_like"], 0.66, 0.64)}  # below .7, where `fitted` begins
    assert float(gabor.summary(looser, everything)["localised_fit"][0]) == 1
    assert float(gabor.summary(looser, everything)["fitted"][0]) == 0
    long = {**looser, "localised": both["gabor_like"] & (np.arange(64) < 16)}
    assert float(gabor.summary(long, everything)["localised_fit"][0]) == pytest.approx(16 / 64)
    live = everything & ~np.asarray(both["gabor_like"]) | (np.arange(64) < 1)
    few = gabor.summary(both, live)
    assert float(few["share"][0]) == 1
    assert float(few["least_orientation"][0]) == 0
    assert float(few["median_r2"][0]) == pytest.approx(float(both["r2"][0, 0]))


def test_the_smallest_box_by_brute_force():
    energy = np.random.default_rng(0).random((5, 7)) ** 6
    cuts = lambda n: itertools.combinations(range(n + 1), 2)
    holds = lambda a, b, c, d: energy[a:b, c:d].sum() >= 0.9 * energy.sum()
    best = min((b - a) * (d - c) for a, b in cuts(5) for c, d in cuts(7) if holds(a, b, c, d))
    assert float(gabor.smallest_box(jnp.asarray(energy))) == pytest.approx(best / 35)
    assert best < 35


def test_bandwidths_that_can_be_worked_out():
    w = np.sqrt(np.log(2)) / (2 * np.pi * 3)
    narrow = np.log2((0.25 + w) / (0.25 - w))
    # a cosine of frequency 0 is a Gaussian: a lowpass. A sine of frequency near 0 is its derivative, whose power
    # nu² exp(-4 pi² sigma² nu²) is half its peak at z = 0.23196 and 2.67835, the roots of z exp(1 - z) = 1/2, z ~ nu²
    derivative = 0.5 * np.log2(2.67835 / 0.23196)
    got = gabor.half_power_octaves(
        jnp.array([3.0, 3.0, 2.0, 2.0]), jnp.array([0.25, 0.25, 0.0, 0.01]), jnp.array([0.3, 1.5, 0.0, np.pi / 2])
    )
    np.testing.assert_allclose(got, [narrow, narrow, np.inf, derivative], rtol=2e-3)


def test_colour_rows_are_refused():
    with pytest.raises(UserError, match="grey images"):
        gabor.scores(jnp.zeros((2, 48)), (4, 4, 3))


def test_the_rows_of_a_run_are_scored_where_they_are_live(tmp_path, kinds):
    """A member whose rows are Gabor functions, gratings and a dead Gabor function, beside its controls."""
    base = Experiment(name="x", data=ImagePatches(size=12, n_train=2_000, n_held_out=64), d_sae=21, n_steps=2)
    results = sae.run(base, out=tmp_path / "run", wandb="off")
    rows = np.concatenate([kinds["gabor"][:18], kinds["grating"], kinds["gabor"][18:19]])

    class Made(sae.Results):
        """That run, with other weights and firing rates."""

        members = results.members

        def sae(self, member):
            one = results.sae(member)
            return sae.Sae(one.W_enc[...], one.b_enc[...], jnp.asarray(rows), one.b_dec[...], sae.Relu())

    made = Made(results.folder)
    made.cohorts[0].firing_rates = lambda: {0: np.array([0.1] * 20 + [0.0])}
    found = GaborLike(n_random=32)(made).loc[0]
    assert set(found.index) == set(GaborLike.columns)
    assert found["analysis/gabor_share"] == pytest.approx(18 / 20), "the gratings fail, the dead row does not count"
    assert found["analysis/gabor_fitted"] == 1 and found["analysis/gabor_localised"] == pytest.approx(18 / 20)
    assert found["analysis/gabor_share_random"] == 0 and found["analysis/gabor_share_pca"] <= 0.15
    made.source = lambda member: sae.Superposition(n_held_out=64)
    made.data = lambda member: made.source(member).load()
    with pytest.raises(UserError, match="allowed: data of grey images"):
        GaborLike()(made)


def test_random_rows_are_drawn_for_each_seed_and_principal_components_once(tmp_path, monkeypatch):
    base = Experiment(name="x", data=ImagePatches(size=5, n_train=2_000, n_held_out=64), d_sae=4, n_steps=2)
    sweep = sae.Sweep(name="x", members=sae.grid(base, {"seed": (1, 2), "penalty.l1": (0.0, 0.1)}))
    results, seen = sae.run(sweep, out=tmp_path / "run", wandb="off"), []

    def no_fits(rows, shape):
        """In the place of the scores, whose fits take most of a minute: only the rows matter here."""
        seen.append(np.asarray(rows))
        verdicts = ("gabor_like", "localised", "oriented", "bandpass")
        return {name: jnp.zeros(rows.shape[:-1], bool) for name in verdicts} | {
            name: jnp.zeros(rows.shape[:-1]) for name in ("theta", "r2")
        }

    monkeypatch.setattr(gabor, "scores", no_fits)
    GaborLike(n_random=8)(results)
    one, two = (rows for rows in seen if rows.shape == (8, 25))
    assert not np.allclose(one, two) and [rows.shape for rows in seen].count((25, 25)) == 1

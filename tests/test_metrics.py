"""Every metric against its formula, written once more in numpy, and on cases that can be checked by hand."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae import Relu, Sae
from sae.core import metrics, model

ROOT = Path(__file__).parents[1]


def test_the_page_takes_its_definitions_from_the_table_of_metrics():
    """A row per metric; the floors of chance are told in one sentence under them."""
    in_cell = lambda text: text.replace("|", "\\|")
    page = ROOT / "docs" / "definitions.md"
    for table in (metrics.METRICS, metrics.OF_A_STEP):
        named = [(name, metric) for name, metric in table.items() if not name.endswith("_chance")]
        rows = [f"| `{name}` | {in_cell(metric.caption)} |" for name, metric in named]
        assert "\n".join(rows) in page.read_text(), "\n".join([f"{page.name} should have:", *rows])


def make(d=7, f=12, n=40, seed=0, offset=3.0):
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(f, d)).astype(np.float32)
    sae = Sae(
        jnp.asarray(W), jnp.asarray(rng.normal(size=f) - 3, jnp.float32), jnp.asarray(W / 9), jnp.zeros(d), Relu()
    )
    x = (rng.normal(size=(d, n)) + offset).astype(np.float32)
    return sae, jnp.asarray(x)


def numbers(parts, sae, pivot):
    s, m = metrics.Sums.zero(7, 12), metrics.Moments.zero(7)
    for x in parts:
        out = model.forward(sae, x)
        s = jax.tree.map(jnp.add, s, metrics.sums(out.latents, out.x_hat, x))
        m = jax.tree.map(jnp.add, m, metrics.moments(x, pivot))
    return {k: float(v) for k, v in metrics.finish(s, m).items()}, s, m


def test_every_number_is_its_formula():
    sae, x = make()
    got, _, _ = numbers([x], sae, jnp.full(7, 2.5))
    f = np.asarray(sae.encode(x.T), np.float64)
    x64, x_hat = np.asarray(x.T, np.float64), np.asarray(sae(x.T), np.float64)
    e = x64 - x_hat
    total, squares = f.sum(1), (f**2).sum(1)
    norms = np.linalg.norm(x64, axis=1) * np.linalg.norm(x_hat, axis=1)
    rates = (f != 0).mean(0)
    some = squares > 0
    expected = {
        "mse": (e**2).sum(1).mean(),
        "fvu": (e**2).sum() / ((x64 - x64.mean(0)) ** 2).sum(),
        "r2_median": np.median(1 - (e**2).sum(0) / ((x64 - x64.mean(0)) ** 2).sum(0)),
        "l0": (f != 0).sum(1).mean(),
        "l0_relative": (f > 0.01 * f.max(1, keepdims=True)).sum(1).mean(),
        "n_eff": np.where(some, total**2 / np.where(some, squares, 1), 0).mean(),
        "l1": total.mean(),
        "cosine": np.where(norms > 0, (x64 * x_hat).sum(1) / np.where(norms > 0, norms, 1), 0).mean(),
        "shrinkage": (x_hat**2).sum() / (x_hat * x64).sum(),
        "firing_rate_q10": np.quantile(rates, 0.1),
        "firing_rate_q50": np.quantile(rates, 0.5),
        "firing_rate_q90": np.quantile(rates, 0.9),
    }
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=2e-5, abs=1e-6), name


def test_sums_of_batches_of_any_size_add():
    sae, x = make()
    whole, _, _ = numbers([x], sae, jnp.zeros(7))
    parts, _, m = numbers([x[:, :25], x[:, 25:]], sae, jnp.zeros(7))
    assert int(m.n) == 40
    for name in whole:
        assert parts[name] == pytest.approx(whole[name], rel=1e-5), name


def test_a_far_mean_does_not_spoil_fvu_where_the_pivot_is_near():
    sae, x = make(offset=1000.0)
    got, _, _ = numbers([x], sae, jnp.full(7, 1000.0))
    x64, x_hat = np.asarray(x.T, np.float64), np.asarray(sae(x.T), np.float64)
    assert got["fvu"] == pytest.approx(((x64 - x_hat) ** 2).sum() / ((x64 - x64.mean(0)) ** 2).sum(), rel=1e-4)


def test_n_eff_counts_equal_latents_and_l0_relative_drops_small_ones():
    latents = jnp.array([[1.0, 5.0, 0.0], [1.0, 0.04, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    x = jnp.ones((2, 3))
    s = metrics.sums(latents, x, x)
    assert float(s.active) == 5 and float(s.active_relative) == 4
    assert float(s.effective) == pytest.approx(3 + 5.04**2 / (25 + 0.0016))
    np.testing.assert_array_equal(s.fired, [2, 2, 1, 0])


def test_the_histogram_counts_every_latent_once_and_the_silent_in_the_first_bin():
    counts = metrics.firing_rate_histogram(np.array([0, 0, 1, 100, 1000]) / 1000)
    assert int(counts.sum()) == 5 and int(counts[0]) == 2 and int(counts[-1]) == 1
    assert int(counts[np.searchsorted(metrics.HISTOGRAM_EDGES, -3 + 1e-6) - 1]) == 1


def test_mmcs_by_hand_both_ways_and_its_floor():
    features = jnp.eye(3)
    W_dec = jnp.array([[2.0, 0, 0], [0, -5.0, 0], [1.0, 1.0, 0]])
    got = metrics.mmcs(features, jnp.array([1.0, 1.0, 2.0]), W_dec)
    r = 2**-0.5
    assert float(got["mmcs"]) == pytest.approx((1 + r + 0) / 3)
    assert float(got["mmcs_weighted"]) == pytest.approx((1 + r + 0) / 4)
    assert float(got["mmcs_reverse"]) == pytest.approx((1 + 0 + r) / 3)
    rng = np.random.default_rng(0)
    unit = lambda a: a / np.linalg.norm(a, axis=-1, keepdims=True)
    true = unit(rng.normal(size=(32, 16)))
    floor = metrics.mmcs_chance(jax.random.key(0), jnp.asarray(true, jnp.float32), jnp.ones(32), 64)
    random = [(true @ unit(rng.normal(size=(64, 16))).T).max(1).mean() for _ in range(200)]
    assert float(floor["mmcs_chance"]) == pytest.approx(np.mean(random), abs=0.01)

"""SynthBench: each rule by hand or by brute force, worlds saved and read, and those that SAELens has saved."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from scipy.stats import multivariate_normal, norm

from sae import Hierarchy, Orthonormal, Superposition, SynthBench, SynthWorld, UserError
from sae.core.files import Written
from sae.data import worlds
from sae.data.source import Draw
from sae.data.synth_bench import base_rates, compensated, tree_parents
from sae.data.worlds import Normals, World

N = 20_000
SMALL = SynthBench(d_in=16, n_features=80, n_roots=4, n_children=3, depth=2, p_min=0.02, n_held_out=256)


@functools.cache
def drawn(source=SMALL, n=N):
    """(the world, its sampler, examples x [n, d_in], values [n, n_features])."""
    sampler = source.load()
    x, values = jax.jit(sampler.labelled, static_argnums=1)(jax.random.key(1), n)
    return source.world(), sampler, np.asarray(x), np.asarray(values, np.float64)


def world(parents, p=1.0, exclusive=(), scaling=(), means=2.0, factor=None, deviations=0.0):
    """A world with these trees, made by hand."""
    n = len(parents)
    of = lambda some: np.isin(np.arange(n), some)
    factor = np.zeros((n, 0)) if factor is None else np.asarray(factor)
    return World(
        features=np.eye(n, dtype=np.float32), bias=np.zeros(n), probabilities=np.full(n, p) * np.ones(n),
        means=np.full(n, means) * np.ones(n), deviations=np.full(n, deviations), factor=factor,
        residuals=np.sqrt(1 - np.sum(factor**2, axis=1)), parents=np.asarray(parents), exclusive=of(exclusive),
        scaling=of(scaling),
    )  # fmt: skip


def values_of(made, n=N):
    return np.asarray(jax.jit(worlds.sampled(made), static_argnums=1)(jax.random.key(0), n))


def test_base_rates_and_trees_and_compensation_by_hand():
    rates = base_rates(4, 0.5, 0.4, 5e-4)
    np.testing.assert_allclose(rates[[0, 3]], [0.4, 5e-4], rtol=1e-6)
    np.testing.assert_allclose(rates[1], 5e-4 + 0.3995 * (2**-0.5 - 0.5) / 0.5, rtol=1e-5)
    expected = [-1, -1, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, -1]
    assert tree_parents(15, n_roots=2, n_children=2, depth=2).tolist() == expected
    parents, rates = np.array([-1, 0, 0, 1]), np.array([0.4, 0.2, 0.1, 0.15])
    both = compensated(rates, parents, np.array([True, True, False, False]))
    np.testing.assert_allclose(both, [0.4, 0.2 / 0.4 * 1.25, 0.1 / 0.4 * 1.5, 0.15 / 0.2])
    alone = compensated(rates, parents, np.zeros(4, bool))
    np.testing.assert_allclose(alone, [0.4, 0.5, 0.25, 0.75])
    assert compensated(np.array([0.1, 0.3]), np.array([-1, 0]), np.zeros(2, bool))[1] == 1  # clamped


def test_the_defaults_are_the_published_world():
    source = SynthBench()
    assert (source.n_features, source.d_in, source.n_in_trees) == (16_384, 768, 10_880)


def test_features_fire_as_often_as_stated_with_the_magnitudes_stated():
    free = dataclasses.replace(SMALL, n_roots=0, correlation=0.0)
    made, sampler, x, values = drawn(free)
    p, active = made.probabilities, values > 0
    np.testing.assert_allclose(p, base_rates(80, 0.5, 0.4, 0.02), rtol=1e-5)
    assert (np.abs(active.mean(0) - p) < 4.5 * np.sqrt(p * (1 - p) / N)).all()
    together = np.corrcoef(active, rowvar=False)[np.triu_indices(80, 1)]
    assert np.abs(together).max() < 5.5 / np.sqrt(N)
    assert made.means[0] == 5 and made.means[-1] == 4 and np.ptp(np.diff(made.means)) < 1e-5
    counts = active.sum(0)
    means = values.sum(0) / counts
    deviations = np.sqrt((values**2).sum(0) / counts - means**2)
    sound = made.deviations < 1.2  # far from where relu cuts
    error = made.deviations / np.sqrt(counts) + 1e-6
    assert sound.sum() > 50 and (np.abs(means - made.means) < 4.5 * error)[sound].all()
    assert (np.abs(deviations - made.deviations) < 6 * error)[sound].all()
    assert 0.2 < made.deviations.std() < 0.6 and (made.deviations > 0).all()
    np.testing.assert_allclose(np.linalg.norm(made.bias), 0.5, rtol=1e-5)
    np.testing.assert_allclose(x, values @ made.features + made.bias, atol=1e-4)
    np.testing.assert_allclose(sampler.frequencies, active.mean(0), atol=0.02)


def test_in_a_tree_children_need_parents_exclude_siblings_and_come_near_their_base_rates():
    made, sampler, _, values = drawn()
    active, parents = values > 0, made.parents
    child = np.flatnonzero(parents >= 0)
    assert len(child) == 48 and (parents == sampler.parents).all()
    assert not (active[:, child] & ~active[:, parents[child]]).any()
    for parent in np.unique(parents[child]):
        assert active[:, parents == parent].sum(1).max() <= 1
    # such frequent siblings compete much, so that compensation falls short; without it, rates are products
    base = base_rates(80, 0.5, 0.4, 0.02)
    ratio = active.mean(0) / base
    assert 0.55 < ratio[child].mean() < 0.9 and 0.93 < ratio[parents < 0].mean() < 1.07
    plain = dataclasses.replace(SMALL, compensate=False).world().probabilities
    np.testing.assert_allclose(plain, base, rtol=1e-5)
    assert (made.probabilities[child] > 2 * base[child]).all()


def test_one_of_several_siblings_stays_uniformly_and_what_is_below_the_others_falls_silent():
    # 0 has children 1, 2, 3; 1 has 4 and 2 has 5; 6 has 7 and 8, which do not exclude each other; 9 is free
    made = world([-1, 0, 0, 0, 1, 2, -1, 6, 6, -1], exclusive=(0, 1, 2))
    active = values_of(made) > 0
    assert active[:, [0, 6, 7, 8, 9]].all()  # all that may fire does
    assert (active[:, 1:4].sum(1) == 1).all()
    share = active[:, 1:4].mean(0)
    assert (np.abs(share - 1 / 3) < 4.5 * np.sqrt(2 / 9 / N)).all()
    assert (active[:, 4] == active[:, 1]).all() and (active[:, 5] == active[:, 2]).all()


def test_groups_of_unequal_size_and_any_numbering_follow_the_rules():
    parents = [4, 4, -1, 4, 2, 2, -1, 6, 0]  # 2 has 4 and 5; 4 has 0, 1, 3; 0 has 8; 6 has 7
    made = world(parents, p=0.7, exclusive=(2, 4))
    active = values_of(made) > 0
    for i, parent in enumerate(parents):
        assert parent < 0 or not (active[:, i] & ~active[:, parent]).any()
    assert active[:, [4, 5]].sum(1).max() == 1 and active[:, [0, 1, 3]].sum(1).max() == 1
    # 4 stays where it fires with 2 and wins against 5: .7 · .7 · (.3 + .7 / 2)
    expected = 0.7 * 0.7 * (0.3 + 0.35)
    assert abs(active[:, 4].mean() - expected) < 4.5 * np.sqrt(expected / N)
    # of three: .7 (.3² + 2 · .7 · .3 / 2 + .7² / 3) of the examples with 4
    given = 0.7 * (0.09 + 0.21 + 0.49 / 3)
    assert np.abs(active[active[:, 4]][:, [0, 1, 3]].mean(0) - given).max() < 0.03
    assert abs(active[:, 7].mean() - 0.49) < 0.02 and abs(active[active[:, 0], 8].mean() - 0.7) < 0.04


def test_children_scale_with_what_their_parents_have_become():
    made = world([-1, 0, 1, -1, 3], scaling=(0, 1), means=[2.0, 3.0, 4.0, 5.0, 6.0], deviations=[0.5, 0, 0, 1.0, 0])
    values = values_of(made, 500)
    np.testing.assert_allclose(values[:, 1], 3 * values[:, 0] / 2, rtol=1e-5)
    np.testing.assert_allclose(values[:, 2], 4 * values[:, 1] / 3, rtol=1e-5)
    np.testing.assert_allclose(values[:, 4], 6, rtol=1e-6)  # 3 does not scale
    assert values[:, 0].std() > 0.4


def test_the_copula_correlates_firings_as_two_normal_numbers_would():
    factor = [[0.8, 0.0], [0.5, 0.5], [-0.6, 0.2]]
    made = world([-1, -1, -1], p=[0.3, 0.1, 0.2], factor=factor)
    active = values_of(made, 100_000) > 0
    assert np.abs(active.mean(0) - made.probabilities).max() < 0.006
    for i, j in ((0, 1), (0, 2), (1, 2)):
        r = np.dot(factor[i], factor[j])
        low = [norm.ppf(made.probabilities[i]), norm.ppf(made.probabilities[j])]  # P(z > t) = P(-z < -t)
        both = multivariate_normal([0, 0], [[1, r], [r, 1]]).cdf(low)
        assert abs((active[:, i] & active[:, j]).mean() - both) < 4.5 * np.sqrt(both / 100_000)


def test_loadings_leave_each_feature_a_variance_of_its_own():
    made = dataclasses.replace(SMALL, correlation=0.5).world()
    shared = (made.factor**2).sum(1)
    assert shared.max() <= 0.99 + 1e-5 and (shared > 0.98).any()
    np.testing.assert_allclose(made.residuals**2 + shared, 1, rtol=1e-5)


def test_directions_take_the_steps_of_adam_on_the_stated_loss():
    rows = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)

    def loss(v):
        g = v @ v.T
        own = jnp.diag(g)
        return jnp.sum((g - jnp.diag(own)) ** 2) + len(v) * jnp.sum((own - 1) ** 2)

    v = jnp.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    begun, adam = loss(v), optax.adam(3e-3)
    state = adam.init(v)
    for _ in range(20):
        updates, state = adam.update(jax.grad(loss)(v), state)
        v = optax.apply_updates(v, updates)
    v = v / jnp.linalg.norm(v, axis=1, keepdims=True)
    made = worlds.orthogonalised(rows, 20, 3e-3)
    np.testing.assert_allclose(made, v, atol=2e-5)
    assert loss(v) < 0.95 * begun
    np.testing.assert_allclose(np.linalg.norm(worlds.orthogonalised(rows, 0, 1.0), axis=1), 1, rtol=1e-5)


def test_normal_numbers_are_torchs():
    """torch 2.13: torch.randn of 20 and then of 16 from one CPU generator, of seed 5."""
    normals = Normals(5)
    first = normals.draw(20)
    np.testing.assert_allclose(first[:4], [1.8423298597, 0.5188871622, -1.7119213343, -1.7013792992], atol=1e-6)
    last = [0.7447769642, 0.0316568948, -1.1724143028, -1.5069403648]  # the last 16 are drawn again
    np.testing.assert_allclose(first[-4:], last, atol=1e-6)
    np.testing.assert_allclose(normals.draw(4, 4)[0, :3], [1.9230599403, 0.2879498005, 0.9367964864], atol=1e-6)
    many = Normals(0).draw(100, 100)
    assert abs(many.mean()) < 0.05 and abs(many.std() - 1) < 0.03 and Normals(3).draw(5).shape == (5,)


def test_same_seed_same_world_and_examples_and_another_seed_another():
    _, sampler, _, _ = drawn()
    again = SynthBench(**{f.name: getattr(SMALL, f.name) for f in dataclasses.fields(SMALL)}).load()
    other = dataclasses.replace(SMALL, world_seed=1).load()
    one = np.asarray(sampler.sample(jax.random.key(3), 64))
    assert np.array_equal(one, again.sample(jax.random.key(3), 64))
    assert not np.array_equal(sampler.features, other.features)
    block = sampler.blocks(Draw(seed=0, batch_size=32, steps=3), None, 0)(0)
    assert sampler.one_by_one
    together = np.asarray(jax.jit(block.batches)(4))
    np.testing.assert_allclose(together[1], np.asarray(block.batch(5)).T, atol=1e-5)


def test_normalized_to_a_mean_norm_of_root_d():
    sampler = dataclasses.replace(SMALL, normalize="mean-norm-sqrt-d").load()
    x, values = sampler.labelled(jax.random.key(0), 20_000)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1).mean(), 4, rtol=0.02)
    raw = np.asarray(values) @ SMALL.world().features + SMALL.world().bias
    np.testing.assert_allclose(sampler.normalization.undo(np.asarray(x)), raw, atol=1e-3)


@pytest.mark.parametrize(
    "source",
    [Superposition(d_in=8, n_features=16), Superposition(d_in=8, n_features=16, generator="A"), Orthonormal(d_in=8),
     Hierarchy(), SMALL],
    ids=lambda source: type(source).__name__,
)  # fmt: skip
def test_every_synthetic_source_says_which_features_are_in_its_examples(source):
    sampler = source.load()
    x, values = (np.asarray(a) for a in sampler.labelled(jax.random.key(2), 500))
    assert np.array_equal(x, sampler.sample(jax.random.key(2), 500)) and values.shape == (500, len(sampler.features))
    bias = SMALL.world().bias if source is SMALL else 0
    np.testing.assert_allclose(values @ sampler.features + bias, x, atol=1e-4)
    assert (values >= 0).all() and abs((values > 0).sum(1).mean() / sampler.frequencies.sum() - 1) < 0.25
    if isinstance(source, Hierarchy):
        assert sampler.parents.tolist() == [-1] * 3 + [0] * 3 + [1] * 3 + [2] * 3 + [-1] * 8


def test_a_world_is_saved_and_read(tmp_path):
    made, sampler, _, _ = drawn()
    made.save(tmp_path)
    read = worlds.read(tmp_path)
    for field in dataclasses.fields(World):
        one, other = getattr(made, field.name), getattr(read, field.name)
        assert one == other if field.name == "config" else np.allclose(one, other, atol=1e-6), field.name
    source = SynthWorld(path=str(tmp_path), n_held_out=256)
    there = source.load()
    np.testing.assert_allclose(there.sample(jax.random.key(9), 32), sampler.sample(jax.random.key(9), 32), atol=1e-3)
    assert set(source.fingerprint()) == {worlds.CONFIG, worlds.WEIGHTS, worlds.TREES}
    beside = SynthWorld(path=Written(tmp_path.name, tmp_path.parent))  # as a definition file in the parent has it
    assert beside.fingerprint() == source.fingerprint() and beside.load().d_in == 16
    with pytest.raises(UserError, match="cannot be made: File exists"):
        made.save(tmp_path / worlds.CONFIG)
    world([-1, -1]).save(tmp_path)  # without trees: the file of the others goes
    assert not (tmp_path / worlds.TREES).exists() and (worlds.read(tmp_path).parents == -1).all()


def saelens_files(folder, config=None, weights=None, roots=None):
    """A world of 20 features in 4 dimensions as SAELens writes it, which keeps no magnitudes."""
    rng = np.random.default_rng(0)
    full = {
        "feature_vectors": rng.standard_normal((20, 4)), "bias": np.ones(4), "firing_probabilities": np.full(20, 0.3),
        "correlation_factor": 0.1 * rng.standard_normal((20, 2)), "correlation_diag": np.full(20, 0.9),
    } | (weights or {})  # fmt: skip
    recipe = {
        "seed": 11,
        "std_firing_magnitudes": {"generator_name": "folded_normal", "mean": 0.5, "std": 0.5},
        "mean_firing_magnitudes": {"generator_name": "linear", "start": 5.0, "end": 4.0},
    } | (config or {})
    node = lambda i, children=(): {
        "feature_index": i, "mutually_exclusive_children": bool(children), "scale_children_by_parent": i == 0,
        "feature_id": None, "children": list(children),
    }  # fmt: skip
    kept = {name: value.astype(np.float32) for name, value in full.items() if value is not None}
    safetensors.numpy.save_file(kept, folder / worlds.WEIGHTS)
    (folder / worlds.CONFIG).write_text(json.dumps(recipe))
    trees = [node(0, [node(2), node(3)]), node(1)] if roots is None else roots
    (folder / worlds.TREES).write_text(json.dumps({"roots": trees}))


def test_a_world_of_saelens_is_read_and_its_magnitudes_are_drawn_again(tmp_path):
    saelens_files(tmp_path)
    read = worlds.read(tmp_path)
    # torch: (.5 + .5 * torch.randn(20, generator=torch.Generator().manual_seed(12))).abs(), seed 11 + 1
    np.testing.assert_allclose(read.deviations, np.abs(0.5 + 0.5 * Normals(12).draw(20)), atol=1e-6)
    np.testing.assert_allclose(read.means, np.linspace(5, 4, 20), rtol=1e-6)
    np.testing.assert_allclose(read.residuals, np.sqrt(0.9), rtol=1e-6)
    assert read.parents[:4].tolist() == [-1, -1, 0, 0] and read.exclusive[0] and read.scaling[0]
    saelens_files(tmp_path, {"std_firing_magnitudes": 0.25, "mean_firing_magnitudes": 2})
    assert (worlds.read(tmp_path).deviations == 0.25).all() and (worlds.read(tmp_path).means == 2).all()
    exponential = {"generator_name": "exponential", "start": 4.0, "end": 1.0}
    saelens_files(tmp_path, {"mean_firing_magnitudes": exponential})
    np.testing.assert_allclose(worlds.read(tmp_path).means, 4.0 ** (1 - np.arange(20) / 19), rtol=1e-5)


@pytest.mark.parametrize(
    "changed, part",
    [
        (dict(config={"seed": None}), "random magnitudes without a seed"),
        (dict(config={"std_firing_magnitudes": {"generator_name": "cauchy"}}), "allowed: constant, linear"),
        (dict(config={"mean_firing_magnitudes": None}), "allowed: a number, or an object"),
        (dict(config={"mean_firing_magnitudes": {"generator_name": "linear", "start": "5"}}), "start: got '5'"),
        (dict(config={"mean_firing_magnitudes": 10**400}), "allowed: a number, or an object"),
        (dict(config={"mean_firing_magnitudes": 0.0}), "mean magnitude of 0"),
        (dict(weights={"bias": np.ones(3)}), "bias: got [3], allowed: [4]"),
        (dict(weights={"feature_vectors": None}), "feature_vectors: it is missing"),
        (dict(weights={"firing_probabilities": np.full(20, 1.5)}), "got 1.5, allowed: 0 to 1"),
        (dict(weights={"correlation_diag": np.zeros(20)}), "correlation_diag: got 0"),
        (dict(weights={"bias": np.full(4, np.nan)}), "not finite"),
        (dict(roots=[{"feature_index": 20, "children": []}]), "feature_index: got 20, allowed: 0 to 19"),
        (dict(roots=[{"feature_index": None, "children": []}]), "feature_index: got None"),
        (dict(roots=[{"feature_index": 1}, {"feature_index": 1}]), "got 1 twice"),
        (dict(roots=[{"feature_index": 1, "children": 3}]), "list of nodes"),
        (dict(roots=[{"feature_index": 1, "scale_children_by_parent": "yes"}]), "allowed: true, false"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_one_line(changed, part, tmp_path):
    saelens_files(tmp_path, **changed)
    with pytest.raises(UserError) as caught:
        worlds.read(tmp_path)
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_missing_and_damaged_files_are_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="no world there"):
        SynthWorld(path=str(tmp_path / "none")).fingerprint()
    saelens_files(tmp_path)
    for name in (worlds.CONFIG, worlds.WEIGHTS, worlds.TREES):
        kept = (tmp_path / name).read_bytes()
        for damage in (kept[: len(kept) // 2], b"[" * 100_000, b""):
            (tmp_path / name).write_bytes(damage)
            with pytest.raises(UserError) as caught:
                worlds.read(tmp_path)
            assert name in str(caught.value) and "\n" not in str(caught.value)
        (tmp_path / name).write_bytes(kept)
    (tmp_path / worlds.WEIGHTS).unlink()
    with pytest.raises(UserError, match="no such file"):
        worlds.read(tmp_path)


@pytest.mark.parametrize(
    "fields, part",
    [
        (dict(p_min=0.5), "allowed: 0 < p_min < p_max"),
        (dict(p_min=0.0), "allowed: 0 < p_min < p_max"),
        (dict(magnitude_last=0.0), "magnitudes from 5 to 0 beside scale_children"),
        (dict(n_roots=7), "7 trees have 91 features and n_features is 80"),
    ],
)
def test_errors(fields, part):
    with pytest.raises(UserError) as caught:
        dataclasses.replace(SMALL, **fields).load()
    assert part in str(caught.value) and "\n" not in str(caught.value)

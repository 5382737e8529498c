"""Optimizers: the learning rate of a step in closed form, and every rule beside Optax's own on a plain tree."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sae
from sae import Adam, Ema, Free, Lion, Muon, Relu, Sae, ScheduleFree, UnitNorm, train
from sae.core import model
from sae.experiment import tied_to_length, validate
from sae.methods import optimizers

SHAPES = {"W_enc": (5, 3), "b_enc": (5,), "W_dec": (5, 3), "b_dec": (3,)}
X = jax.random.normal(jax.random.key(0), (64, 64))


def tree(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in SHAPES.items()}


def as_sae(values: dict) -> Sae:
    return Sae(**values, activation=None, own={"t": jnp.ones(5)})


def steps(chain, start, gradients):
    state = chain.init(start)
    for gradient in gradients:
        updates, state = chain.update(gradient, state, start)
        start = optax.apply_updates(start, updates)
    return start, state


def compared(ours: optimizers.Scheduled, theirs, n: int = 6, atol: float = 1e-6, names=tuple(SHAPES)):
    """n updates of ours and of an Optax chain, of the same gradients."""
    gradients = [tree(i) for i in range(1, n + 1)]
    with_own = [model.replace(as_sae(g), own={"t": jnp.zeros(5)}) for g in gradients]
    got, state = steps(ours.transform(n), as_sae(tree(0)), with_own)
    expected, their_state = steps(theirs, tree(0), gradients)
    for name in names:
        np.testing.assert_allclose(getattr(got, name)[...], expected[name], atol=atol, err_msg=name)
    np.testing.assert_array_equal(got.own["t"][...], 1)  # no gradient and no decay
    return got, state, their_state, expected


def test_adam_is_optax_s_with_decay_clipping_and_warm_up():
    rate = lambda t: 0.1 * jnp.minimum(1, (t + 1) / 4)
    chain = optax.chain(optax.clip_by_global_norm(2.0), optax.adamw(rate, b1=0.8, b2=0.9, weight_decay=0.3))
    compared(Adam(lr=0.1, b1=0.8, b2=0.9, weight_decay=0.3, warmup_steps=4, clip=2.0), chain)


def test_lion_is_optax_s():
    compared(Lion(lr=0.1, b1=0.8, b2=0.95, weight_decay=0.3), optax.lion(0.1, b1=0.8, b2=0.95, weight_decay=0.3))


def test_muon_is_optax_s_for_matrices_and_adam_for_the_rest():
    ours = Muon(lr=0.1, momentum=0.9, b1=0.8, b2=0.9, weight_decay=0.3)
    theirs = optax.contrib.muon(0.1, beta=0.9, weight_decay=0.3, consistent_rms=0.2)
    compared(ours, theirs, atol=1e-5, names=("W_enc", "W_dec"))
    # Optax has Nesterov's variant of Adam beside it
    compared(ours, optax.adamw(0.1, b1=0.8, b2=0.9, weight_decay=0.3), names=("b_enc", "b_dec"))


def test_the_update_of_muon_is_a_nearly_orthogonal_matrix_of_its_root_mean_square():
    G = jax.random.normal(jax.random.key(1), (40, 12)) * jnp.logspace(0, -1, 12)
    U, _, V = np.linalg.svd(np.asarray(G), full_matrices=False)
    got = np.asarray(optimizers.orthogonal(G, 1e-8))
    values = np.linalg.svd(got, compute_uv=False)
    assert 0.6 < values.min() and values.max() < 1.25
    assert np.sum(got * (U @ V)) / np.linalg.norm(got) / np.linalg.norm(U @ V) > 0.97
    np.testing.assert_allclose(optimizers.orthogonal(G.T, 1e-8), got.T, atol=1e-5)
    np.testing.assert_array_equal(optimizers.orthogonal(0 * G, 1e-8), 0)
    one = as_sae(tree(0))
    update, _ = Muon(rms=0.3).direction().update(one, Muon(rms=0.3).direction().init(one), one)
    for name in ("W_enc", "W_dec"):
        assert float(jnp.sqrt(jnp.mean(getattr(update, name)[...] ** 2))) == pytest.approx(0.3, rel=0.25)


def test_muon_keeps_a_second_moment_of_vectors_alone():
    state = Muon().transform(1).init(as_sae(tree(0)))
    sizes = [leaf.size for leaf in jax.tree.leaves(state)]
    # a matrix has a momentum, a vector two moments; each parameter stands in the other's state as one number
    assert sum(sizes) == 2 * 15 + 2 * (5 + 3 + 5) + 2 * 2 + 3 + 3


def test_schedule_free_is_optax_s_where_nothing_is_projected():
    chain = optax.contrib.schedule_free_adamw(0.1, b1=0.8, b2=0.9, weight_decay=0.3)
    ours = ScheduleFree(lr=0.1, b1=0.8, b2=0.9, weight_decay=0.3)
    got, state, their_state, y = compared(ours, chain, atol=2e-6)
    x = optax.contrib.schedule_free_eval_params(their_state, y)
    for name in SHAPES:
        np.testing.assert_allclose(getattr(ours.weights(state, got), name)[...], x[name], atol=5e-6, err_msg=name)


def test_schedule_free_averages_projected_points_and_never_projects_the_mean_that_it_goes_on_from():
    """The rule written out: z projected, x the mean of all z by squared learning rates, y projected."""
    ours = ScheduleFree(lr=0.2, b1=0.7, b2=0.9, warmup_steps=3)
    keep = lambda one: UnitNorm().keep({}, one)
    start = keep(as_sae(tree(0)))
    chain, one = ours.transform(9), start
    state = chain.init(one)
    z = x = np.asarray(start.W_dec[...], np.float64)
    v, total = 0.0, 0.0
    unit = lambda W: W / np.linalg.norm(W, axis=1, keepdims=True)
    for t in range(1, 6):
        gradient = as_sae(tree(t))
        updates, state = chain.update(gradient, state, one, keep=keep)
        one = keep(jax.tree.map(jnp.add, one, updates))
        g, rate = np.asarray(gradient.W_dec[...], np.float64), 0.2 * min(1, t / 3)
        v, total = 0.9 * v + 0.1 * g * g, total + rate**2
        z = unit(z - rate * g / (np.sqrt(v / (1 - 0.9**t)) + 1e-8))
        x = x + rate**2 / total * (z - x)
        np.testing.assert_allclose(one.W_dec[...], unit(0.7 * x + 0.3 * z), atol=2e-5)
        np.testing.assert_allclose(ours.weights(state, one).W_dec[...], x, atol=2e-5)
    assert np.linalg.norm(x, axis=1).min() < 0.99


def test_schedule_free_carries_what_changes_from_outside(tiny):
    """BatchTopK's threshold follows the batches, no gradient; the evaluated one is that of the training weights."""
    changes = {"activation": sae.BatchTopK(k=4.0), "optimizer": ScheduleFree(lr=0.01), "constraint": UnitNorm()}
    e = validate(sae.replace(tiny, changes))
    state, step = train.init(e, X), jax.jit(train.step)
    for i in range(4):
        state, _ = step(e, state, jnp.int32(i), X)
    kept = train.trained(e, state)
    found = float(state.sae.own["threshold"][...])
    assert found != 0 and float(kept.own["threshold"][...]) == pytest.approx(found, rel=1e-5)
    np.testing.assert_allclose(np.linalg.norm(kept.W_dec[...], axis=1), 1, atol=1e-6)
    assert float(jnp.abs(kept.W_enc[...] - state.sae.W_enc[...]).max()) > 1e-4
    spoilt = jax.tree.map(lambda a: a * jnp.nan if a.dtype == jnp.float32 else a, state.opt_state)
    broken = dataclasses.replace(state, diverged=jnp.array(True), opt_state=spoilt)
    np.testing.assert_allclose(train.trained(e, broken).W_enc[...], state.sae.W_enc[...])


@pytest.mark.parametrize("optimizer", [Adam(), Lion(), Muon(), ScheduleFree()], ids=lambda o: type(o).__name__)
def test_a_latent_that_starts_again_is_new_to_every_optimizer(optimizer, tiny):
    """Its moments are 0, others are kept; the weights that schedule-free evaluates are the new ones."""
    e = validate(sae.replace(tiny, {"optimizer": optimizer, "revival": sae.Resample(), "activation": sae.JumpRelu()}))
    state, step = train.init(e, X), jax.jit(train.step)
    for i in range(2):
        state, _ = step(e, state, jnp.int32(i), X)
    dead = np.arange(48) < 5
    state = dataclasses.replace(state, silent=jnp.where(dead, 10**6, 0))
    after = train.revive(e, state, jnp.int32(2), X[None])
    is_sae = lambda node: isinstance(node, Sae)
    pairs = [(old, new) for old, new in zip(*(jax.tree.leaves(s.opt_state, is_leaf=is_sae) for s in (state, after)),
                                            strict=True) if is_sae(old)]  # fmt: skip
    assert pairs
    for old, new in pairs:
        for name in ("W_enc", "W_dec", "b_enc"):
            a, b = np.asarray(getattr(old, name)[...]), np.asarray(getattr(new, name)[...])
            if a.ndim:
                assert not np.any(b[dead])
                np.testing.assert_array_equal(b[~dead], a[~dead])
    kept = train.trained(e, after)
    np.testing.assert_allclose(kept.W_enc[...][dead], after.sae.W_enc[...][dead], atol=1e-6)


@pytest.mark.parametrize("shape", ["linear", "cosine", "1-sqrt"])
def test_the_learning_rate_warms_up_holds_decays_and_starts_again(shape):
    fallen = {
        "linear": lambda s: s,
        "cosine": lambda s: (1 - np.cos(np.pi * s)) / 2,
        "1-sqrt": lambda s: 1 - np.sqrt(1 - s),
    }
    adam = Adam(lr=2.0, warmup_steps=4, decay_steps=10, decay=shape, decay_to=0.1, restarts=2)
    cycle = [2 * min(1, (t + 1) / 4) * (0.1 + 0.9 * fallen[shape](min(1, (30 - t) / 10))) for t in range(30)]
    assert max(cycle) == 2 and cycle.count(2.0) == 18  # held from step 3 to step 20
    got = np.asarray(jax.vmap(lambda t: adam.learning_rate(t, 90))(jnp.arange(90)))
    np.testing.assert_allclose(got, np.tile(cycle, 3), rtol=1e-5)
    rest = np.asarray(jax.vmap(lambda t: adam.learning_rate(t, 91))(jnp.arange(91)))
    np.testing.assert_allclose(rest[:60], got[:60], rtol=1e-6)
    assert rest[90] == pytest.approx(2 * (0.1 + 0.9 * fallen[shape](0.1)), rel=1e-5)  # the last cycle has the rest


def test_the_rate_of_a_width_is_dictionary_learning_s_and_is_the_one_that_is_logged(tiny):
    rule = {"optimizer": Adam(lr=2e-4, width_rule="inverse-sqrt")}
    assert Adam(lr=2e-4, width_rule="inverse-sqrt").at_width(2**16).lr == pytest.approx(1e-4)
    assert Adam(lr=2e-4).at_width(2**16) == Adam(lr=2e-4)
    e = validate(sae.replace(tiny, rule))
    expected = 2e-4 / np.sqrt(48 / 2**14)
    state = train.init(e, X)
    assert float(train.numbers(e, state, jnp.int32(0), X)["lr"]) == pytest.approx(expected, rel=1e-5)
    after, _ = train.step(e, state, jnp.int32(0), X)
    assert float(jnp.abs(after.sae.W_enc[...] - state.sae.W_enc[...]).max()) == pytest.approx(expected, rel=1e-3)


def test_what_follows_the_length_of_a_run_is_said(tiny):
    base = sae.replace(tiny, {"optimizer": Adam()})
    assert tied_to_length(base, 10) is None
    for changes, why in (
        ({"optimizer.decay_steps": 5}, "optimizer.decay_steps = 5, which end with the run"),
        ({"optimizer.restarts": 2}, "optimizer.restarts = 2, which divide the run"),
        ({"optimizer": Muon(decay_steps=5)}, "optimizer.decay_steps = 5, which end with the run"),
    ):
        assert tied_to_length(sae.replace(base, changes), 10) == why
    assert tied_to_length(sae.replace(base, {"optimizer": ScheduleFree(warmup_steps=5, restarts=0)}), 10) is None


def test_schedule_free_takes_no_average_beside_its_own(tiny):
    with pytest.raises(sae.UserError, match="optimizer.ScheduleFree keeps a mean of its own: got average ema, allowed"):
        validate(sae.replace(tiny, {"optimizer": ScheduleFree(), "average": Ema()}))


def test_every_number_of_an_optimizer_is_swept_in_one_program(tiny, tmp_path, quiet):
    base = sae.replace(
        tiny,
        {"optimizer": Muon(lr=3e-3, warmup_steps=5, decay_steps=20), "constraint": Free(), "penalty.weighted": True},
    )
    axes = {"optimizer.momentum": (0.9, 0.95), "optimizer.restarts": (0, 1), "optimizer.weight_decay": (0.0, 1.0)}
    sweep = sae.Sweep(name="muon", members=sae.grid(base, axes))
    results = sae.run(sweep, out=tmp_path / "run", wandb="off", console=quiet)
    assert len(results.cohorts) == 1
    assert np.isfinite(results.members["eval/fvu"]).all() and results.members["eval/fvu"].nunique() == 8
    alone = sae.run(sweep.members[3], out=tmp_path / "alone", wandb="off", console=quiet)
    np.testing.assert_allclose(alone.sae(0).W_dec[...], results.sae(3).W_dec[...], atol=1e-3)
    assert Relu() == results.sae(3).activation

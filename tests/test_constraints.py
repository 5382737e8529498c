"""What the parameters keep to: norms, ties, absent biases, and matrices that are frozen at their start."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sae
from sae import Adam, AtMostUnitNorm, Ema, Free, Lion, Muon, Relu, Sae, ScheduleFree, UnitNorm, UnitNormNoBias, train
from sae.core import model
from sae.experiment import validate

W = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]], np.float32)
X = jax.random.normal(jax.random.key(0), (64, 64))


def one(W_dec=W, **changes) -> Sae:
    n, d = W_dec.shape
    made = Sae(*map(jnp.asarray, (W_dec, np.ones(n, np.float32), W_dec, np.ones(d, np.float32))), Relu())
    return model.replace(model.using(made, None), **changes)


@functools.partial(jax.jit, static_argnames="n")
def trained(experiment, n=5):
    """The state before training, the one after n steps, and the autoencoder that is kept."""
    start = train.init(experiment, X)
    state = jax.lax.fori_loop(0, n, lambda i, state: train.step(experiment, state, i, X)[0], start)
    return start, state, train.trained(experiment, state)


def test_at_most_unit_norm_scales_the_longer_rows_alone():
    np.testing.assert_allclose(AtMostUnitNorm().project(one()).W_dec[...], [[0.6, 0.8], [0.3, 0.4], [0, 0]], rtol=1e-6)
    gradient = one(3 * W)
    np.testing.assert_array_equal(AtMostUnitNorm().restrict(one(), gradient).W_dec[...], 3 * W)


def test_biases_that_are_off_have_no_gradient_and_are_zero():
    for constraint, zero in ((Free(b_enc=False), ("b_enc",)), (Free(b_enc=False, b_dec=False), ("b_enc", "b_dec"))):
        for result in (constraint.restrict(one(), one()), constraint.keep({}, one())):
            for name in ("b_enc", "b_dec"):
                np.testing.assert_array_equal(getattr(result, name)[...], float(name not in zero))
    assert UnitNormNoBias() != UnitNorm(b_dec=False) and not UnitNormNoBias().b_dec


@pytest.mark.parametrize("norm", [Free, AtMostUnitNorm, UnitNorm])
def test_a_tied_encoder_is_the_decoder_and_its_gradient_is_the_sum(norm):
    tied = norm(tied=True)
    a, b = np.float32([[1, 2], [3, 4], [5, 6]]), np.float32([[0, 1], [1, 0], [2, 2]])
    unit = one(np.float32([[1, 0], [0.6, 0.8], [0, 1]]))
    got = tied.restrict(unit, model.replace(unit, W_enc=jnp.asarray(a), W_dec=jnp.asarray(b)))
    expected = norm().gradient(unit, model.replace(unit, W_dec=jnp.asarray(a + b))).W_dec[...]
    np.testing.assert_array_equal(got.W_dec[...], expected)
    np.testing.assert_array_equal(got.W_enc[...], 0)
    kept = tied.keep({}, one(W_enc=jnp.zeros((3, 2))))
    np.testing.assert_array_equal(kept.W_enc[...], kept.W_dec[...])


def test_a_row_outside_the_cone_becomes_the_nearest_inside_and_keeps_its_norm():
    start = jnp.asarray([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    rows = jnp.asarray([[0.0, 5.0], [4.0, 3.0], [0.0, -1.0]])  # cosines 0, .8 and -1
    got = np.asarray(model.within_cosine(rows, start, 0.6))
    np.testing.assert_allclose(got[0], [3.0, 4.0], rtol=1e-6)
    np.testing.assert_array_equal(got[1], rows[1])
    np.testing.assert_allclose(got[2], [0, 0.6], atol=1e-6)  # the opposite has no nearest direction: the axis, shorter
    angles = np.linspace(0, 2 * np.pi, 20_001)
    inside = np.stack([np.cos(angles), np.sin(angles)], 1)[np.cos(angles) >= 0.6]
    nearest = inside[np.argmax(inside @ [0.0, 1.0])]
    np.testing.assert_allclose(got[0] / 5, nearest, atol=1e-3)


OPTIMIZERS = {
    "adam": Adam(lr=0.03, weight_decay=0.5, clip=0.1),
    "lion": Lion(lr=0.01, weight_decay=0.5),
    "muon": Muon(lr=0.03, weight_decay=0.5),
    "schedule-free": ScheduleFree(lr=0.03, weight_decay=0.5),
}


@pytest.mark.parametrize(("name", "frozen"), [("adam", "encoder"), *((name, "decoder") for name in OPTIMIZERS)])
def test_a_frozen_matrix_is_its_start_whatever_the_optimizer_does(name, frozen, tiny):
    changes = {"constraint": UnitNorm(frozen=frozen), "optimizer": OPTIMIZERS[name], "seed": 3}
    start, state, kept = trained(validate(sae.replace(tiny, changes)))
    still, moved = ("W_enc", "W_dec") if frozen == "encoder" else ("W_dec", "W_enc")
    for now in (state.sae, kept):
        np.testing.assert_array_equal(getattr(now, still)[...], getattr(start.sae, still)[...])
        assert float(jnp.abs(getattr(now, moved)[...] - getattr(start.sae, moved)[...]).max()) > 1e-3
    moments = [node for node in jax.tree.leaves(state.opt_state, is_leaf=lambda node: isinstance(node, Sae))
               if isinstance(node, Sae)]  # fmt: skip
    assert moments and all(not np.any(getattr(node, still)[...]) for node in moments if name != "schedule-free")


def test_the_gradient_of_what_is_frozen_is_not_clipped_with_the_others(tiny):
    """Adam's step does not know the gradient's size, so its first moment says what was clipped."""
    e = sae.replace(tiny, {"optimizer.clip": 0.01, "constraint": Free(frozen="decoder")})
    state = train.init(e, X)
    whole = jax.grad(train.loss, has_aux=True)(state.sae, e, jnp.int32(0), X)[0]
    rest = [np.asarray(getattr(whole, name)[...]) for name in ("W_enc", "b_enc", "b_dec")]
    norm = np.sqrt(sum(np.sum(g**2) for g in rest))
    assert norm > 0.01
    after, _ = train.step(e, state, jnp.int32(0), X)
    mu = next(n for n in jax.tree.leaves(after.opt_state, is_leaf=lambda n: isinstance(n, Sae)) if isinstance(n, Sae))
    np.testing.assert_allclose(mu.W_enc[...], 0.1 * rest[0] * 0.01 / norm, rtol=1e-4, atol=1e-9)


def test_a_soft_frozen_decoder_moves_within_its_cone_alone(tiny):
    base = sae.replace(tiny, {"optimizer.lr": 0.2, "optimizer.warmup_steps": 0, "average": Ema(decay=0.5)})
    start, _, free = trained(sae.replace(base, {"constraint": UnitNorm()}))
    cosines = lambda now: np.sum(np.asarray(now.W_dec[...]) * np.asarray(start.sae.W_dec[...]), axis=1)
    assert cosines(free).min() < 0.7
    _, state, kept = trained(sae.replace(base, {"constraint": UnitNorm(cosine=0.8)}))
    for now in (state.sae, kept):
        assert 0.8 - 1e-5 <= cosines(now).min() < 0.83
        np.testing.assert_allclose(np.linalg.norm(now.W_dec[...], axis=1), 1, atol=1e-5)


def test_parameters_start_within_their_constraint(tiny):
    e = sae.replace(tiny, {"b_dec_init": "mean", "constraint": UnitNormNoBias(tied=True)})
    start = train.init(validate(e), X).sae
    np.testing.assert_array_equal(start.b_dec[...], 0)
    np.testing.assert_array_equal(start.W_enc[...], start.W_dec[...])
    usual = train.init(validate(tiny), X).sae
    np.testing.assert_array_equal(start.W_dec[...], usual.W_dec[...])


def test_what_is_held_is_in_the_state_and_nothing_for_others(tiny):
    assert train.init(validate(tiny), X).held == {}
    for constraint, names in (
        (UnitNorm(frozen="decoder"), {"W_dec"}), (UnitNorm(cosine=0.8), {"W_dec"}),
        (UnitNorm(cosine=0.8, frozen="encoder"), {"W_enc", "W_dec"}),
    ):  # fmt: skip
        assert constraint.init(one()).keys() == names
    both = UnitNorm(cosine=0.8, frozen="encoder")
    _, state, _ = trained(validate(sae.replace(tiny, {"constraint": both, "optimizer.lr": 0.1})))
    assert float(jnp.abs(state.sae.W_dec[...] - state.held["W_dec"]).max()) > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"constraint": UnitNorm(tied=True, frozen="encoder")},
         "constraint.frozen: got encoder beside tied, allowed: decoder, which then freezes both"),
        ({"constraint": UnitNorm(frozen="decoder"), "revival": sae.Resample()},
         "constraint.frozen: got decoder beside revival resample, which moves rows; allowed: revival never"),
        ({"constraint": UnitNorm(cosine=0.8), "revival": sae.Resample()},
         "constraint.cosine: got 0.8 beside revival resample, which moves rows; allowed: revival never"),
    ],
)  # fmt: skip
def test_what_cannot_be_held_is_one_line(changes, message, tiny):
    with pytest.raises(sae.UserError, match=f"'tiny': {message}$"):
        validate(sae.replace(tiny, changes))


def test_a_run_with_a_held_decoder_goes_on_in_chunks_and_its_leaf_is_swept(tiny, tmp_path, quiet):
    base = sae.replace(tiny, {"constraint": UnitNorm(cosine=0.8), "optimizer.lr": 0.05})
    sweep = sae.Sweep(name="soft", members=sae.grid(base, {"constraint.cosine": (0.8, 0.95)}))
    how = {"wandb": "off", "console": quiet}
    whole = sae.run(sweep, out=tmp_path / "whole", **how)
    cut = sae.run(sweep, out=tmp_path / "cut", chunk_steps=7, **how)
    assert len(whole.cohorts) == 1
    for i, cosine in enumerate((0.8, 0.95)):
        np.testing.assert_array_equal(whole.sae(i).W_dec[...], cut.sae(i).W_dec[...])
        start = train.init(validate(sweep.members[i]), X).sae
        found = np.sum(np.asarray(whole.sae(i).W_dec[...]) * np.asarray(start.W_dec[...]), axis=1)
        assert cosine - 1e-5 <= found.min() < cosine + 0.02

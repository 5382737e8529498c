"""Activations: closed forms, ties, finite differences, and what an activation does with weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_definitions_published import D_SAE, X, golden_sae

import sae
from sae import (
    AbsTopK,
    BatchTopK,
    Digits,
    Experiment,
    GroupMax,
    MatchingPursuit,
    MultiTopK,
    Sae,
    Sigmoid,
    SoftThreshold,
    Tanh,
    TopAfa,
    TopK,
    train,
)
from sae.core import model
from sae.experiment import validate

Z = jnp.array([[3.0, -1.0], [-4.0, 0.5], [1.0, 2.0], [0.5, 2.0]])  # [d_sae, batch]


def bare(activation, d_sae=4, d_in=4) -> Sae:
    W = jnp.eye(d_sae, d_in)
    return Sae(W, jnp.zeros(d_sae), W, jnp.zeros(d_in), activation)


def latents(activation, z=Z):
    return np.asarray(activation(bare(activation, z.shape[0]), z))


def experiment(**chosen) -> Experiment:
    return Experiment(name="golden", data=Digits(), d_sae=D_SAE, n_steps=1, **chosen)


def test_activations_are_their_formulas():
    z = np.asarray(Z)
    np.testing.assert_allclose(latents(Sigmoid()), 1 / (1 + np.exp(-z)), rtol=1e-6)
    np.testing.assert_allclose(latents(Tanh()), np.tanh(z), rtol=1e-6)
    for trained in (False, True):
        signed, one_sided = (SoftThreshold(threshold=0.75, signed=s, trained=trained) for s in (True, False))
        np.testing.assert_array_equal(latents(signed), np.sign(z) * np.maximum(np.abs(z) - 0.75, 0))
        np.testing.assert_array_equal(latents(one_sided), np.maximum(z - 0.75, 0))
    np.testing.assert_array_equal(latents(AbsTopK(k=2)), [[3, 0], [-4, 0], [0, 2], [0, 2]])
    np.testing.assert_array_equal(latents(TopK(k=2)), [[3, 0], [0, 0], [1, 2], [0, 2]])
    np.testing.assert_array_equal(latents(GroupMax(k=2)), [[3, 0], [0, 0.5], [1, 2], [0, 0]])


@pytest.mark.parametrize("k", [1, 3, 5])
def test_of_equal_latents_no_more_than_k_survive(k):
    tied = jnp.full((8, 6), 2.0)
    for activation in (TopK(k=k), AbsTopK(k=k), AbsTopK(k=k, k_max=7)):
        assert (np.count_nonzero(latents(activation, tied), axis=0) == k).all()
    assert (np.count_nonzero(latents(AbsTopK(k=k), -tied), axis=0) == k).all()
    assert np.count_nonzero(latents(GroupMax(k=4), tied)) == 4 * 6


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_batch_keeps_no_more_than_k_per_example_however_many_are_equal(lanes):
    """The largest always survive, and of the equal ones at the border those of the first latents."""
    z = jnp.where(jax.random.uniform(jax.random.key(0), (8, 6)) < 0.3, 3.0, 1.0).at[0].set(-1.0)
    order = np.argsort(-np.asarray(z).ravel(), kind="stable")

    def kept(k, z):
        activation = BatchTopK(k=k)
        return activation.training(bare(activation, 8, 8), z)[0] != 0

    for k in (0.5, 1.0, 3.5, 7.0):
        expected = np.zeros(48, bool)
        expected[order[: round(6 * k)]] = True
        found = kept(k, z) if lanes == 1 else jax.vmap(kept)(jnp.array([k, 8.0]), jnp.stack([z, z]))[0]
        np.testing.assert_array_equal(found, expected.reshape(8, 6))
    assert int(kept(8.0, z).sum()) == int((z > 0).sum()), "zeros fill no place"


def test_multi_top_k_adds_the_error_of_more_latents():
    """With k = 3 and three times as many, by hand; sparsify's form is a share of the variance."""
    one = golden_sae(TopK(k=9))
    nine = float(train.loss(one, experiment(activation=TopK(k=9)), jnp.int32(0), X)[0])
    three = float(train.loss(one, experiment(activation=TopK(k=3)), jnp.int32(0), X)[0])
    both = lambda **how: float(
        train.loss(one, experiment(activation=MultiTopK(k=3, factor=3, weight=0.125, **how)), jnp.int32(0), X)[0]
    )
    assert both() == pytest.approx(three + nine / 8, rel=1e-6)
    assert both(k_max=4) == pytest.approx(three + nine / 8, rel=1e-6)
    variance = float(jnp.sum((X - X.mean(1, keepdims=True)) ** 2) / X.shape[1])
    assert both(form="fvu") == pytest.approx(three + nine / 8 / variance, rel=1e-6)


def pursued(W, b_dec, x, k, stop_on_repeat=True):
    """Matching pursuit of one example as a textbook has it: the residual itself is followed."""
    f, left = np.zeros(len(W)), x - b_dec
    for _ in range(k):
        products = W @ left
        i = int(np.argmax(products))
        if products[i] <= 0:
            break
        again = f[i] != 0
        f[i] += products[i]
        left = left - products[i] * W[i]
        if again and stop_on_repeat:
            break
    return f


@pytest.mark.parametrize("norms", [(1.0, 1.0), (0.5, 1.3)])
@pytest.mark.parametrize("stop_on_repeat", [True, False])
@pytest.mark.parametrize(("k", "k_max"), [(1, None), (4, None), (4, 9), (12, None)])
def test_matching_pursuit_is_the_textbooks(k, k_max, stop_on_repeat, norms):
    keys = jax.random.split(jax.random.key(1), 3)
    W, b_dec, x = (jax.random.normal(key, shape) for key, shape in zip(keys, ((12, 5), (5,), (30, 5)), strict=True))
    W = model.unit_rows(W) * jnp.linspace(*norms, 12)[:, None]
    activation = MatchingPursuit(k=k, k_max=k_max, stop_on_repeat=stop_on_repeat)
    one = Sae(jnp.zeros((12, 5)), jnp.ones(12), W, b_dec, activation)
    expected = [pursued(*(np.asarray(a, np.float64) for a in (W, b_dec, row)), k, stop_on_repeat) for row in x]
    np.testing.assert_allclose(one.encode(x), expected, atol=2e-5)
    whole = Sae(jnp.zeros((12, 5)), jnp.ones(12), W, b_dec, activation, apply_b_dec_to_input=False)
    np.testing.assert_array_equal(whole.encode(x), one.encode(x))
    error = np.linalg.norm(one(x) - x, axis=1)
    assert (error <= np.linalg.norm(x - b_dec, axis=1) + 1e-5).all()


def test_matching_pursuit_is_differentiated_through_every_round():
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(2), 4)
        W, x = jax.random.normal(keys[0], (9, 5), jnp.float64), jax.random.normal(keys[1], (5, 7), jnp.float64)
        activation = MatchingPursuit(k=4)
        W = model.unit_rows(W) * jnp.linspace(0.5, 1.3, 9)[:, None]
        zeros = jnp.zeros(9, jnp.float64)
        one = Sae(W, zeros, W, jax.random.normal(keys[2], (5,), jnp.float64), activation)

        def value(one):
            one = model.using(one, activation)
            f = activation(one, activation.pre_acts(one, x))
            return jnp.sum((model.decode(one, f) - x) ** 2) + jnp.sum(f**3)

        gradient, h = jax.grad(value)(model.using(one, None)), 1e-6
        for name in ("W_dec", "b_dec"):
            at = getattr(one, name)[...]
            direction = jax.random.normal(keys[3], at.shape, jnp.float64)
            ends = [value(model.replace(one, **{name: at + s * h * direction})) for s in (1, -1)]
            slope = float((ends[0] - ends[1]) / (2 * h))
            assert slope == pytest.approx(float(jnp.sum(getattr(gradient, name)[...] * direction)), rel=1e-5), name
        assert float(jnp.abs(gradient.W_enc[...]).max()) == 0 == float(jnp.abs(gradient.b_enc[...]).max())


def test_the_encoder_of_matching_pursuit_is_its_decoder_in_a_step_and_outside(tiny):
    """Another encoder changes nothing: neither a step's other parameters nor what is evaluated."""
    one = sae.replace(tiny, {"activation": MatchingPursuit(k=3), "penalty.l1": 0.0})
    x = jax.random.normal(jax.random.key(0), (64, 16))
    state = train.init(one, x)
    other = state.replace(sae=model.replace(state.sae, W_enc=jnp.ones((48, 64))))
    after = [train.step(one, s, jnp.int32(0), x)[0] for s in (state, other)]
    np.testing.assert_array_equal(after[0].sae.W_dec[...], after[1].sae.W_dec[...])
    trained = [train.trained(one, s) for s in after]
    np.testing.assert_array_equal(trained[0].encode(x.T), trained[1].encode(x.T))
    assert int((trained[0].encode(x.T) != 0).sum(1).max()) <= 3


def test_matching_pursuit_is_no_transcoder(tiny):
    changes = {"activation": MatchingPursuit(k=3), "task": sae.Transcoder(), "apply_b_dec_to_input": False}
    with pytest.raises(sae.UserError, match="activation.MatchingPursuit encodes with the decoder"):
        validate(sae.replace(tiny, changes))


def test_groups_are_of_one_size(tiny):
    with pytest.raises(sae.UserError, match="activation.k: got 5, allowed: a number that divides d_sae = 48"):
        validate(sae.replace(tiny, {"activation": GroupMax(k=5)}))


def by_a_sort(contributions, norm) -> np.ndarray:
    """How many of the largest contributions of one example have the norm that is nearest: TopAfa's k."""
    norms = np.sqrt(np.cumsum(np.sort(np.float64(contributions))[::-1] ** 2))
    return np.argmin(np.abs(norms - norm)) + 1


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("size", [0.0, 0.3, 1.0, 3.0, 100.0])
def test_top_afa_keeps_the_latents_whose_norm_is_nearest_to_the_inputs(size, apply_b_dec_to_input):
    keys = jax.random.split(jax.random.key(1), 4)
    W_dec = jax.random.normal(keys[0], (96, 16)) / 4
    b_dec = jax.random.normal(keys[1], (16,))
    one = Sae(W_dec, jnp.zeros(96), W_dec, b_dec, TopAfa(), apply_b_dec_to_input)
    x = size * jax.random.normal(keys[2], (16, 200)) + b_dec[:, None] * apply_b_dec_to_input
    z = jax.random.normal(keys[3], (96, 200)).at[:, 0].set(-1.0)
    found = np.asarray(TopAfa()(model.at(one, x), z))
    latents = np.maximum(z, 0)
    contributions = latents * np.linalg.norm(W_dec, axis=1)[:, None]
    norms = np.linalg.norm(x - b_dec[:, None] * apply_b_dec_to_input, axis=0)
    for example in range(200):
        k = by_a_sort(contributions[:, example], norms[example])
        largest = np.argsort(-contributions[:, example], kind="stable")[:k]
        expected = np.zeros(96)
        expected[largest] = latents[largest, example]
        np.testing.assert_array_equal(found[:, example], expected)
    assert not found[:, 0].any()


def test_top_afa_draws_the_norms_of_latents_to_those_of_inputs():
    one = bare(TopAfa(weight=0.5))
    x = jnp.array([[3.0, 0.0], [4.0, 2.0], [0.0, 0.0], [0.0, 0.0]])
    out = model.forward(one, x)
    np.testing.assert_array_equal(out.latents, x)
    assert TopAfa(weight=0.5).cost(out) == 0
    smaller = out._replace(latents=x / 2)
    np.testing.assert_allclose(TopAfa(weight=0.5).cost(smaller), 0.5 * 4 * (2.5**2 + 1) / 2)
    assert jax.grad(lambda f: TopAfa().cost(out._replace(latents=f)))(jnp.zeros((4, 2))).shape == (4, 2)


def test_batch_top_k_keeps_at_least_one_latent_of_a_batch(tiny):
    with pytest.raises(sae.UserError, match="activation.k: got 0.001, allowed: at least 1 / batch_size = 0.0"):
        validate(sae.replace(tiny, {"activation": BatchTopK(k=0.001)}))

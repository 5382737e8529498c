"""The golden numbers of published libraries, and the closed forms of sparse coding in one dimension."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae import Adam, Digits, ElasticNet, Experiment, Free, Relu, Sae, TopK, UnitNorm, UnitNormNoBias, train
from sae.core import metrics, model

D_IN, D_SAE, BATCH = 6, 10, 4


def golden_sae(activation) -> Sae:
    """The weights on which the libraries' own code was run; theirs is W_enc [d_in, d_sae]."""
    W_enc = 0.3 * np.cos(np.arange(60.0).reshape(D_IN, D_SAE)).T
    W_dec = 0.2 * np.sin(2 * np.arange(60.0).reshape(D_SAE, D_IN) + 1)
    b_enc, b_dec = 0.05 * np.cos(np.arange(10.0)), 0.1 * np.sin(np.arange(6.0))
    return Sae(*(jnp.asarray(a, jnp.float32) for a in (W_enc, b_enc, W_dec, b_dec)), activation)


X = jnp.asarray(np.sin(1 + np.arange(24.0).reshape(BATCH, D_IN)), jnp.float32).T


def loss_of(activation, penalty) -> tuple[float, model.Pass]:
    experiment = Experiment(
        name="golden", data=Digits(), d_sae=D_SAE, n_steps=1, activation=activation, penalty=penalty
    )
    value, out = train.loss(golden_sae(activation), experiment, jnp.int32(0), X)
    return float(value), out


def numbers(out: model.Pass) -> dict[str, float]:
    m = metrics.moments(X, jnp.zeros(D_IN))
    return {name: float(v) for name, v in metrics.finish(metrics.sums(out.latents, out.x_hat, X), m).items()}


@pytest.mark.parametrize(
    ("activation", "penalty", "expected"),
    [
        (Relu(), ElasticNet(), 2.664295),  # SAELens standard, reconstruction
        (Relu(), ElasticNet(l1=0.5, weighted=True), 2.741361),  # SAELens standard p = 1; dictionary_learning April
        (Relu(), ElasticNet(l1=0.5), 2.888909),  # dictionary_learning Standard
        (TopK(k=3), ElasticNet(), 2.662632),  # SAELens topk, reconstruction
    ],
)
def test_loss_is_the_libraries_to_six_digits(activation, penalty, expected):
    assert loss_of(activation, penalty)[0] == pytest.approx(expected, abs=2e-6)


def test_metrics_on_the_golden_batch():
    got = numbers(loss_of(Relu(), ElasticNet())[1])
    assert got["l0"] == 5.5
    assert got["l1"] == pytest.approx(0.449228, abs=1e-6)
    assert got["fvu"] == pytest.approx(9.725793, abs=1e-5)  # 1 - SAELens' explained variance of -8.7258
    assert got["mse"] == pytest.approx(2.664295, abs=2e-6)


def test_penalty_rises_in_equal_parts_over_its_warm_up_and_is_whole_after_it():
    penalty, ones = ElasticNet(l1=0.5, l2=0.25, warmup_steps=4), jnp.ones((3, 2))
    out = loss_of(Relu(), penalty)[1]._replace(x=ones, charged=ones)
    assert [float(penalty(out._replace(step=s))) for s in (0, 1, 3, 100)] == [0.5625, 1.125, 2.25, 2.25]


@pytest.mark.parametrize(
    ("penalty", "solution"),
    [
        (ElasticNet(l1=0.4), lambda x: np.maximum(0, x - 0.2)),
        (ElasticNet(l2=0.5), lambda x: x / 1.5),
    ],
    ids=["l1", "l2"],
)
def test_trained_in_one_dimension_latents_follow_the_closed_form(penalty, solution):
    """min_h (x - h)² + λh gives h = max(0, x - λ/2); min_h (x - h)² + λh² gives h = x / (1 + λ)."""
    experiment = Experiment(
        name="closed form", data=Digits(), d_sae=1, n_steps=4_000, batch_size=256, penalty=penalty,
        optimizer=Adam(lr=1e-2, decay_steps=2_000), apply_b_dec_to_input=False, seed=0,
    )  # fmt: skip
    x = jnp.linspace(0.005, 2, 256)[None, :]
    state = train.init(experiment, x)
    positive = jnp.ones((1, 1))
    state = state.replace(sae=model.replace(state.sae, W_enc=0.5 * positive, W_dec=positive))

    def step(i, state):
        state = train.step(experiment, state, i, x)[0]
        # the closed form has no decoder bias: hold it at zero
        return state.replace(sae=model.replace(state.sae, b_dec=jnp.zeros(1)))

    state = jax.jit(lambda state: jax.lax.fori_loop(0, experiment.n_steps, step, state))(state)
    h = np.asarray(train.trained(experiment, state).encode(x.T))[:, 0]
    expected = solution(np.asarray(x[0]))
    np.testing.assert_allclose(h, expected, atol=2e-3)
    if penalty.l1:
        assert np.all(h[x[0] < 0.197] == 0), "below λ/2 a latent is exactly zero under L1"
    else:
        assert np.all(h > 0), "under L2 no latent is ever zero"


@pytest.mark.parametrize("activation", [Relu(), TopK(k=4)], ids=["relu", "top-k"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("apply_b_dec_to_input", [False, True])
def test_gradient_of_the_whole_loss_against_finite_differences(activation, weighted, apply_b_dec_to_input):
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 6)
        d, f = 5, 9
        shapes = {"W_enc": (f, d), "b_enc": (f,), "W_dec": (f, d), "b_dec": (d,)}
        weights = [jax.random.normal(k, s, jnp.float64) for k, s in zip(keys, shapes.values(), strict=False)]
        sae = model.using(Sae(*weights, activation, apply_b_dec_to_input), None)
        x = jax.random.normal(keys[4], (d, 7), jnp.float64)
        penalty = ElasticNet(l1=0.3, l2=0.2, weighted=weighted)
        experiment = Experiment(name="fd", data=Digits(), d_sae=f, n_steps=1, activation=activation, penalty=penalty)
        value = lambda s: train.loss(s, experiment, jnp.int32(0), x)[0]
        gradient = jax.grad(value)(sae)
        h = 1e-6
        for name, shape in shapes.items():
            direction = jax.random.normal(keys[5], shape, jnp.float64)
            at = getattr(sae, name)[...]
            ends = [value(model.replace(sae, **{name: at + s * h * direction})) for s in (1, -1)]
            slope = float((ends[0] - ends[1]) / (2 * h))
            assert slope == pytest.approx(float(jnp.sum(getattr(gradient, name)[...] * direction)), rel=1e-6), name


def test_unit_norm_removes_the_parallel_part_and_free_does_not():
    W = jnp.array([[1.0, 0.0], [0.6, 0.8]])
    sae = Sae(W, jnp.zeros(2), W, jnp.zeros(2), Relu())
    gradient = model.replace(sae, W_dec=jnp.array([[3.0, 4.0], [1.0, 0.0]]))
    np.testing.assert_allclose(UnitNorm().gradient(sae, gradient).W_dec[...], [[0, 4], [0.64, -0.48]], atol=1e-6)
    np.testing.assert_array_equal(Free().gradient(sae, gradient).W_dec[...], gradient.W_dec[...])


def test_without_a_bias_it_stays_zero_and_tied_weights_are_one():
    W, b = jnp.array([[1.0, 0.0], [0.6, 0.8]]), jnp.array([0.5, -0.5])
    sae = Sae(2 * W, b, W, jnp.zeros(2), Relu())
    gradient = model.replace(sae, W_enc=jnp.ones((2, 2)), W_dec=jnp.array([[3.0, 4.0], [1.0, 0.0]]), b_dec=b)
    free, tied = (UnitNormNoBias(tied=t).restrict(sae, gradient) for t in (False, True))
    for of in (free, tied):
        np.testing.assert_array_equal(of.b_dec[...], 0)
        np.testing.assert_array_equal(of.b_enc[...], b)
    np.testing.assert_array_equal(free.W_enc[...], 1)
    np.testing.assert_allclose(free.W_dec[...], [[0, 4], [0.64, -0.48]], atol=1e-6)
    np.testing.assert_array_equal(tied.W_enc[...], 0)
    # [4, 5] and [2, 1], less what is parallel to [1, 0] and [.6, .8]
    np.testing.assert_allclose(tied.W_dec[...], [[0, 5], [0.8, -0.6]], atol=1e-6)
    moved = model.replace(sae, W_dec=3 * W, b_dec=b)
    free, tied = (UnitNormNoBias(tied=t).keep({}, moved) for t in (False, True))
    for of, W_enc in ((free, 2 * W), (tied, W)):
        np.testing.assert_allclose(of.W_dec[...], W, atol=1e-6)
        np.testing.assert_allclose(of.W_enc[...], W_enc, atol=1e-6)
        np.testing.assert_array_equal(of.b_dec[...], 0)


def test_learning_rate_warms_up_and_decays():
    rate = lambda adam, t: float(adam.learning_rate(jnp.int32(t), 100))
    linear, cosine = (Adam(lr=1.0, warmup_steps=10, decay_steps=50, decay=shape) for shape in ("linear", "cosine"))
    assert [rate(linear, t) for t in (0, 4, 9, 49, 50)] == pytest.approx([0.1, 0.5, 1, 1, 1])
    assert rate(linear, 75) == pytest.approx(0.5)
    assert rate(linear, 99) == pytest.approx(0.02)
    assert rate(cosine, 75) == pytest.approx(0.5)
    assert rate(cosine, 60) == pytest.approx(0.5 - 0.5 * np.cos(0.8 * np.pi), abs=1e-6)


def test_adam_is_adam_with_decoupled_decay_and_clipping():
    """Three updates by hand of one weight."""
    sae = Sae(*(jnp.ones(s) for s in ((1, 1), (1,), (1, 1), (1,))), Relu())
    adam = Adam(lr=0.1, b1=0.8, b2=0.9, eps=1e-3, weight_decay=0.5, clip=1.0)
    transform = adam.transform(10)
    state, w, m, v = transform.init(sae), 1.0, 0.0, 0.0
    for t in range(1, 4):
        gradient = jax.tree.map(lambda a, t=t: jnp.full_like(a, t), sae)
        updates, state = transform.update(gradient, state, sae)
        sae = jax.tree.map(jnp.add, sae, updates)
        g = t / (2 * t)  # four equal entries of size t have norm 2t, clipped to 1
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        w -= 0.1 * (m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.9**t)) + 1e-3) + 0.5 * w)
        assert float(sae.W_enc[...][0, 0]) == pytest.approx(w, rel=1e-5)


def test_geometric_median_is_the_middle_not_the_mean():
    x = jnp.array([[0.0, 0.0, 0.0, 0.0, 100.0], [0.0, 1.0, -1.0, 0.0, 0.0]])
    np.testing.assert_allclose(train.geometric_median(x), [0, 0], atol=1e-2)


def test_encode_and_decode_take_rows():
    sae = golden_sae(Relu())
    out = model.forward(sae, X)
    np.testing.assert_allclose(sae.encode(X.T), out.latents.T, rtol=1e-6)
    np.testing.assert_allclose(sae(X.T), out.x_hat.T, rtol=1e-6)
    assert sae.encode(X.T.reshape(2, 2, D_IN)).shape == (2, 2, D_SAE)
    assert sae.encode(X[:, 0]).shape == (D_SAE,)

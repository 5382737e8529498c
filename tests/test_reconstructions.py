"""Reconstructions: closed forms, and prefixes that are drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_definitions_published import D_SAE, X, golden_sae

import sae
from sae import Cosine, DrawnMatryoshka, Fvu, Matryoshka, NormalizedMse, Relu, SquaredError
from sae.core import model
from sae.engine import rehearsal

ONE = golden_sae(Relu())
LATENTS = model.forward(ONE, X).latents


def test_the_cosine_is_that_of_directions_alone():
    cost, x_hat = Cosine()(ONE, LATENTS, X, 0)
    y, e = np.asarray(X), np.asarray(x_hat)
    cosines = (y * e).sum(0) / np.linalg.norm(y, axis=0) / np.linalg.norm(e, axis=0)
    assert float(cost) == pytest.approx(np.mean(1 - cosines), rel=1e-5)
    assert float(Cosine()(ONE, LATENTS, 3 * X, 0)[0]) == pytest.approx(float(cost), rel=1e-5)


@pytest.mark.parametrize("choice", [SquaredError(), Fvu(), NormalizedMse(), Cosine()], ids=lambda c: type(c).__name__)
def test_an_error_is_finite_and_so_is_its_gradient_where_examples_and_reconstructions_are_0(choice):
    nothing = model.replace(ONE, b_dec=jnp.zeros(6))
    for y in (jnp.zeros_like(X), X, jnp.ones_like(X)):
        cost = lambda f, y=y: choice(nothing, f, y, 0)[0]
        value, gradient = jax.value_and_grad(cost)(jnp.zeros_like(LATENTS))
        assert bool(jnp.isfinite(value)) and bool(jnp.all(jnp.isfinite(gradient)))
        assert float(jnp.abs(gradient).max()) < 100, "one such batch must not spoil an optimizer's moments"


READOUT = jnp.sin(jnp.arange(18.0)).reshape(3, 6)


@sae.definition
class Readout(sae.Through):
    """Three logits."""

    def follows(self, x_hat):
        return READOUT @ x_hat


def test_end_to_end_is_the_divergence_of_what_follows():
    """By hand; its gradient in x̂ is that of the softmax, and none goes through the target."""
    cost, x_hat = Readout(weight=0.5)(ONE, LATENTS, X, 0)
    softmax = lambda a: np.exp(a) / np.exp(a).sum(0)
    p, q = (softmax(np.asarray(READOUT @ a, np.float64)) for a in (X, x_hat))
    expected = (p * np.log(p / q)).sum() / 4 + 0.5 * ((np.asarray(x_hat) - np.asarray(X)) ** 2).sum() / 4
    assert float(cost) == pytest.approx(expected, rel=1e-5)
    gradient = jax.grad(lambda b: Readout()(model.replace(ONE, b_dec=b), LATENTS, X, 0)[0])(ONE.b_dec[...])
    np.testing.assert_allclose(gradient, np.asarray(READOUT).T @ (q - p).sum(1) / 4, atol=1e-5)
    assert float(jnp.abs(jax.grad(lambda y: Readout()(ONE, LATENTS, y, 0)[0])(X)).max()) == 0


def test_what_follows_must_be_written_and_have_a_column_per_example(tiny):
    @sae.definition
    class Nothing(sae.Through):
        """Nothing follows."""

    @sae.definition
    class Summed(sae.Through):
        """The batch is lost."""

        def follows(self, x_hat):
            return jnp.sum(x_hat, axis=1)

    wrong = {
        Nothing: "Nothing.follows is not written",
        Summed: r"Summed.follows gave .*, allowed: an array \[n, batch\]",
    }
    for cls, message in wrong.items():
        with pytest.raises(sae.UserError, match=message):
            rehearsal._method(sae.replace(tiny, {"reconstruction": cls()}), parts=(6,))


def test_drawn_prefixes_cost_what_the_same_fixed_ones_do():
    for step in range(5):
        drawn = DrawnMatryoshka(n_prefixes=4, mean=False)
        widths = tuple(sorted(int(length) for length in drawn.lengths(D_SAE, step)))
        assert len(set(widths)) == 3 and widths[0] >= 1 and widths[-1] < D_SAE
        cost, x_hat = drawn(ONE, LATENTS, X, step)
        expected, same = Matryoshka(widths=widths)(ONE, LATENTS, X, step)
        assert float(cost) == pytest.approx(float(expected), rel=1e-6)
        np.testing.assert_allclose(x_hat, same, rtol=1e-6)
        mean = sae.replace(drawn, {"mean": True})(ONE, LATENTS, X, step)[0]
        assert float(mean) == pytest.approx(float(expected) / 4, rel=1e-6)
    assert float(DrawnMatryoshka(n_prefixes=1)(ONE, LATENTS, X, 0)[0]) == pytest.approx(2.664295, abs=2e-6)


def test_lengths_are_drawn_in_proportion_to_the_differences_of_roots():
    """The first of them, one length at a time, against √l - √(l - 1)."""
    drawn, d_sae, n = DrawnMatryoshka(n_prefixes=2), 9, 4_000
    lengths = np.asarray(jax.vmap(lambda step: drawn.lengths(d_sae, step))(jnp.arange(n)))[:, 0]
    expected = np.diff(np.sqrt(np.arange(d_sae))) / np.sqrt(d_sae - 1)
    found = np.bincount(lengths, minlength=d_sae)[1:] / n
    np.testing.assert_allclose(found, expected, atol=4 * np.sqrt(0.25 / n))
    longer = np.asarray(
        jax.vmap(lambda step: DrawnMatryoshka(n_prefixes=2, shortest=4).lengths(d_sae, step))(jnp.arange(n))
    )
    assert longer.min() == 4 and longer.max() == d_sae - 1


def test_a_long_decode_is_cut_where_prefixes_end_equally_often():
    drawn, d_sae = DrawnMatryoshka(n_prefixes=2), 4096
    ends = np.asarray(drawn.ends(d_sae))
    assert len(ends) == 16 and ends[-1] == d_sae and (np.diff(ends) > 0).all()
    lengths = np.asarray(jax.vmap(lambda step: drawn.lengths(d_sae, step))(jnp.arange(2_000)))[:, 0]
    parts = np.bincount(np.searchsorted(ends, lengths), minlength=16) / 2_000
    np.testing.assert_allclose(parts, 1 / 16, atol=4 * np.sqrt(1 / 16 / 2_000))
    assert drawn.ends(9) == tuple(range(1, 10)) and DrawnMatryoshka(shortest=5).ends(20) == tuple(range(5, 21))
    some = drawn.ends(24)
    assert some[:4] == (1, 2, 3, 4) and some[-1] == 24 and len(some) <= 16


def test_all_prefixes_together_cost_one_decode():
    """Operations of the compiled program, against one product of the decoder and the latents."""
    d_in, d_sae, batch = 32, 2048, 64
    one = sae.Sae(jnp.ones((d_sae, d_in)), jnp.zeros(d_sae), jnp.ones((d_sae, d_in)), jnp.zeros(d_in), Relu())
    f, y = jnp.ones((d_sae, batch)), jnp.ones((d_in, batch))
    lowered = jax.jit(lambda f, y: DrawnMatryoshka()(one, f, y, 0)).lower(f, y)
    cost = lowered.compile().cost_analysis()
    assert cost is not None and cost["flops"] < 1.15 * 2 * d_in * d_sae * batch


def test_there_are_as_many_prefixes_as_lengths(tiny):
    with pytest.raises(sae.UserError, match="reconstruction.shortest: got 100, allowed: at most d_sae = 48"):
        sae.experiment.validate(sae.replace(tiny, {"reconstruction": sae.DrawnMatryoshka(shortest=100)}))
    with pytest.raises(sae.UserError, match="reconstruction.n_prefixes: got 49, allowed: .* = 48"):
        sae.experiment.validate(sae.replace(tiny, {"reconstruction": DrawnMatryoshka(n_prefixes=49)}))

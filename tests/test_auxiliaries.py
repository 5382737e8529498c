"""Auxiliary losses against their formulas, and what they hold fixed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_definitions_published import D_SAE, X, golden_sae

from sae import Digits, Experiment, GhostGradients, JumpRelu, PreActivationLoss, Relu, train
from sae.core import model

DEAD = jnp.arange(D_SAE) < 2


def a_pass(activation, dead=DEAD):
    e = Experiment(name="golden", data=Digits(), d_sae=D_SAE, n_steps=1, activation=activation)
    return train.loss(golden_sae(activation), e, jnp.int32(0), X, 1.0, dead)[1]


def test_ghost_gradients_are_anthropics():
    """The cost has the size of the squared error, and the gradient of the error that scaled exponentials leave."""
    out = a_pass(Relu())
    error = np.asarray(out.y - out.x_hat, np.float64)
    whole = (error**2).sum() / 4
    assert float(GhostGradients(weight=0.5).cost(out)) == pytest.approx(0.5 * whole, rel=1e-5)
    assert float(GhostGradients().cost(out._replace(dead=jnp.zeros(D_SAE, bool)))) == 0

    W = np.asarray(out.sae.W_dec[...], np.float64)
    ghost = W[:2].T @ np.exp(np.asarray(out.pre_acts, np.float64)[:2])
    scale = np.linalg.norm(error, axis=0) / np.linalg.norm(ghost, axis=0) / 2
    rest = error - scale * ghost
    by_hand = whole / (rest**2).sum() * 4 * -2 / 4 * (W[:2] @ (rest * scale)) * np.exp(np.asarray(out.pre_acts)[:2])
    gradient = jax.grad(lambda z: GhostGradients().cost(out._replace(pre_acts=z)))(out.pre_acts)
    np.testing.assert_allclose(gradient[:2], by_hand, rtol=1e-4)
    assert float(jnp.abs(gradient[2:]).max()) == 0, "latents that are not dead have no part in it"
    held = jax.grad(lambda x_hat: GhostGradients().cost(out._replace(x_hat=x_hat)))(out.x_hat)
    assert float(jnp.abs(held).max()) == 0
    far = out._replace(pre_acts=1e3 * out.pre_acts)
    assert bool(
        jnp.all(jnp.isfinite(jax.grad(lambda z: GhostGradients().cost(far._replace(pre_acts=z)))(far.pre_acts)))
    )


@pytest.mark.parametrize("activation", [JumpRelu(threshold=0.1), Relu()], ids=["threshold", "none"])
def test_the_pre_activation_loss_is_saelens_for_the_dead_and_anthropics_for_all(activation):
    out = a_pass(activation)
    threshold = 0.1 if isinstance(activation, JumpRelu) else 0.0
    norms = np.linalg.norm(np.asarray(out.sae.W_dec[...]), axis=1)[:, None]
    below = np.maximum(threshold - np.asarray(out.pre_acts), 0) * norms
    for form, expected in (("saelens", below[:2].sum() / 4), ("anthropic", below.sum() / 4)):
        assert float(PreActivationLoss(weight=0.5, form=form).cost(out)) == pytest.approx(0.5 * expected, rel=1e-5)
    if threshold:
        cost = lambda s: PreActivationLoss(weight=1.0).cost(out._replace(sae=s))
        gradient = jax.grad(cost)(out.sae).own["threshold"][...]
        expected = ((threshold > np.asarray(out.pre_acts)) * norms).sum(1) / 4 * np.asarray(DEAD)
        np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    assert model.own(out.sae).keys() == ({"threshold"} if threshold else set())

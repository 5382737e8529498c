"""Penalties and their schedule: closed forms, published numbers, finite differences, finite gradients at 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_definitions_published import D_SAE, X, golden_sae

import sae
from sae import (
    Digits,
    ElasticNet,
    Experiment,
    FiringRateKL,
    Hoyer,
    JumpRelu,
    LogPenalty,
    Lp,
    NormalizedL1,
    QuadraticL0,
    Relu,
    Sigmoid,
    SquareRoot,
    TanhPenalty,
    train,
)
from sae.core import model
from sae.core.model import Pass
from sae.experiment import tied_to_length, validate

F = jnp.array([[0.0, 2.0, 0.5], [1.0, 0.0, 0.5], [3.0, 0.0, 0.5]])  # [d_sae, batch]
BIG = 2.0 * jnp.eye(3)  # decoder rows of norm 2


def one_pass(latents=F, activation=Relu(), step=0, n_steps=1, x=None) -> Pass:  # noqa: B008
    one = sae.Sae(BIG, jnp.zeros(3), BIG, jnp.zeros(3), activation)
    x = jnp.ones_like(latents) if x is None else x
    return Pass(one, x, x, latents, latents, latents, x, jnp.zeros(3, bool), step, n_steps)


@pytest.mark.parametrize(
    ("penalty", "of_latents"),
    [
        (LogPenalty(weight=0.5, scale=2.0), lambda f: 0.5 * np.log(1 + f**2 / 4).sum(0).mean()),
        (TanhPenalty(weight=0.5, scale=3.0, weighted=False), lambda f: 0.5 * np.tanh(3 * f).sum(0).mean()),
        (Hoyer(weight=0.5), lambda f: 0.5 * (f.sum(0) ** 2 / (f**2).sum(0)).mean()),
        (SquareRoot(weight=0.5), lambda f: 0.5 * np.sqrt(f).sum(0).mean()),
        (Lp(weight=0.5, p=0.5, p_start=0.5), lambda f: 0.5 * np.sqrt(f).sum(0).mean()),
        (NormalizedL1(weight=0.5), lambda f: 0.5 * (f.sum(0) / np.sqrt(3)).mean()),
        (ElasticNet(l1=0.5, l2=0.25), lambda f: (0.5 * f + 0.25 * f * f).sum(0).mean()),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, sae.Penalty) else "",
)
def test_a_penalty_is_its_formula_and_weighted_that_of_latents_times_norms(penalty, of_latents):
    f = np.asarray(F, np.float64)
    assert float(penalty.cost(one_pass())) == pytest.approx(of_latents(f), rel=1e-6)
    weighted = sae.replace(penalty, {"weighted": True})
    assert float(weighted.cost(one_pass())) == pytest.approx(of_latents(2 * f), rel=1e-6)
    # latents are charged by their size, whatever their sign
    assert float(penalty.cost(one_pass(-F))) == pytest.approx(of_latents(f), rel=1e-6)


ON_LATENTS = [ElasticNet(l1=1.0, l2=1.0), Lp(), Lp(rescaled=True), Lp(root=True), LogPenalty(), TanhPenalty(), Hoyer()]
ON_LATENTS += [SquareRoot(), NormalizedL1(), FiringRateKL()]


@pytest.mark.parametrize("penalty", ON_LATENTS, ids=lambda penalty: type(penalty).__name__)
def test_a_gradient_is_that_of_finite_differences_and_finite_where_latents_are_0(penalty):
    with jax.enable_x64(True):
        f = jax.random.uniform(jax.random.key(0), (3, 4), jnp.float64, 0.1, 0.9)
        held = jnp.sum(jnp.sqrt(f)) / jnp.sum(f) if getattr(penalty, "rescaled", False) else 1.0  # at p = 1/2, from 1
        out = one_pass(f, step=1, n_steps=1)
        value = lambda f: penalty.cost(out._replace(latents=f, charged=f))
        gradient, h = jax.grad(value)(f), 1e-6
        for place in ((0, 0), (2, 3)):
            slope = (value(f.at[place].add(h)) - value(f.at[place].add(-h))) / (2 * h)
            if held != 1.0:  # the ratio is no part of the gradient
                slope = penalty.weight / f.shape[1] * 0.5 * f[place] ** -0.5 / held
            assert float(gradient[place]) == pytest.approx(float(slope), rel=1e-5)
    for nothing in (jnp.zeros((3, 2)), jnp.zeros((3, 2)).at[0, 0].set(1e-30)):
        out = one_pass(nothing, x=jnp.zeros((3, 2)))
        got = jax.grad(lambda f, out=out: penalty(out._replace(latents=f, charged=f)))(nothing)
        assert bool(jnp.all(jnp.isfinite(got))) and bool(jnp.isfinite(penalty(out)))


def test_lp_rescaled_keeps_the_size_that_it_has_at_the_start():
    penalty = Lp(weight=0.5, p=0.5, p_start=1.0, rescaled=True)
    for step in (0, 5, 10):
        assert float(penalty.cost(one_pass(step=step, n_steps=10))) == pytest.approx(0.5 * float(F.sum()) / 3, rel=1e-6)


def test_the_divergence_of_firing_rates_is_ngs():
    f = np.array([[0.1, 0.3], [0.05, 0.05], [0.9, 0.7]])
    mean, rate = f.mean(1), 0.05
    by_hand = rate * np.log(rate / mean) + (1 - rate) * np.log((1 - rate) / (1 - mean))
    out = one_pass(jnp.asarray(f, jnp.float32), Sigmoid())
    assert float(FiringRateKL(weight=2.0).cost(out)) == pytest.approx(2 * by_hand.sum(), rel=1e-5)
    assert float(FiringRateKL().cost(one_pass(jnp.full((3, 2), 0.05), Sigmoid()))) == pytest.approx(0, abs=1e-6)


def test_the_distance_from_a_target_l0_is_dictionary_learnings():
    """Its golden number: no bias is subtracted, 2.787313 = 2.662313 + 0.125."""
    e = Experiment(
        name="golden", data=Digits(), d_sae=D_SAE, n_steps=1, activation=JumpRelu(threshold=0.1),
        penalty=QuadraticL0(weight=0.5, target=3.0),
    )  # fmt: skip
    one = golden_sae(e.activation)
    one.apply_b_dec_to_input = False
    assert float(train.loss(one, e, jnp.int32(0), X)[0]) == pytest.approx(2.787313, abs=3e-6)


def test_the_distance_from_a_target_l0_moves_thresholds_towards_it():
    for target, sign in (
        (1.0, -1),
        (9.0, 1),
    ):  # a step against it raises thresholds, or lowers them
        for form in ("saelens", "dictionary_learning"):
            e = Experiment(
                name="golden", data=Digits(), d_sae=D_SAE, n_steps=1, activation=JumpRelu(threshold=0.1, bandwidth=0.3),
                penalty=QuadraticL0(target=target, form=form),
            )  # fmt: skip
            cost = lambda s, e=e: e.penalty(train.loss(s, e, jnp.int32(0), X)[1])
            gradient = jax.grad(cost)(model.using(golden_sae(e.activation), None)).own["threshold"][...]
            assert float(jnp.sum(gradient)) * sign > 0


@pytest.mark.parametrize("penalty", [ElasticNet(l1=1.0), TanhPenalty()], ids=lambda penalty: type(penalty).__name__)
def test_one_schedule_warms_every_penalty_up_and_anneals_it(penalty):
    penalty = sae.replace(penalty, {"warmup_steps": 4, "anneal_steps": 5, "anneal_to": 0.5})
    whole = float(penalty.cost(one_pass()))
    shares = [float(penalty(one_pass(step=step, n_steps=20))) / whole for step in (0, 1, 3, 14, 15, 17, 19)]
    assert shares == pytest.approx([0.25, 0.5, 1, 1, 0.9, 0.7, 0.5])
    rising = sae.replace(penalty, {"anneal_to": 2.0, "warmup_steps": 0})
    assert float(rising(one_pass(step=19, n_steps=20))) == pytest.approx(2 * whole)


def test_an_annealing_ties_a_run_to_its_length(tiny):
    assert tied_to_length(sae.replace(tiny, {"optimizer.decay_steps": 0}), 30) is None
    for penalty in (ElasticNet(l1=0.1, anneal_steps=5), Lp(p=1.0, anneal_steps=5)):
        one = sae.replace(tiny, {"optimizer.decay_steps": 0, "penalty": penalty})
        assert tied_to_length(one, 30) == "penalty.anneal_steps = 5, which end with the run"


def test_a_penalty_that_an_activation_does_not_fit_is_one_line(tiny):
    for penalty, message in (
        (QuadraticL0(), "penalty.QuadraticL0 has no gradient with Relu, allowed: .*JumpRelu"),
        (FiringRateKL(), "penalty.FiringRateKL needs latents between 0 and 1, got Relu, allowed: Sigmoid"),
    ):
        with pytest.raises(sae.UserError, match=message):
            validate(sae.replace(tiny, {"penalty": penalty}))


@pytest.mark.parametrize("z", [-5.0, -20.0, -60.0])
def test_the_divergence_of_firing_rates_wakes_a_latent_that_is_hardly_active(z):
    """d KL / dz = σ(z) (1 - σ(z)) (-ρ / σ(z) + (1 - ρ) / (1 - σ(z))), which is -ρ for a sigmoid near 0."""
    one = sae.Sae(jnp.zeros((1, 2)), jnp.full(1, z), jnp.ones((1, 2)), jnp.zeros(2), sae.Sigmoid())
    cost = lambda one: FiringRateKL(weight=1.0, rate=0.05)(model.forward(one, jnp.zeros((2, 4))))
    assert float(jax.grad(cost)(one).b_enc[...][0]) == pytest.approx(-0.05, abs=0.01)


def test_a_target_that_no_l0_can_reach_is_one_line(tiny):
    with pytest.raises(sae.UserError, match="penalty.target: got 1000, allowed: at most d_sae = 48"):
        validate(sae.replace(tiny, {"activation": sae.JumpRelu(), "penalty": QuadraticL0(target=1000.0)}))

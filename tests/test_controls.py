"""Controls: TargetL0 on plants of known dynamics, the published steps of SAELens' controller, and small trainings."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import sae
from sae import L0, JumpRelu, SaeLensTargetL0, TargetL0, train
from sae.core.model import Pass
from sae.experiment import tied_to_length, validate
from sae.report import warnings

N = 3_000
EXAMPLES, WIDTH = 64, 100


def pass_of(l0, step, n_steps=N, warmed=1.0):
    """A pass of this L0, up to rounding: a control looks at nothing else of it."""
    active = jnp.arange(WIDTH * EXAMPLES) < jnp.round(l0 * EXAMPLES)
    latents = jnp.where(active, 1.0, 0.0).reshape(WIDTH, EXAMPLES)
    x, dead = jnp.zeros((2, EXAMPLES)), jnp.zeros(WIDTH, bool)
    return Pass(None, x, x, latents, latents, latents, x, dead, step, n_steps, warmed)


@functools.partial(jax.jit, static_argnames="warmup")
def follow(control, slope, lag, noise, drift, speed, warmup=0):
    """L0 and what the factor and the warm-up make together, [N] each, of a plant under a control.

    log L0 goes to 4.5 - slope log(1 + 5 factor) + drift · step / N with a time constant of `lag` steps, and by no more
    than `speed` times the rate of own parameters in a step. The control sees it with noise. It acts as nothing below 0.
    """

    def one(carry, step):
        state, log_l0 = carry
        warmed = jnp.minimum(1.0, (step + 1) / max(warmup, 1))
        factor = control.factor(state) * warmed
        end = 4.5 - slope * jnp.log1p(5 * jnp.maximum(factor, 0.0)) + drift * step / N
        most = speed * control.own_rate(state)
        log_l0 = log_l0 + jnp.clip((end - log_l0) / lag, -most, most)
        seen = jnp.exp(log_l0 + noise * jax.random.normal(jax.random.fold_in(jax.random.key(0), step)))
        return (control.settle(state, pass_of(seen, step, N, warmed)), log_l0), (jnp.exp(log_l0), factor)

    return jax.lax.scan(one, (control.init(), jnp.log(40.0)), jnp.arange(N))[1]


@pytest.mark.parametrize(
    "plant",
    [(0.5, 100.0, 0.0, 0.0, 1.0), (1.0, 30.0, 0.05, 0.0, 1.0), (0.6, 300.0, 0.05, 0.0, 1.0),
     (0.5, 100.0, 0.05, -1.0, 1.0), (0.5, 30.0, 0.05, 0.0, 1e-3)],
    ids=["without noise", "quick and steep", "slow", "drifting", "slow but for its own parameters"],
)  # fmt: skip
def test_target_l0_arrives_within_a_third_and_does_not_swing(plant):
    l0, _ = follow(TargetL0(l0=5.0), *plant)
    error = np.log(np.asarray(l0) / 5)
    assert np.abs(error[N // 3 :]).max() < 0.1
    assert abs(np.exp(error[-N // 10 :]).mean() - 1) < 0.02
    assert error[-N // 3 :].std() < 0.02


def test_a_plant_that_only_own_parameters_move_needs_their_rate():
    l0, _ = follow(TargetL0(l0=5.0, fastest=1.0), 0.5, 30.0, 0.05, 0.0, 1e-3)
    assert l0[N // 3] > 10


def test_target_l0_winds_nothing_up_in_the_penaltys_warm_up():
    """The factor stays 1/100 until its end, from where L0 falls."""
    l0, factor = map(np.asarray, follow(TargetL0(l0=5.0), 0.5, 50.0, 0.0, 0.0, 1.0, warmup=600))
    np.testing.assert_allclose(factor[:600], 0.01 * np.arange(1, 601) / 600, rtol=1e-5)
    assert np.abs(np.log(l0[600 + (N - 600) // 3 :] / 5)).max() < 0.05
    assert l0.min() > 4.7


def test_the_goal_falls_along_a_parabola_of_the_logarithm():
    control, ratio = TargetL0(l0=5.0, arrival=0.5), 1.0
    state = control.init()
    for step in range(9):
        state = control.settle(state, pass_of(20.0, jnp.int32(step), n_steps=32))
        goal = 5 * 4 ** (1 - step / 16) ** 2
        ratio = 0.5 * ratio + 0.5 * 20 / goal
    assert float(state["ratio"]) == pytest.approx(ratio, rel=1e-5)
    assert ratio == pytest.approx(2.3, abs=0.3)  # half-way, the goal is 5 · 4^(1/4) = 7.07


def test_saelens_controller_takes_the_steps_of_the_papers_code():
    """Batches of L0 30, 20, 45 for a target of 25: away from it, towards it (a hundredth of the step), away again."""
    control = SaeLensTargetL0(l0=25.0)
    state, factors = control.init(), []
    for step, l0 in enumerate((30.0, 20.0, 45.0)):
        state = control.settle(state, pass_of(l0, jnp.int32(step)))
        factors.append(float(state["factor"]))
    assert factors == pytest.approx([1.000289208, 1.000292092, 1.000581809], abs=2e-7)
    assert float(state["mean"]) == pytest.approx(30.051, rel=1e-6)
    below = control.settle(control.init(), pass_of(20.0, jnp.int32(0)))
    assert float(below["factor"]) == pytest.approx(1 - 3e-4 * math.tanh(2), abs=1e-7)
    warming = control.settle(control.init(), pass_of(20.0, jnp.int32(0), warmed=0.5))
    assert float(warming["factor"]) == 1 and float(warming["mean"]) == 20
    least = control.settle(control.init() | {"factor": jnp.float32(0.01)}, pass_of(20.0, jnp.int32(0)))
    assert float(least["factor"]) == pytest.approx(0.01)


def test_own_parameters_move_by_the_controls_rate_and_all_others_as_without(tiny):
    """The first step of Adam moves every threshold by the learning rate; at a rate of 7, by seven of them."""

    @sae.definition
    class Hurried(sae.Control):
        """Own parameters at a rate."""

        rate: float = sae.leaf(7.0)

        def own_rate(self, state):
            return self.rate

    one = sae.replace(tiny, {"activation": JumpRelu(threshold=0.2), "penalty": L0(), "optimizer.warmup_steps": 0})
    x = jax.random.normal(jax.random.key(0), (64, 64))
    plain, hurried = (
        train.step(e, train.init(e, x), jnp.int32(0), x)[0].sae for e in (one, sae.replace(one, {"control": Hurried()}))
    )
    moved = lambda s: np.asarray(s.own["threshold"][...]) - np.float32(0.2)
    np.testing.assert_allclose(moved(hurried), 7 * moved(plain), rtol=1e-3)
    assert np.abs(moved(plain)).max() == pytest.approx(3e-3, rel=1e-3)
    np.testing.assert_array_equal(plain.W_enc[...], hurried.W_enc[...])


def test_training_reaches_its_targets_and_the_log_shows_the_coefficient(tiny, tmp_path, quiet):
    """L0 in batches of 64 within a twentieth over the last third; the coefficient is the factor times the warm-up's."""
    changes = {"n_steps": 900, "penalty.l1": 0.5, "penalty.l2": 0.01, "control": TargetL0(), "dead_after": 1_000}
    base = sae.replace(tiny, changes | {"penalty.warmup_steps": 40})
    sweep = sae.Sweep(name="target", members=sae.grid(base, {"control.l0": (4.0, 12.0)}))
    results = sae.run(sweep, out=tmp_path / "run", wandb="off", console=quiet, chunk_steps=20)
    history = results.history
    last = history.query("step > 600").groupby("member")["train/l0"].mean()
    np.testing.assert_allclose(last, [4, 12], rtol=0.05)
    warmed = np.minimum(history["step"] / 40, 1)
    np.testing.assert_allclose(history["train/penalty_l1"], 0.5 * warmed * history["train/penalty_factor"], rtol=1e-5)
    np.testing.assert_allclose(history["train/penalty_l2"], 0.01 * warmed * history["train/penalty_factor"], rtol=1e-5)
    assert (history.query("step <= 20")["train/penalty_factor"] - 0.01).abs().max() < 1e-6


def test_a_longer_run_of_a_target_is_another_one(tiny):
    assert "arrival" in tied_to_length(sae.replace(tiny, {"control": TargetL0(), "optimizer.decay_steps": 0}), 30)


def test_warnings_name_members_off_their_target_and_those_that_do_not_generalize():
    members = pd.DataFrame({
        "member": range(4), "status": "finished", "n_steps": 100, "control.l0": [10.0, 10.0, 10.0, np.nan],
        "activation": ["relu", "relu", "jump-relu", "relu"], "eval/l0": [10.5, 12.0, 10.4, 50.0],
    })  # fmt: skip
    l0 = {0: 10.2, 1: 10.4, 2: 10.4, 3: 3.0}
    rows = [{"member": m, "step": s, "train/l0": l0[m] if s > 90 else 50.0} for m in l0 for s in range(5, 101, 5)]
    off, apart = warnings.off_target(members, pd.DataFrame(rows))
    assert off.startswith(
        "Training L0 of member 1 is over 3% (trained thresholds: 5%) from its target in the last tenth"
    )
    assert "10.4, for 10, held-out 12" in off
    assert apart.startswith("Held-out L0 of member 1 differs by over 10% from training L0") and "12, for 10.4" in apart
    on = members.assign(**{"control.l0": [10.2, 10.4, 10.4, np.nan], "eval/l0": 10.3})
    assert list(warnings.off_target(on, pd.DataFrame(rows))) == []
    assert list(warnings.off_target(members.drop(columns="control.l0"), pd.DataFrame(rows))) == []


@pytest.mark.parametrize("control", [TargetL0(), SaeLensTargetL0()])
def test_a_target_without_enough_latents_or_without_a_penalty_is_one_line(control, tiny):
    too_many = dataclasses.replace(control, l0=1000.0)
    with pytest.raises(sae.UserError, match="control.l0: got 1000, allowed: at most d_sae = 48"):
        validate(sae.replace(tiny, {"control": too_many}))
    said = "control.l0: got 32 beside a penalty of 0, which no factor .*; allowed: elastic-net with l1 or l2 above 0"
    with pytest.raises(sae.UserError, match=said):
        validate(sae.replace(tiny, {"control": control, "penalty": sae.ElasticNet()}))


def test_the_log_of_a_quadratic_penalty_shows_its_weight_and_not_its_target(tiny):
    changes = {"activation": sae.JumpRelu(), "penalty": sae.QuadraticL0(target=5.0, weight=2.0), "control": TargetL0()}
    e = validate(sae.replace(tiny, changes))
    x = jax.random.normal(jax.random.key(0), (64, 16))
    found = train.numbers(e, train.init(e, x), jnp.int32(0), x)
    factor = e.control.factor(train.init(e, x).control)
    assert float(found["penalty_weight"]) == pytest.approx(2 * float(factor)) and "penalty_target" not in found

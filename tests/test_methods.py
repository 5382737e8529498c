"""The contract of methods: published numbers, one common test for every choice, and methods as they are run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_definitions_published import D_SAE, X, golden_sae

import sae
from sae import (
    L0,
    AuxK,
    BatchTopK,
    Digits,
    ElasticNet,
    Ema,
    Experiment,
    Fvu,
    Gated,
    JumpRelu,
    Lp,
    Matryoshka,
    NoAuxiliary,
    NormalizedL1,
    NormalizedMse,
    QuadraticL0,
    Relu,
    SquaredError,
    SquaredWeights,
    TanhPenalty,
    TargetL0,
    TopK,
    train,
)  # fmt: skip
from sae.core import model
from sae.engine import cohort, programs
from sae.engine.checkpoints import Checkpoints
from sae.engine.placement import Placement
from sae.experiment import validate
from sae.methods import top_k

DEAD = jnp.arange(D_SAE) < 2
SAELENS = AuxK(weight=1.0, form="saelens")
JUMP = JumpRelu(threshold=0.1)
NOTHING = ElasticNet()

GOLDEN = {
    "standard": (Relu(), ElasticNet(l1=0.5, weighted=True), SquaredError(), NoAuxiliary(), 2.741361),
    "p = .5": (Relu(), Lp(weight=0.5, p_start=0.5, root=True, weighted=True), SquaredError(), NoAuxiliary(), 3.059214),
    "gated, SAELens": (
        Gated(detached=False), ElasticNet(l1=0.5, weighted=True), SquaredError(), NoAuxiliary(), 5.405820,
    ),
    "gated, dictionary_learning": (Gated(), ElasticNet(l1=0.5), SquaredError(), NoAuxiliary(), 5.553369),
    "jumprelu": (JUMP, L0(weight=0.5), SquaredError(), NoAuxiliary(), 3.662491),
    "jumprelu, quadratic": (
        JUMP, QuadraticL0(weight=0.5, target=3.0, form="saelens"), SquaredError(), NoAuxiliary(), 3.662491,
    ),
    "jumprelu, tanh": (JUMP, TanhPenalty(weight=0.5), SquaredError(), NoAuxiliary(), 2.855757),
    "fvu": (Relu(), NOTHING, Fvu(), NoAuxiliary(), 9.725793),
    "openai": (Relu(), NormalizedL1(weight=0.5), NormalizedMse(), NoAuxiliary(), 0.977170),
    "topk": (TopK(k=3), NOTHING, SquaredError(), SAELENS, 4.440655),
    "topk among others": (TopK(k=3, k_max=7), NOTHING, SquaredError(), SAELENS, 4.440655),
    "batchtopk": (BatchTopK(k=3.0), NOTHING, SquaredError(), SAELENS, 4.439106),
    "matryoshka, SAELens": (BatchTopK(k=3.0), NOTHING, Matryoshka(widths=(3, 6)), SAELENS, 9.764902),
    "matryoshka, dictionary_learning": (
        BatchTopK(k=3.0), NOTHING, Matryoshka(widths=(3, 6), mean=True), NoAuxiliary(), 3 * 0.887693,
    ),
}  # fmt: skip


def golden(activation, penalty=NOTHING, reconstruction=SquaredError(), auxiliary=NoAuxiliary()) -> Experiment:  # noqa: B008
    return Experiment(
        name="golden", data=Digits(), d_sae=D_SAE, n_steps=1, activation=activation, penalty=penalty,
        reconstruction=reconstruction, auxiliary=auxiliary,
    )  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_loss_is_the_libraries_to_six_digits(name):
    *chosen, expected = GOLDEN[name]
    e = golden(*chosen)
    one = golden_sae(e.activation)
    if isinstance(e.activation, Gated):  # the golden numbers have b_gate = r_mag = b_enc and b_mag = b_enc / 2
        one = model.replace(one, own={"b_mag": one.b_enc[...] / 2, "r_mag": one.b_enc[...]})
    value, gradient = jax.value_and_grad(lambda s: train.loss(s, e, jnp.int32(0), X, 1.0, DEAD)[0])(
        model.using(one, None)
    )
    assert float(value) == pytest.approx(expected, abs=3e-6)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradient))


def test_only_the_part_that_a_paper_trains_gets_a_gradient():
    """Gated's cost holds the decoder unless SAELens' form is asked for; AuxK holds the error that it explains."""
    one, gradients = golden_sae(Gated()), []
    for detached in (True, False):
        e = golden(Gated(detached=detached))
        cost = lambda s, e=e: e.activation.cost(train.loss(s, e, jnp.int32(0), X)[1])
        gradients.append(jax.grad(cost)(model.using(one, None)))
    assert float(jnp.abs(gradients[0].W_dec[...]).max()) == 0 < float(jnp.abs(gradients[1].W_dec[...]).max())
    np.testing.assert_allclose(gradients[0].W_enc[...], gradients[1].W_enc[...], atol=1e-6)

    e = golden(TopK(k=3), auxiliary=SAELENS)
    cost = lambda s: e.auxiliary.cost(train.loss(s, e, jnp.int32(0), X, 1.0, DEAD)[1])
    gradient = jax.grad(cost)(model.using(golden_sae(e.activation), None))
    assert float(jnp.abs(gradient.W_dec[...][2:]).max()) == 0, "latents that are not dead have no part in it"
    assert float(jnp.abs(gradient.W_dec[...][:2]).max()) > 0


def test_a_member_that_diverges_keeps_its_control_and_its_average(tiny):
    one = sae.replace(tiny, {"control": TargetL0(l0=5.0), "average": Ema(decay=0.9)})
    x = jax.random.normal(jax.random.key(0), (64, 64))
    before, *_ = train.step(one, train.init(one, x), jnp.int32(0), x)
    after, *_ = train.step(one, before, jnp.int32(1), x.at[0, 0].set(jnp.nan))
    assert bool(after.diverged) and not bool(before.diverged)
    for name in ("sae", "control", "average", "silent"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(before, name))


def test_structures_tell_classes_apart():
    """Two classes of the same fields are two programs, in every comparison that JAX makes of them."""
    for a, b in ((sae.UnitNorm(), sae.Free()), (sae.Never(), sae.AsWritten()), (Relu(), sae.Last())):
        assert jax.tree.structure(a) != jax.tree.structure(b)
        assert jax.tree.structure(a) == jax.tree.structure(type(a)())


def test_the_auxiliary_loss_of_openai_is_a_share_of_the_errors_variation():
    e = golden(TopK(k=3), auxiliary=AuxK(weight=0.25, k=2))
    _, out = train.loss(golden_sae(e.activation), e, jnp.int32(0), X, 1.0, DEAD)
    error = np.asarray(out.y - out.x_hat)
    f = np.maximum(np.asarray(out.pre_acts), 0) * np.asarray(DEAD)[:, None]
    rest = error - np.asarray(out.sae.W_dec[...]).T @ f
    expected = 0.25 * np.sum(rest**2) / np.sum((error - error.mean(1, keepdims=True)) ** 2)
    assert float(e.auxiliary.cost(out)) == pytest.approx(expected, rel=1e-5)
    assert float(e.auxiliary.cost(out._replace(dead=jnp.zeros(D_SAE, bool)))) == 0


def test_batch_top_k_keeps_k_per_example_on_average_and_its_threshold_follows():
    e = golden(BatchTopK(k=2.5))
    _, out = train.loss(golden_sae(e.activation), e, jnp.int32(0), X)
    assert int(jnp.sum(out.latents != 0)) == 10
    e = golden(BatchTopK(k=3.0))
    _, out = train.loss(golden_sae(e.activation), e, jnp.int32(0), X)
    assert float(e.activation.settle(model.own(out.sae), out)["threshold"]) == pytest.approx(0.000173, abs=5e-7)


def test_squared_weights_are_those_of_both_matrices():
    one, cost = golden_sae(Relu()), {}
    for auxiliary in (NoAuxiliary(), SquaredWeights(weight=0.25)):
        e = golden(Relu(), auxiliary=auxiliary)
        cost[type(auxiliary)] = float(train.loss(one, e, jnp.int32(0), X)[0])
    squares = sum(float(np.sum(np.asarray(W) ** 2)) for W in (one.W_enc[...], one.W_dec[...]))
    assert cost[SquaredWeights] - cost[NoAuxiliary] == pytest.approx(0.25 * squares, rel=1e-5)


def test_jump_relu_has_the_papers_gradients():
    """Rajamanoharan et al. 2024, equations 11 and 12: -θ/ε and -1/ε where |z - θ| < ε/2, none by z in the count."""
    e = golden(JUMP, L0(weight=0.5))
    one, theta, width = golden_sae(JUMP), 0.1, JUMP.bandwidth
    z = model.pre_acts(one, X)
    near = jnp.abs(z - theta) < width / 2
    assert 0 < int(near.sum()) < near.size
    gradient = jax.grad(lambda s: train.loss(s, e, jnp.int32(0), X)[0])(model.using(one, None))
    upstream = one.W_dec[...] @ (2 * (model.decode(one, jnp.where(z > theta, z, 0.0)) - X)) / X.shape[1]
    by_hand = jnp.where(near, -theta / width * upstream - 0.5 / width / X.shape[1], 0.0)
    np.testing.assert_allclose(gradient.own["threshold"][...], jnp.sum(by_hand, axis=1), atol=1e-5)
    np.testing.assert_allclose(gradient.b_enc[...], jnp.sum(jnp.where(z > theta, upstream, 0.0), axis=1), atol=1e-5)


def test_the_exponent_of_lp_falls_in_a_straight_line_to_the_end():
    penalty = Lp(p=0.5, p_start=1.0, anneal_from=0.2)
    out = train.loss(golden_sae(Relu()), golden(Relu(), penalty), jnp.int32(0), X)[1]._replace(n_steps=100)
    at = [float(penalty.exponent(out._replace(step=step))) for step in (0, 20, 60, 100)]
    assert at == pytest.approx([1.0, 1.0, 0.75, 0.5])


@pytest.mark.parametrize(("n", "k"), [(7, 3), (64, 5), (2048, 9), (4096, 32)])
def test_the_k_largest_are_those_of_a_sort_and_of_equal_ones_the_first(n, k):
    values = jax.random.normal(jax.random.key(n), (n, 5)).at[: n // 2].set(0.5).at[: n // 2, 1].set(9.0)
    order = np.argsort(-np.asarray(values), axis=0, kind="stable")[:k]
    expected = np.zeros((n, 5), bool)
    np.put_along_axis(expected, order, True, axis=0)
    assert np.array_equal(top_k.k_largest(values, k), expected)
    assert np.array_equal(jax.jit(top_k.k_largest, static_argnums=2)(values, k, n), expected)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_n_largest_of_all_are_those_of_a_sort_and_of_equal_ones_the_first(scale):
    """Lanes with different counts, ties at the border, zeros, and guesses that are good, far off or absent."""
    values = scale * jnp.maximum(jax.random.normal(jax.random.key(0), (3, 40, 50)), 0.0)
    values = values.at[1, :30].set(2 * scale).at[2].set(0.0).at[2, 3, 4:9].set(scale)
    order = np.argsort(-np.asarray(values).reshape(3, -1), axis=1, kind="stable")
    chosen = jax.jit(jax.vmap(top_k.n_largest, in_axes=(0, None, 0)))
    for n in (1, 3, 7, 160, 900, 1499, 2000):
        expected = np.zeros((3, 2000), bool)
        np.put_along_axis(expected, order[:, :n], True, axis=1)
        expected = expected.reshape(values.shape) & (np.asarray(values) > 0)
        border = np.take_along_axis(np.asarray(values).reshape(3, -1), order[:, n - 1 : n], axis=1)[:, 0]
        for guess in (np.zeros(3), border, 1.003 * border, np.full(3, 1e-3), np.full(3, 3e38)):
            assert np.array_equal(chosen(values, n, guess.astype(np.float32)), expected), (n, guess)


METHODS = {
    "batch-top-k, aux-k, ema": {"activation": BatchTopK(k=6.0), "average": Ema(decay=0.9), "auxiliary": AuxK()},
    "jump-relu, l0, target-l0": {"activation": JumpRelu(), "penalty": L0(weight=0.1), "control": TargetL0(l0=5.0)},
    "gated, lp, weight decay": {"activation": Gated(), "penalty": Lp(), "optimizer.weight_decay": 0.1},
    "matryoshka on top-k": {"activation": TopK(k=4), "reconstruction": Matryoshka(widths=(8, 16))},
}


# the common test resumes every method; here, chunks and revivals of those whose state is largest
@pytest.mark.parametrize("name", [*METHODS][:2])
def test_a_method_trains_in_chunks_of_any_length_through_revivals_and_is_read_back(name, tiny, tmp_path, quiet):
    revival = sae.Resample(every=17, times=2, n_candidates=128)
    one = sae.replace(tiny, {"dead_after": 300, "revival": revival, **METHODS[name]})
    sweep = sae.Sweep(name="two", members=[one, sae.replace(one, {"seed": 1})])
    run = lambda to, **how: sae.run(sweep, out=tmp_path / to, wandb="off", console=quiet, **how)
    whole, cut = run("whole"), run("cut", chunk_steps=7)
    assert list(whole.members.status) == ["finished"] * 2
    for i in (0, 1):
        a, b = model.parameters(whole.sae(i)), model.parameters(cut.sae(i))
        assert a.keys() == b.keys() == model.parameters(train.init(one, jnp.ones((64, 1))).sae).keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)
    assert whole.sae(0).activation == one.activation
    x = np.random.default_rng(0).normal(size=(50, 64)).astype("float32")
    assert whole.sae(1)(x).shape == x.shape
    assert ("train/penalty_factor" in cut.history) == (one.control != sae.AsWritten())


@pytest.mark.parametrize("name", METHODS)
def test_a_checkpoint_of_a_method_names_its_leaves_and_is_read_back_bit_for_bit(name, tiny, tmp_path):
    plan = cohort.plan(sae.grid(sae.replace(tiny, METHODS[name]), {"seed": (0, 1)}))[0]
    state = programs.init(plan.stacked(Placement(1)), jnp.ones((64, 64)), placement=Placement(1))
    kept = Checkpoints(tmp_path / "checkpoints", print)
    kept.save(3, programs.fetch_state(state, 2), [])
    kept.close()
    again = Checkpoints(tmp_path / "checkpoints", print)
    names = again._read(3)[1]["arrays"]
    assert {"state.train.sae.W_enc.value", "state.train.silent", "state.sums.fired"} < names.keys()
    _, restored, _ = again.restore(programs.described(state, 2))
    jax.tree.map(np.testing.assert_array_equal, restored, programs.fetch_state(state, 2))


def test_members_of_different_k_are_one_program_and_each_is_the_lone_one(tmp_path, tiny, quiet):
    base = sae.replace(tiny, {"penalty.l1": 0.0, "activation": TopK(k=4)})
    sweep = sae.Sweep(name="k", members=sae.grid(base, {"activation.k": (2, 4, 9)}))
    assert len(cohort.plan(sweep.members)) == 1
    together = sae.run(sweep, out=tmp_path / "k", wandb="off", console=quiet)
    alone = sae.run(sweep.members[1], out=tmp_path / "k4", wandb="off", console=quiet)
    np.testing.assert_allclose(together.sae(1).W_dec[...], alone.sae(0).W_dec[...], atol=2e-5)
    assert (together.members["eval/l0"] <= [2, 4, 9]).all()
    assert list(together.members["activation.k"]) == [2, 4, 9]
    assert together.sae(2).activation == TopK(k=9)
    x = np.random.default_rng(0).normal(size=(50, 64)).astype("float32")
    stacked = sae.analysis.members.stack([together.sae(i) for i in range(3)])
    latents = sae.analysis.members.each(lambda one, rows: {"f": one.encode(rows)}, stacked, x)["f"]
    assert [int((np.asarray(f) != 0).sum(1).max()) for f in latents] == [2, 4, 9]


def test_the_average_of_the_weights_is_what_is_evaluated(tiny):
    one = sae.replace(tiny, {"average": Ema(decay=0.5)})
    x = jax.random.normal(jax.random.key(0), (64, 64))
    state, seen = train.init(one, x), []
    for i in range(3):
        state, *_ = train.step(one, state, jnp.int32(i), x)
        seen.append(np.asarray(state.sae.W_enc[...]))
    got = train.trained(one, state)
    np.testing.assert_allclose(got.W_enc[...], (seen[0] + 2 * seen[1] + 4 * seen[2]) / 7, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(got.W_dec[...], axis=1), 1, atol=1e-6)


def test_own_parameters_do_not_decay_and_start_again_with_their_latent(tiny):
    changes = {"activation": JumpRelu(threshold=0.2), "revival": sae.Resample(), "optimizer.weight_decay": 1e3}
    one = sae.replace(tiny, changes | {"average": Ema(decay=0.9)})
    x = jax.random.normal(jax.random.key(0), (64, 64))
    state, *_ = train.step(one, train.init(one, x), jnp.int32(0), x)
    assert float(jnp.min(state.sae.own["threshold"][...])) > 0.19
    dead = jnp.arange(48) < 5
    moved = model.replace(state.sae, own={"threshold": jnp.full(48, 0.7)})
    state = dataclasses.replace(state, sae=moved, silent=jnp.where(dead, 10**6, 0))
    again = train.revive(one, state, jnp.int32(1), x[None])
    np.testing.assert_allclose(again.sae.own["threshold"][...], np.where(dead, 0.2, 0.7), rtol=1e-6)
    assert float(jnp.abs(again.opt_state[0].mu.own["threshold"][...][:5]).max()) == 0
    kept = train.trained(one, again)
    np.testing.assert_allclose(kept.W_enc[...][:5], again.sae.W_enc[...][:5], rtol=1e-5, atol=1e-6)


def test_a_choice_that_does_not_fit_an_experiment_is_one_line(tiny):
    wrong = {
        "activation.k: got 49, allowed: at most d_sae = 48": {"activation": TopK(k=49)},
        "activation.k: got 9, allowed: at most activation.k_max = 8": {"activation": TopK(k=9, k_max=8)},
        "reconstruction.widths: got .8, 8., allowed: rising": {"reconstruction": Matryoshka(widths=(8, 8))},
        "penalty.L0 has no gradient with Relu, allowed: .*JumpRelu": {"penalty": L0()},
    }
    for message, changes in wrong.items():
        with pytest.raises(sae.UserError, match=message):
            validate(sae.replace(tiny, changes))

"""Training many at once is training each: equality, isolation, chunks, determinism, revival, transfers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import sae
from sae import Adam, Arrays, ElasticNet, Experiment, Never, Resample, Superposition, Sweep, TopK, grid, train
from sae.data.feed import Feed
from sae.engine import cohort, programs
from sae.engine.loop import blocks, evaluate, train_cohort
from sae.engine.placement import Placement

ONE, TWO, FOUR = (Placement(lanes) for lanes in (1, 2, 4))


@pytest.fixture
def run(tmp_path, quiet):
    """Run a definition into a folder of its own, without W&B."""
    names = iter(f"run-{i}" for i in range(100))
    return lambda definition, **options: sae.run(
        definition, out=tmp_path / next(names), wandb="off", console=quiet, **options
    )


def sweep_of(tiny, **axes) -> Sweep:
    axes = {name.replace("__", "."): values for name, values in axes.items()}
    return Sweep(name="some", members=grid(tiny, axes))


def weights(results, member) -> dict[str, np.ndarray]:
    one = results.sae(member)
    return {name: np.asarray(getattr(one, name)[...]) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}


def numbers(results) -> pd.DataFrame:
    return results.members.filter(like="eval/")


@pytest.fixture(scope="module")
def four(tiny, tmp_path_factory):
    """Four members that differ in everything that may differ inside one program."""
    members = [
        tiny,
        sae.replace(tiny, {"penalty.l1": 0.5, "seed": 3, "optimizer.lr": 1e-3}),
        sae.replace(tiny, {"penalty.l2": 0.3, "optimizer.warmup_steps": 20, "penalty.warmup_steps": 30}),
        sae.replace(tiny, {"optimizer.b1": 0.5, "optimizer.decay_steps": 50, "optimizer.weight_decay": 0.1}),
    ]
    sweep = Sweep(name="four", members=members)
    return sweep, sae.run(sweep, out=tmp_path_factory.mktemp("four") / "run", wandb="off")


def test_a_member_of_a_cohort_equals_the_same_experiment_alone(four, run):
    sweep, together = four
    assert len(cohort.plan(sweep.members)) == 1
    for i, experiment in enumerate(sweep.members):
        alone = run(experiment)
        for name, value in weights(alone, 0).items():
            np.testing.assert_allclose(weights(together, i)[name], value, atol=2e-5, err_msg=f"{i} {name}")
        np.testing.assert_allclose(numbers(together).iloc[i], numbers(alone).iloc[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("chunk_steps", [1, 7, 60])
def test_chunk_length_changes_nothing_at_all(four, run, chunk_steps):
    sweep, reference = four
    other = run(sweep, chunk_steps=chunk_steps)
    pd.testing.assert_frame_equal(other.members, reference.members, check_exact=True)
    for i in range(4):
        for name, value in weights(other, i).items():
            np.testing.assert_array_equal(value, weights(reference, i)[name])
    assert sorted(other.history.step.unique()) == [*range(chunk_steps, 60, chunk_steps), 60]


@pytest.mark.parametrize("data", [sae.Digits(), Superposition(d_in=16, n_features=32)], ids=["rows", "sampled"])
def test_chunk_length_changes_nothing_where_latents_are_revived_or_examples_sampled(tiny, run, data):
    revival = Resample(every=17, times=3, n_candidates=128)
    experiment = sae.replace(tiny, {"data": data, "revival": revival, "dead_after": 300, "penalty.l1": 1.0})
    whole, cut = run(experiment), run(experiment, chunk_steps=7)
    pd.testing.assert_frame_equal(cut.members, whole.members, check_exact=True)
    for name, value in weights(whole, 0).items():
        np.testing.assert_array_equal(weights(cut, 0)[name], value)


def test_a_diverged_member_is_marked_and_its_neighbours_keep_every_bit(four, run):
    sweep, reference = four
    members = list(sweep.members)
    members[1] = sae.replace(members[1], {"optimizer.lr": 1e30})
    sick = run(Sweep(name="sick", members=members))
    assert list(sick.members.status) == ["finished", "diverged", "finished", "finished"]
    for i in (0, 2, 3):
        for name, value in weights(sick, i).items():
            np.testing.assert_array_equal(value, weights(reference, i)[name])
    assert all(np.isfinite(value).all() for value in weights(sick, 1).values()), "frozen as it was before"


def test_a_member_that_explodes_on_the_way_is_frozen_where_it_was_last_finite(tiny, run):
    huge = sae.replace(tiny, {"optimizer.lr": 1e25, "constraint": sae.Free()})
    fine = sae.replace(tiny, {"constraint": sae.Free()})
    results = run(Sweep(name="huge", members=[fine, huge]))
    assert list(results.members.status) == ["finished", "diverged"]
    assert results.history[results.history.member == 1]["train/diverged"].iloc[-1]
    assert np.isfinite(results.members["eval/fvu"][0])
    assert all(np.isfinite(value).all() for value in weights(results, 1).values())


@pytest.mark.parametrize("change", [{"optimizer.lr": 1e25}, {"optimizer.weight_decay": 1e30}])
def test_a_last_step_that_spoils_a_member_is_seen(tiny, run, change):
    results = run(sae.replace(tiny, {"n_steps": 1, "optimizer.warmup_steps": 0, "optimizer.decay_steps": 0, **change}))
    assert results.members.status[0] == "diverged"
    assert all(np.isfinite(value).all() for value in weights(results, 0).values())


def test_the_same_seed_gives_the_same_table_and_another_seed_another(four, run):
    sweep, reference = four
    again = run(sweep)
    pd.testing.assert_frame_equal(again.members, reference.members, check_exact=True)
    pd.testing.assert_frame_equal(again.history, reference.history, check_exact=True)
    assert not np.array_equal(weights(reference, 0)["W_dec"], weights(reference, 1)["W_dec"])


def test_lanes_change_results_by_rounding_only(four, run):
    sweep, reference = four
    for lanes in (1, 2):
        np.testing.assert_allclose(numbers(run(sweep, lanes=lanes)), numbers(reference), rtol=1e-3, atol=1e-5)


def test_planning_splits_on_shapes_and_kinds_and_not_on_numbers_or_names(tiny):
    same = grid(tiny, {"seed": (0, 1), "optimizer.lr": (1e-3, 1e-2), "name": ("a", "b"), "dead_after": (5, 6)})
    assert len(cohort.plan(same)) == 1
    other = [
        sae.replace(tiny, change)
        for change in ({"d_sae": 32}, {"batch_size": 32}, {"activation": TopK(k=4)}, {"optimizer.clip": 1.0})
    ]
    plan = cohort.plan([*same, *other])
    assert [len(c.members) for c in plan] == [16, 1, 1, 1, 1]
    names = {"d_sae", "batch_size", "activation", "activation.k", "activation.k_max", "optimizer.clip"}
    assert set(cohort.splits(plan)) == names


def test_unit_norms_hold_after_every_step(tiny):
    x = jax.random.normal(jax.random.key(0), (64, 64))
    state = train.init(tiny, x)
    step = jax.jit(lambda state, i: train.step(tiny, state, i, x)[0])
    for i in range(20):
        state = step(state, jnp.int32(i))
        norms = np.linalg.norm(np.asarray(state.sae.W_dec[...]), axis=1)
        np.testing.assert_allclose(norms, 1, atol=1e-6)


def test_init_is_unit_rows_and_the_encoder_tied(tiny):
    x = 3 + jax.random.normal(jax.random.key(0), (64, 500))
    one = train.init(dataclasses.replace(tiny, b_dec_init="mean"), x).sae
    np.testing.assert_allclose(np.linalg.norm(one.W_dec[...], axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(one.W_enc[...], one.W_dec[...])
    np.testing.assert_allclose(one.b_dec[...], x.mean(1), rtol=1e-6)
    median = train.init(dataclasses.replace(tiny, b_dec_init="geometric-median"), x).sae
    np.testing.assert_allclose(median.b_dec[...], x.mean(1), atol=0.1)
    assert not np.array_equal(median.b_dec[...], one.b_dec[...])


def test_resampling_brings_dead_latents_back_where_never_leaves_many():
    """Half of the latents start out of reach (encoder bias -100): Never keeps them dead, Resample does not."""
    base = Experiment(
        name="half dead", data=Superposition(d_in=32, n_features=64, n_active=2), d_sae=64, n_steps=1_600,
        batch_size=256, penalty=ElasticNet(l1=0.15), dead_after=20_000,
        optimizer=Adam(lr=3e-3, decay_steps=600),
    )  # fmt: skip
    after = {}
    for revival in (Never(), Resample(every=400, times=2, n_candidates=4_096)):
        plan = cohort.plan([dataclasses.replace(base, revival=revival)])[0]
        experiments, feed = plan.stacked(ONE), Feed(base.data.load(), 0, base.batch_size, base.n_steps)
        state = programs.init(experiments, feed.candidates(0, 256)[0], placement=ONE)
        b_enc = state.train.sae.b_enc[...].at[:, ::2].set(-100.0)
        state = state.replace(train=state.train.replace(sae=sae.core.model.replace(state.train.sae, b_enc=b_enc)))
        *_, (trained, _, _) = train_cohort(state, plan, experiments, feed, ONE)
        after[type(revival)] = evaluate(plan, experiments, feed, trained, ONE)[0]
    never, again = after[Never], after[Resample]
    assert never["eval/dead"][0] >= 32
    assert again["eval/dead"][0] <= 4
    assert again["eval/fvu"][0] < 0.5 * never["eval/fvu"][0]
    assert again["eval/mmcs"][0] > never["eval/mmcs"][0] + 0.1


def test_resampling_is_the_procedure_of_bricken_et_al():
    d, f, n = 6, 5, 64
    rng = np.random.default_rng(0)
    array = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    one = sae.Sae(array(f, d), array(f), array(f, d), array(d), sae.Relu())
    opt_state = Adam().transform(1).init(one)
    opt_state = jax.tree.map(lambda a: a + 1, opt_state)
    dead = jnp.array([False, True, False, True, False])
    candidates = array(2, d, n // 2)
    new, moments = Resample()(jax.random.key(0), one, opt_state, dead, candidates)

    alive = np.flatnonzero(~dead)
    for name in ("W_enc", "W_dec", "b_enc"):
        np.testing.assert_array_equal(getattr(new, name)[...][alive], getattr(one, name)[...][alive])
    np.testing.assert_array_equal(new.b_enc[...][dead], 0)
    x = np.asarray(candidates.transpose(0, 2, 1).reshape(n, d) - one.b_dec[...])
    directions = x / np.linalg.norm(x, axis=1, keepdims=True)
    scale = 0.2 * np.linalg.norm(np.asarray(one.W_enc[...])[alive], axis=1).mean()
    for j in np.flatnonzero(dead):
        row = np.asarray(new.W_dec[...][j])
        distance = np.abs(directions - row).max(axis=1)
        assert distance.min() < 1e-6, "the decoder row is an example's direction"
        np.testing.assert_allclose(new.W_enc[...][j], scale * row, rtol=1e-5)
    for state in jax.tree.leaves(moments, is_leaf=lambda node: isinstance(node, sae.Sae)):
        if isinstance(state, sae.Sae):
            assert np.all(state.W_dec[...][dead] == 0) and np.all(state.W_enc[...][dead] == 0)
            assert np.all(state.b_enc[...][dead] == 0) and np.all(state.W_dec[...][alive] == 1)
            assert np.all(state.b_dec[...] == 1)


def test_resampling_prefers_bad_examples_by_squared_loss():
    """Two groups of candidates, losses 1 and 3: the second is chosen 9 times as often, whichever latent is dead."""
    d, f, n = 2, 500, 1000
    one = sae.Sae(*(jnp.zeros(s) for s in ((f, d), (f,), (f, d), (d,))), sae.Relu())
    x = jnp.concatenate(
        [jnp.tile(jnp.array([[1.0], [0.0]]), n // 2), jnp.tile(jnp.array([[0.0], [3**0.5]]), n // 2)], 1
    )
    pick = lambda key: Resample()(key, one, (), jnp.arange(f) == f - 1, x[None])[0].W_dec[...][-1, 1]
    share = float(jax.vmap(pick)(jax.random.split(jax.random.key(1), 2000)).mean())
    assert share == pytest.approx(0.9, abs=0.03)


def test_blocks_cover_every_step_once_and_end_where_they_must(tiny):
    experiment = sae.replace(tiny, {"n_steps": 103, "revival": Resample(every=25, times=2)})
    got = list(blocks(experiment, 10, 40))
    assert [step for step, _, _ in got] == list(np.cumsum([0] + [n for _, n, _ in got])[:-1])
    ends = [step + n for step, n, _ in got]
    assert ends[-1] == 103 and {25, 50, 40, 80} <= set(ends) and max(n for _, n, _ in got) <= 10
    assert [end for end, (_, _, last) in zip(ends, got, strict=True) if last] == [40, 80, 103]


def test_streamed_data_gives_the_same_weights_as_resident_data(tmp_path, run):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(900, 16)).astype(np.float32))
    experiment = Experiment(
        name="streamed", data=Arrays(path=str(tmp_path / "x.npy")), d_sae=24, batch_size=100, n_steps=45,
        penalty=ElasticNet(l1=0.1), revival=Resample(every=20, n_candidates=300), dead_after=500,
    )  # fmt: skip
    resident, streamed = run(experiment), run(experiment, resident_bytes=0)
    for name, value in weights(resident, 0).items():
        np.testing.assert_array_equal(weights(streamed, 0)[name], value)
    pd.testing.assert_frame_equal(streamed.members, resident.members, check_exact=True)


@pytest.mark.parametrize("source", [sae.Digits(), Superposition(d_in=16, n_features=32)], ids=["rows", "sampled"])
def test_a_cohort_trains_without_moving_anything_between_host_and_device(tiny, source):
    """Blocks, ends of chunks, a revival and an evaluation, all under a guard that refuses any transfer."""
    experiment = sae.replace(tiny, {"data": source, "revival": Resample(every=30, n_candidates=128), "dead_after": 500})
    plan = cohort.plan(grid(experiment, {"seed": range(4)}))[0]
    experiments, feed = plan.stacked(ONE), Feed(source.load(), 0, tiny.batch_size, tiny.n_steps)
    candidates, held_out = feed.candidates(0, 128), list(feed.held_out(512))
    sample = candidates[0]
    pivot, n = jnp.asarray(feed.data.mean), jnp.int32(3)
    steps, block = [jnp.int32(step) for step in range(0, 60, 3)], feed.block(0)

    def whole_run():
        state = programs.init(experiments, sample, placement=FOUR)
        for step in steps:
            state, x = programs.train_block(experiments, state, block, pivot, step, n, placement=FOUR)
            last = programs.look(experiments, state, step, x, placement=FOUR)
            state, values = programs.end_chunk(experiments, state, placement=FOUR)
        state = programs.revive(experiments, state, steps[-1], candidates, placement=FOUR)
        window = empty
        for x in held_out:
            saes = programs.trained(experiments, state, placement=FOUR)
            window = programs.evaluate_batch(saes, window, x, pivot, placement=FOUR)
        return values | last, programs.end_evaluation(window)

    empty = programs.new_window(programs.init(experiments, sample, placement=FOUR), placement=FOUR)
    whole_run()  # compiling moves constants
    empty = programs.new_window(programs.init(experiments, sample, placement=FOUR), placement=FOUR)
    with jax.transfer_guard("disallow"):
        values, (numbers, _) = jax.block_until_ready(whole_run())
    assert all(np.isfinite(of[name]).all() for of, name in ((values, "fvu"), (values, "loss"), (numbers, "fvu")))


@pytest.mark.parametrize("source", [sae.Digits(), Superposition(d_in=16, n_features=32)], ids=["resident", "sampled"])
@pytest.mark.parametrize("activation", [sae.Relu(), TopK(k=4)], ids=["relu", "top-k"])
def test_the_train_program_lowers_for_cpu_cuda_and_tpu(tiny, source, activation):
    experiment = sae.replace(tiny, {"data": source, "activation": activation, "revival": Resample(n_candidates=128)})
    plan = cohort.plan(grid(experiment, {"seed": range(2)}))[0]
    experiments, feed = plan.stacked(ONE), Feed(source.load(), 0, 64, 60)
    d_in = feed.data.d_in
    state = jax.eval_shape(functools.partial(programs.init, placement=TWO), experiments, jnp.zeros((d_in, 64)))
    step = jnp.int32(0)

    def program(experiments_leaves, state_leaves, block_leaves, candidates):
        experiments_, state_, block = (
            jax.tree.unflatten(jax.tree.structure(tree), leaves)
            for tree, leaves in (
                (experiments, experiments_leaves),
                (state, state_leaves),
                (feed.block(0), block_leaves),
            )
        )
        pivot = jnp.zeros(d_in)
        trained, x = programs.train_block(experiments_, state_, block, pivot, step, step + 3, placement=TWO)
        last = programs.look(experiments_, trained, step, x, placement=TWO)
        revived = programs.revive(experiments_, trained, step, candidates, placement=TWO)
        return jax.tree.leaves((programs.end_chunk(experiments_, revived, placement=TWO), last))

    arguments = [jax.tree.leaves(tree) for tree in (experiments, state, feed.block(0))]
    exported = jax.export.export(jax.jit(program), platforms=("cpu", "cuda", "tpu"))(
        *arguments, feed.candidates(0, 128)
    )
    assert exported.platforms == ("cpu", "cuda", "tpu")


@pytest.mark.long
def test_superposition_best_mmcs_over_lambda_is_near_one(run):
    """d_in 64, 128 features, 3 active, as many latents as features and twice as many: P2's clause (a), small."""
    base = Experiment(
        name="superposition", data=Superposition(), d_sae=128, batch_size=256, n_steps=1_200, n_eval=4_096,
        optimizer=Adam(lr=5e-3, decay_steps=400), dead_after=50_000,
    )  # fmt: skip
    results = run(Sweep(name="s", members=grid(base, {"d_sae": (128, 256), "penalty.l1": (0.06, 0.12)})))
    best = results.members.groupby("d_sae")[["eval/mmcs", "eval/mmcs_chance"]].max()
    assert (best["eval/mmcs"] >= 0.95).all(), best
    assert (best["eval/mmcs_chance"] < 0.6).all()

"""What `precision` changes and what it must not: the factors of five products, and nothing else."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sae
from sae import Sweep, grid, train
from sae.core import model
from sae.engine import cohort, programs
from sae.engine.placement import Placement
from sae.study.frontiers import interpolate

X = jax.random.normal(jax.random.key(0), (64, 64))


def at_both(experiment):
    return [sae.replace(experiment, {"precision": precision}) for precision in ("float32", "bfloat16")]


def products(experiment, lanes: int) -> list[tuple[str, str, str, str]]:
    """(type of a, of b, of a @ b, precision asked for) of every product in a step that members share, vectors' too.

    This is the program as it is handed to a device's own compiler.
    """
    experiments = cohort.stack([experiment] * 4)
    states = jax.vmap(lambda e: train.init(e, X))(experiments)
    step = lambda args: train.step(*args, jnp.int32(0), X)
    program = (
        jax.jit(lambda args: programs.over_members(step, args, Placement(lanes))).lower((experiments, states)).as_text()
    )
    one = (
        r"dot_general .* precision = \[(\w+), .*\] : \(tensor<(\S+)x(\w+)>, tensor<(\S+)x(\w+)>\) -> tensor<\S+x(\w+)>"
    )
    found = re.findall(one, program)
    assert len(found) == program.count("stablehlo.dot_general")
    size = lambda shape: math.prod(map(int, shape.split("x")))
    # a factor that is a matrix has 48 * 64 numbers, one that is a vector at most 4 * 64
    return [
        (a, b, out, asked if min(size(a_shape), size(b_shape)) >= 48 * 64 else "a vector")
        for asked, a_shape, a, b_shape, b, out in found
    ]


@pytest.mark.parametrize("activation", [sae.Relu(), sae.TopK(k=4)], ids=["relu", "top-k"])
@pytest.mark.parametrize("lanes", [1, 4])
def test_the_five_products_of_a_step_and_no_others_are_of_bfloat16_factors(tiny, activation, lanes):
    float32, bfloat16 = at_both(sae.replace(tiny, {"activation": activation}))
    with_vectors = [("f32", "f32", "f32", "a vector")] * 3  # of b_dec and its gradients
    assert sorted(products(float32, lanes)) == [("f32", "f32", "f32", "HIGHEST")] * 5 + with_vectors
    assert sorted(products(bfloat16, lanes)) == [("bf16", "bf16", "f32", "DEFAULT")] * 5 + with_vectors


def test_factors_are_rounded_and_sums_are_not():
    a, b = jax.random.normal(jax.random.key(1), (32, 500)), jax.random.normal(jax.random.key(2), (500, 24))
    rounded = [np.asarray(m.astype(jnp.bfloat16), np.float64) for m in (a, b)]
    got = jax.jit(lambda a, b: model.matmul(a, b, "bfloat16"))(a, b)
    np.testing.assert_allclose(got, rounded[0] @ rounded[1], atol=1e-4)
    assert np.abs(got - np.asarray(a, np.float64) @ np.asarray(b, np.float64)).max() > 0.02


@sae.definition
class Softplus:
    """log(1 + e^z): no latent switches on or off by rounding."""

    def __call__(self, pre_acts):
        return jax.nn.softplus(pre_acts)


def test_the_gradient_is_that_of_float32_to_the_accuracy_of_bfloat16(tiny):
    gradients = []
    for experiment in at_both(sae.replace(tiny, {"activation": Softplus()})):
        one = train.init(experiment, X).sae
        gradients.append(jax.grad(lambda s, e=experiment: train.loss(s, e, jnp.int32(100), X)[0])(one))
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        exact, rounded = (np.asarray(getattr(gradient, name)[...]) for gradient in gradients)
        assert 0 < np.linalg.norm(rounded - exact) < 1e-2 * np.linalg.norm(exact), name


def test_all_that_training_carries_stays_float32(tiny):
    float32, bfloat16 = (train.init(e, X) for e in at_both(tiny))
    after, sums = jax.jit(train.step)(at_both(tiny)[1], bfloat16, jnp.int32(0), X)
    types = lambda tree: [leaf.dtype for leaf in jax.tree.leaves(tree)]
    assert types(after) == types(bfloat16) == types(float32)
    assert "bfloat16" not in map(str, types((after, sums)))


@pytest.fixture(scope="module")
def both(tiny, tmp_path_factory):
    """A frontier of ReLU + L1 on digits, at either precision: four members, and four more."""
    base = sae.replace(tiny, {"d_sae": 128, "batch_size": 256, "n_steps": 500, "optimizer.decay_steps": 200})
    members = [m for e in at_both(base) for m in grid(e, {"penalty.l1": (0.1, 0.2, 0.4, 0.8)})]
    assert cohort.splits(cohort.plan(members)) == ["precision"]
    return sae.run(Sweep(name="both", members=members), out=tmp_path_factory.mktemp("both") / "run", wandb="off")


def test_the_frontier_on_digits_is_that_of_float32(both):
    """Held-out FVU at equal L0, where two seeds lie up to 8 % apart."""
    float32, bfloat16 = (frontier for _, frontier in both.members.groupby("precision", sort=False))
    for l0 in (10, 15, 20, 25, 30):
        expected, got = (interpolate(l0, frontier, "eval/l0", "eval/fvu") for frontier in (float32, bfloat16))
        assert got == pytest.approx(expected, rel=0.01), l0


def test_an_autoencoder_is_read_back_at_its_own_precision(both):
    one = both.sae(4)
    assert (both.sae(0).precision, one.precision) == ("float32", "bfloat16")
    one = model.on_examples(one)
    np.testing.assert_allclose(one(X.T), model.forward(one, X).x_hat.T, atol=1e-5)
    older = sae.load(both.folder)
    for flat in older.definition["members"]:
        del flat["precision"]  # as in a folder from before there was a choice
    assert older.sae(4).precision == "float32"
    assert np.abs(one(X.T) - model.on_examples(older.sae(4))(X.T)).max() > 1e-3


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
def test_data_far_from_zero_are_not_rounded_away(apply_b_dec_to_input):
    """Rounding rows of |mean| / std = 350 to bfloat16 would leave nothing of their deviations."""
    rng = np.random.default_rng(0)
    W = model.unit_rows(jnp.asarray(rng.normal(size=(48, 64)), jnp.float32))
    x = jnp.asarray(350 * rng.choice([-1, 1], 64)[:, None] + rng.normal(size=(64, 200)), jnp.float32)
    z = []
    for precision in ("float32", "bfloat16"):
        one = sae.Sae(W, jnp.zeros(48), W, x.mean(1), sae.Relu(), apply_b_dec_to_input, precision)
        z.append(np.asarray(model.pre_acts(one, x), np.float64))
    assert np.abs(z[1] - z[0]).max() < 0.02


def test_a_run_on_uncentred_data_reaches_the_fvu_of_float32(tmp_path):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(64, 32)) / math.sqrt(32)
    rows = (rng.random((4_000, 64)) < 4 / 64) * rng.exponential(size=(4_000, 64)) @ features
    np.save(tmp_path / "x.npy", (rows + 180 * rng.choice([-1, 1], 32)).astype(np.float32))
    base = sae.Experiment(
        name="uncentred",
        data=sae.Arrays(path=str(tmp_path / "x.npy"), normalize="none"),
        d_sae=64,
        penalty=sae.ElasticNet(l1=0.1),
        optimizer=sae.Adam(lr=3e-3),
        b_dec_init="mean",
        batch_size=256,
        n_steps=300,
    )
    sweep = Sweep(name="uncentred", members=at_both(base))
    fvu = sae.run(sweep, out=tmp_path / "run", wandb="off").members["eval/fvu"].to_numpy()
    assert fvu[0] < 0.1 and fvu[1] == pytest.approx(fvu[0], rel=0.02)

"""Selections and products that read fewer numbers: each equals the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sae
from sae import AbsTopK, AuxK, ElasticNet, Matryoshka, TopK, train
from sae.core import model, sparse
from sae.methods import auxiliaries, top_k

X = jax.random.normal(jax.random.key(0), (64, 32))


def columns(kind: str) -> np.ndarray:
    """Columns of 48 numbers, many of them equal, or far apart, or not finite."""
    values = np.random.default_rng(0).normal(size=(48, 40)).astype(np.float32)
    made = {
        "all differ": values,
        "halves": np.round(2 * values) / 2,
        "all equal": np.full_like(values, 0.5),
        "nothing positive": -np.abs(values),
        "zeros of both signs": np.where(values > 0, np.float32(-0.0), np.float32(0.0)),
        "absent": np.where(values < 0, -np.inf, values),
        "infinite": np.where(values > 1, np.inf, values),
        "far apart": np.sign(values) * np.exp(25 * values),
    }
    return made[kind].astype(np.float32)


KINDS = (
    "all differ", "halves", "all equal", "nothing positive", "zeros of both signs", "absent", "infinite", "far apart",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_never_more_than_k_are_kept_and_of_equal_ones_the_first(kind):
    """By counting and by sorting, with a k that is traced, of all values and of the positive ones."""
    values = columns(kind)
    order = np.argsort(-values, axis=0, kind="stable")
    ways = jax.jit(
        lambda values, k: [
            way(values, k, above)
            for above in (-jnp.inf, 0.0)
            for way in (top_k._by_counting, lambda v, k, above: top_k._by_sorting(v, k, 48, above))
        ]
    )
    for k in (1, 7, 48):
        expected = np.zeros(values.shape, bool)
        np.put_along_axis(expected, order[:k], True, axis=0)
        for i, kept in enumerate(ways(values, k)):
            assert np.array_equal(kept, expected & (values > (-np.inf if i < 2 else 0.0))), (k, i)


@pytest.mark.parametrize("form", ["openai", "saelens"])
def test_the_dead_latents_alone_cost_what_they_cost_among_all(form, tiny, monkeypatch):
    one = sae.replace(tiny, {"activation": TopK(k=4), "auxiliary": AuxK(k=3, form=form)})
    state, dead = train.init(one, X), jnp.arange(48) % 6 == 1  # 8 of 48
    found = []
    for few in (4, 1):  # a quarter of the latents, or all of them
        monkeypatch.setattr(auxiliaries, "FEW", few)
        cost = lambda s: one.auxiliary.cost(train.loss(s, one, jnp.int32(0), X, 1.0, dead)[1])
        found.append(jax.value_and_grad(cost)(state.sae))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *found)
    assert float(found[0][0]) > 0


WIDE = {
    "top-k": {},
    "signs kept": {"activation": AbsTopK(k=4, k_max=4)},
    "a k below k_max": {"activation": TopK(k=4, k_max=6)},
    "a penalty": {"penalty": ElasticNet(l1=0.1, l2=0.1)},
    "another decode": {"reconstruction": Matryoshka(widths=(8, 16))},
    "aux-k": {"auxiliary": AuxK(k=3)},
    "an input of its own": {"apply_b_dec_to_input": False},
}


@pytest.mark.parametrize("name", WIDE)
def test_sparse_products_give_the_dense_step(name, tiny, monkeypatch):
    """Within rounding: the loss, what a term looks at, and every gradient."""
    one = sae.replace(tiny, {"activation": TopK(k=4, k_max=4), "penalty": ElasticNet(), **WIDE[name]})
    state, dead, found = train.init(one, X), jnp.arange(48) < 5, []
    b_enc = jax.random.normal(jax.random.key(1), (48,)) / 10
    start = model.replace(state.sae, b_enc=b_enc, b_dec=jnp.full(64, 0.1))
    for least in (10**9, 1):
        monkeypatch.setattr(sparse, "FROM", least)
        (value, out), gradient = jax.value_and_grad(train.loss, has_aux=True)(start, one, jnp.int32(0), X, 1.0, dead)
        found.append((value, out.latents, out.x_hat, gradient))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *found)
    assert int(jnp.sum(found[0][1] != 0, axis=0).max()) == 4


def test_a_wide_step_has_one_product_of_all_latents(tiny, monkeypatch):
    one = sae.replace(tiny, {"activation": TopK(k=2, k_max=2), "penalty": ElasticNet()})
    state, counts = train.init(one, X), []
    for least in (10**9, 1):
        monkeypatch.setattr(sparse, "FROM", least)
        program = jax.jit(lambda state: train.step(one, state, jnp.int32(0), X)).lower(state).as_text()
        products = [line for line in program.splitlines() if "dot_general" in line]
        counts.append(sum("<48x32x" in line or "<32x48x" in line for line in products))
    assert counts == [5, 1]


def test_few_latents_of_many_are_what_sparse_products_are_for():
    assert sparse.pays(65_536, 32, "float32") and sparse.pays(65_536, 16, "float32")
    assert not sparse.pays(32_768, 32, "float32") and not sparse.pays(65_536, 16, "bfloat16")


@sae.definition
class Doubled(TopK):
    """TopK whose latents are twice as large while training."""

    def training(self, sae, pre_acts):
        latents = 2 * self(sae, pre_acts)
        return latents, latents


def test_a_class_that_trains_otherwise_than_the_one_it_derives_from_keeps_its_own_latents(tiny, monkeypatch):
    monkeypatch.setattr(sparse, "FROM", 1)
    one = sae.replace(tiny, {"activation": Doubled(k=4, k_max=4), "penalty": ElasticNet()})
    _, out = train.loss(train.init(one, X).sae, one, jnp.int32(0), X)
    np.testing.assert_allclose(out.latents, 2 * one.activation(out.sae, out.pre_acts), rtol=1e-6)
    assert out.sae.few is None

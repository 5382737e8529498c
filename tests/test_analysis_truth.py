"""Truth: against brute force on a small world, and on dictionaries made by hand."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy.optimize import linear_sum_assignment

import sae
from sae import BatchTopK, ElasticNet, Experiment, Hierarchy, Relu, Sae, SynthBench, UserError
from sae.analysis import members, truth
from sae.analysis.truth import EXAMPLES_AT_ONCE, Truth

WORLD = SynthBench(d_in=16, n_features=80, n_roots=4, n_children=3, depth=2, p_min=0.02, n_held_out=256)
FAMILIES = Hierarchy(norm_deviation=0.0, n_held_out=256)
FEATURES = FAMILIES.load().features


def noisy(seed: int, n: int = 40, noise: float = 0.4) -> Sae:
    """Decoder rows near the first n features of the world, one of them copied, one latent dead."""
    rng = np.random.default_rng(seed)
    W = WORLD.world().features[:n] + noise * rng.standard_normal((n, 16)) / 4
    W[3] = -W[2]
    b = np.full(n, -1.5)
    b[5] = -1e3
    bias = WORLD.world().bias
    return Sae(*(jnp.asarray(a, jnp.float32) for a in (W, b, 0.7 * W, bias)), Relu())


def by_hand(W_dec, b_enc=-1e-4, W_enc=None) -> Sae:
    W_dec = np.asarray(W_dec)
    W_enc = W_dec if W_enc is None else W_enc
    b_enc = np.full(len(W_dec), b_enc)
    return Sae(*(jnp.asarray(a, jnp.float32) for a in (W_enc, b_enc, W_dec, np.zeros(W_dec.shape[1]))), Relu())


def numbers(saes, source, n=2_048, levels=1):
    return truth.truth(members.stack(saes), source.load(), n=n, seed=0, levels=levels)


def brute_force(member: Sae, rows, sampler, levels, n, found=0.8):
    """The numbers of `truth` from dense arrays; `rows` are the decoder rows that say what a latent stands for."""
    drawn = [sampler.labelled(jax.random.fold_in(jax.random.key(0), i), EXAMPLES_AT_ONCE) for i in range(n // 1024)]
    x, values = (np.concatenate([np.asarray(a) for a in parts]) for parts in zip(*drawn, strict=True))
    latents = np.maximum((x - np.asarray(member.b_dec)) @ np.asarray(member.W_enc).T + np.asarray(member.b_enc), 0)
    x_hat = latents @ np.asarray(member.W_dec) + np.asarray(member.b_dec)
    fires, active = latents > 0, values > 0
    unit = lambda v: v / np.linalg.norm(v, axis=1, keepdims=True)
    cosines = np.abs(unit(np.asarray(rows)) @ unit(sampler.features).T)
    best, own = cosines.argmax(1), cosines.argmax(0)
    pairs = linear_sum_assignment(-cosines)
    each = []
    for latent, feature in enumerate(best):
        both = (fires[:, latent] & active[:, feature]).sum()
        precision = both / fires[:, latent].sum() if fires[:, latent].any() else 0.0
        recall = both / active[:, feature].sum() if active[:, feature].any() else 0.0
        each.append((precision, recall, 2 * precision * recall / (precision + recall) if both else 0.0))
    precision, recall, f1 = np.mean(each, axis=0)
    found_numbers = {
        "mcc": cosines[pairs].mean(), "uniqueness": len(set(best)) / len(best), "precision": precision,
        "recall": recall, "f1": f1, "recovered": (cosines[pairs] > found).sum(),
        "explained_variance": 1 - ((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum(), "l0": fires.sum(1).mean(),
        "true_l0": active.sum(1).mean(), "dead": (~fires.any(0)).sum(),
        "norm_ratio": (np.linalg.norm(x_hat, axis=1) / np.linalg.norm(x, axis=1)).mean(),
    }  # fmt: skip
    parents, level = sampler.parents, WORLD.world().levels
    for depth in range(1, levels + 1):
        children = np.flatnonzero((level == depth) & (parents >= 0))
        rates = []
        for child in children:
            both = active[:, child] & active[:, parents[child]]
            if both.any():
                alone = fires[:, own[child]] & ~fires[:, own[parents[child]]]
                rates.append((both & alone).sum() / both.sum())
        found_numbers[f"absorbed_{depth}"] = np.mean(rates)
        found_numbers[f"split_{depth}"] = np.mean([(best == p).sum() > 1 for p in set(parents[children])])
    return found_numbers


def test_all_numbers_are_those_of_dense_arrays():
    saes = [noisy(0), noisy(1, noise=0.8)]
    found = numbers(saes, WORLD, levels=2)
    random = jax.random.normal(jax.random.key(0), (40, 16))
    for i, member in enumerate(saes):
        expected = brute_force(member, member.W_dec[...], WORLD.load(), 2, 2_048)
        chance = brute_force(member, random, WORLD.load(), 2, 2_048)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][i], value, rtol=2e-4, err_msg=name)
            if f"{name}_chance" in found:
                np.testing.assert_allclose(found[f"{name}_chance"][i], chance[name], rtol=2e-4, err_msg=name)
    assert 0.2 < found["f1"][0] < 1 and found["dead"][0] >= 1 and 0 < found["absorbed_1"][0] < 1
    assert {f"analysis/{name}" for name in found} == set(Truth(levels=2).columns)
    assert found["f1"][0] > 2 * found["f1_chance"][0] and found["mcc"][0] > 1.3 * found["mcc_chance"][0]


def test_a_dictionary_that_is_the_truth_scores_one():
    found = numbers([by_hand(FEATURES), by_hand(-FEATURES, W_enc=FEATURES)], FAMILIES)
    for name in ("mcc", "uniqueness", "precision", "recall", "f1"):
        np.testing.assert_allclose(found[name], 1, rtol=1e-5)
        assert (found[f"{name}_chance"] < 0.9).all()
    assert (found["recovered"] == 20).all() and (found["recovered_chance"] < 5).all()
    assert (found["absorbed_1"] == 0).all() and (found["split_1"] == 0).all() and (found["dead"] == 0).all()
    np.testing.assert_allclose([found["explained_variance"][0], found["norm_ratio"][0]], 1, atol=1e-3)
    np.testing.assert_allclose(found["l0"], found["true_l0"])


def test_children_that_write_their_parents_absorb_them():
    W_enc, W_dec = FEATURES.copy(), FEATURES.copy()
    for child in range(3, 6):  # of parent 0, one of three
        W_enc[0] -= FEATURES[child]
        W_dec[child] += FEATURES[0] / 2
    found = numbers([by_hand(W_dec, W_enc=W_enc)], FAMILIES)
    np.testing.assert_allclose(found["absorbed_1"], 1 / 3, rtol=1e-6)
    assert found["split_1"] == 0 and found["uniqueness"] == 1


def test_a_parent_is_split_where_several_latents_stand_for_it():
    W = np.concatenate([FEATURES, FEATURES[:1] + 0.5 * FEATURES[3:4], FEATURES[12:13]])
    found = numbers([by_hand(W)], FAMILIES)
    np.testing.assert_allclose(found["split_1"], 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(found["uniqueness"], 20 / 22, rtol=1e-6)  # 12 has two latents, and no children


def test_without_trees_there_is_no_absorption_and_a_scale_of_each_dimension_is_undone():
    source = sae.Superposition(d_in=8, n_features=8, n_active=1.0, normalize="standardize", n_held_out=256)
    sampler = source.load()
    scaled = sampler.features * np.asarray(sampler.normalization.scale)
    found = numbers([by_hand(scaled)], source)
    np.testing.assert_allclose(found["mcc"], 1, rtol=1e-5)
    assert np.isnan(found["absorbed_1"]).all() and np.isnan(found["split_1"]).all()


def test_an_activation_with_leaves_is_asked_member_by_member():
    made = [
        Sae(*(jnp.asarray(a, jnp.float32) for a in (FEATURES, np.zeros(20), FEATURES, np.zeros(20))), BatchTopK(k=k))
        for k in (1.0, 2.0)
    ]
    found = numbers(made, FAMILIES)
    assert found["l0"].shape == (2,) and np.isfinite(found["f1"]).all()


@pytest.fixture
def run():
    def made(saes, source):
        member = Experiment(name="by hand", data=source, d_sae=20, n_steps=1)
        table = pd.DataFrame({"member": range(len(saes)), "cohort": 0, "status": "finished", "d_sae": 20})
        return SimpleNamespace(
            definition={"members": [{"data_seed": member.data_seed}] * len(saes)}, members=table,
            sae=lambda i: saes[i], source=lambda _: source, data=lambda _: source.load(),
        )  # fmt: skip

    return made


def test_as_a_measure_it_fills_its_columns_and_refuses_data_without_a_truth(run):
    measure = Truth(n=1_024, levels=1)
    found = measure(run([by_hand(FEATURES)], FAMILIES))
    assert set(found) == set(measure.columns) and found["analysis/f1"].iloc[0] == pytest.approx(1)
    with pytest.raises(UserError, match="got data of Digits, allowed: synthetic data"):
        measure(run([by_hand(np.eye(64))], sae.Digits()))
    own = sae.Sampler(d_in=20, sample=FAMILIES.load().sample, mean=np.zeros(20), n_held_out=8)
    with pytest.raises(UserError, match="true features are not known"):
        truth.truth(members.stack([by_hand(FEATURES)]), own)


def test_in_a_run_the_columns_stand_in_the_members_table(tmp_path):
    base = Experiment(
        name="short", data=WORLD, d_sae=32, penalty=ElasticNet(l1=0.1), n_steps=20, batch_size=64, n_eval=256
    )
    sweep = sae.Sweep(name="short", members=[base], measures=[Truth(n=1_024, levels=2)])
    results = sae.run(sweep, out=tmp_path / "short")
    for name in ("mcc", "f1", "absorbed_2", "split_1_chance"):
        assert results.members[f"analysis/{name}"].notna().all()

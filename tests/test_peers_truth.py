"""The numbers of `Truth` against SAELens' `eval_sae_on_synthetic_data`, on one world and the same examples.

SAELens draws its examples from a generator that it is given. Here that generator hands out the batches that `Truth`
draws, so that both count the same examples; the world and the autoencoders go through files.
"""

import dataclasses
from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

import sae
from sae import Sae, SynthBench, SynthWorld, interop, train
from sae.analysis import members, truth
from sae.analysis.truth import EXAMPLES_AT_ONCE
from sae.core.model import on_examples
from sae.data.sampler import Sampler

peers.need("torch", "sae_lens")

import torch  # noqa: E402
from sae_lens import SAE  # noqa: E402
from sae_lens.synthetic.evals import SyntheticDataEvalResult, eval_sae_on_synthetic_data  # noqa: E402
from sae_lens.synthetic.synthetic_model import SyntheticModel  # noqa: E402

N, SEED, D_SAE = 4 * EXAMPLES_AT_ONCE, 3, 24
BENCH = SynthBench(d_in=16, n_features=64, n_roots=4, n_children=3, depth=2, p_min=0.02, n_held_out=256)
ACTIVATIONS = {
    "standard": sae.Relu(), "jumprelu": sae.JumpRelu(), "batchtopk": sae.BatchTopK(k=3.0), "topk": sae.TopK(k=3),
    "abstopk": sae.AbsTopK(k=3), "gated": sae.Gated(), "matching_pursuit": sae.MatchingPursuit(k=3),
}  # fmt: skip
NAMES = {  # ours: theirs
    "mcc": lambda one: one.mcc,
    "uniqueness": lambda one: one.uniqueness,
    "precision": lambda one: one.classification.precision,
    "recall": lambda one: one.classification.recall,
    "f1": lambda one: one.classification.f1_score,
    "l0": lambda one: one.sae_l0,
    "true_l0": lambda one: one.true_l0,
    "dead": lambda one: one.dead_latents,
    "explained_variance": lambda one: one.explained_variance,
    "norm_ratio": lambda one: one.shrinkage,
}


class Stored:
    """A generator of activations for SAELens: how much of each feature is in the examples that `Truth` draws."""

    def __init__(self, sampler: Sampler) -> None:
        labelled, key = sampler.labelled, jax.random.key(SEED)
        draw = jax.jit(lambda i: labelled(jax.random.fold_in(key, i), EXAMPLES_AT_ONCE)[1])
        self.batches = [np.array(draw(i)) for i in range(N // EXAMPLES_AT_ONCE)]
        self.given = 0

    def sample(self, n: int) -> torch.Tensor:
        """The next batch."""
        batch = self.batches[self.given % len(self.batches)]
        assert n == len(batch)
        self.given += 1
        return torch.from_numpy(batch)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(our sampler, their model, the activations of its examples) of one saved world."""
    folder = tmp_path_factory.mktemp("world")
    BENCH.world().save(folder)
    sampler = SynthWorld(path=str(folder), n_held_out=256).load()
    return sampler, SyntheticModel.load_from_disk(folder), Stored(sampler)


def theirs(folder, world) -> SyntheticDataEvalResult:
    """What SAELens says of an exported autoencoder."""
    _, model, stored = world
    one = SAE.load_from_disk(folder)
    return eval_sae_on_synthetic_data(one, model.feature_dict, stored, num_samples=N, batch_size=EXAMPLES_AT_ONCE)


def ours(one: Sae, sampler: Sampler) -> dict[str, float]:
    """What `Truth` says of it."""
    found = truth.truth(members.stack([one]), sampler, n=N, seed=SEED)
    return {name: found[name].item() for name in NAMES}


def same(ours: dict[str, float], theirs: SyntheticDataEvalResult, but: Collection[str] = ()) -> None:
    """All numbers are theirs, but for these."""
    for name, read in NAMES.items():
        if name in but:
            assert abs(ours[name] - read(theirs)) > 0.01, f"{name} is theirs, too"
            continue
        np.testing.assert_allclose(ours[name], read(theirs), **peers.NEAR, err_msg=name)
    assert 0 < ours["f1"] < 1 and ours["uniqueness"] < 1 and ours["true_l0"] > 1


def trained(activation, sampler: Sampler, n_steps=150, **choices) -> Sae:
    experiment = sae.Experiment(
        name="short", data=BENCH, d_sae=D_SAE, activation=activation, n_steps=n_steps, batch_size=256, n_eval=256,
        optimizer=sae.Adam(lr=3e-3), constraint=sae.UnitNorm(), **choices,
    )  # fmt: skip
    state = train.init(experiment, sampler.sample(jax.random.key(0), 256).T)
    rows = lambda i: sampler.sample(jax.random.fold_in(jax.random.key(7), i), 256).T
    step = lambda state, i: (train.step(experiment, state, i, rows(i))[0], None)
    state, _ = jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(n_steps)))(state)
    assert not bool(state.diverged)
    return train.trained(experiment, state)


def random(activation) -> Sae:
    """Random weights; latent 1 is the negative of latent 0, latents 2 and 3 are dead and one of them has no decoder."""
    n = lambda seed, *shape: peers.numbers(seed, *shape)
    W_dec = n(2, D_SAE, 16)
    W_dec /= np.linalg.norm(W_dec, axis=1, keepdims=True)
    W_dec[1] = -W_dec[0]
    b_enc = n(1, D_SAE)
    W_enc = n(0, D_SAE, 16)
    if isinstance(activation, sae.MatchingPursuit):
        W_enc = W_dec
    else:
        W_enc[2:4], b_enc[2:4], W_dec[3] = 0, 0, 0
    own = {name: 0.1 + jnp.abs(n(9, *value.shape)) for name, value in activation.init(D_SAE).items()}
    return Sae(W_enc, b_enc, W_dec, n(3, 16), activation, own=own)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_truth_of_a_random_autoencoder_is_what_saelens_measures(name, world, tmp_path):
    one = random(ACTIVATIONS[name])
    same(ours(one, world[0]), theirs(interop.save(one, tmp_path / "random"), world))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_truth_of_a_trained_autoencoder_is_what_saelens_measures(name, world, tmp_path):
    penalty = {"standard": sae.ElasticNet(l1=0.3), "gated": sae.ElasticNet(l1=0.3), "jumprelu": sae.L0(weight=0.3)}
    one = trained(ACTIVATIONS[name], world[0], **({"penalty": penalty[name]} if name in penalty else {}))
    same(ours(one, world[0]), theirs(interop.save(one, tmp_path / "trained"), world))


@pytest.mark.parametrize(
    ("normalize", "but"),
    [
        ("mean-norm-sqrt-d", ()),
        ("centre", ("norm_ratio",)),  # ours is of the examples, after the mean is gone; theirs of raw rows
    ],
)
def test_truth_is_measured_on_normalized_examples_and_saelens_on_raw_rows(normalize, but, world, tmp_path):
    stored = world[2]
    source = SynthWorld(path=str(tmp_path / "world"), n_held_out=256, normalize=normalize)
    shifted = dataclasses.replace(BENCH.world(), bias=8 * BENCH.world().features[5])  # a mean worth taking away
    shifted.save(tmp_path / "world")
    one = trained(sae.TopK(k=3), sampler := source.load())
    model = SyntheticModel.load_from_disk(tmp_path / "world")
    one.normalization = sampler.normalization
    folder = interop.save(one, tmp_path / "trained")
    same(ours(on_examples(one), sampler), theirs(folder, (sampler, model, stored)), but)

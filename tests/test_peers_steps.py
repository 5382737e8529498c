"""Training steps from the same weights on the same batches, against SAELens', dictionary_learning's and sparsify's own.

`make test-peers` installs them in an environment of its own and runs this file. Elsewhere it is skipped.
"""

import jax.numpy as jnp
import numpy as np
import peers
import pytest
from peers import D_IN, D_SAE, NEAR, make, numbers

import sae
from sae import train
from sae.core import model
from sae.core.model import Sae

peers.need("torch", "sae_lens", "dictionary_learning")

import torch  # noqa: E402

BATCHES = [3 * numbers(20 + i, 64, D_IN) for i in range(3)]
RATE = 1e-2
COMMON = {"steps": 10, "activation_dim": D_IN, "dict_size": D_SAE, "layer": 0, "lm_name": "none", "device": "cpu"}
EARLY = {"warmup_steps": 0, "lr": RATE}
NOT_ZERO = 1  # dictionary_learning's TopK trainers put the batch's median into b_dec at step 0


def start(activation, subtracts=True, unit=True) -> Sae:
    one = make(activation, subtracts, normalized=False, unit=unit)
    return model.replace(one, own={name: 0.3 + 0.1 * value for name, value in model.own(one).items()})


def trained(one: Sae, batches=BATCHES, optimizer=None, **choices) -> Sae:
    """What these choices make of an autoencoder."""
    experiment = sae.Experiment(
        name="peer", data=sae.Digits(), d_sae=D_SAE, n_steps=10, batch_size=64, activation=one.activation,
        apply_b_dec_to_input=one.apply_b_dec_to_input, optimizer=optimizer or sae.Adam(lr=RATE), dead_after=10**6,
        **choices,
    )  # fmt: skip
    state = train.init(experiment, jnp.asarray(batches[0].T))
    state = state.replace(sae=model.using(one, None))
    for i, batch in enumerate(batches):
        state, _ = train.step(experiment, state, jnp.int32(i), jnp.asarray(batch.T))
    assert not bool(state.diverged)
    return model.using(state.sae, one.activation)


def same(ours: Sae, theirs: dict[str, torch.Tensor], before: Sae) -> None:
    """Every parameter, to 1e-5; and training has moved it."""
    names = model.parameters(ours)
    assert set(theirs) == set(names)
    for name, value in names.items():
        np.testing.assert_allclose(value, theirs[name].detach().numpy(), **NEAR, err_msg=name)
        assert np.abs(value - model.parameters(before)[name]).max() > 1e-4, f"{name} is not trained"


def of_saelens(peer) -> dict[str, torch.Tensor]:
    """The parameters of a SAELens autoencoder by our names."""
    names = {"threshold": "own.threshold", "topk_threshold": "own.threshold", "b_gate": "b_enc"}
    names |= {"b_mag": "own.b_mag", "r_mag": "own.r_mag"}
    if hasattr(peer, "log_threshold"):
        names.pop("threshold")
    found = {names.get(name, name): value for name, value in peer.state_dict().items()}
    if "log_threshold" in found:
        found["own.threshold"] = torch.exp(found.pop("log_threshold"))
    return {name: value.T if name == "W_enc" else value for name, value in found.items()}


L1 = 0.3
WEIGHTED = sae.ElasticNet(l1=L1, weighted=True)
OF_SAELENS = {
    "standard": (sae.Relu(), {"penalty": WEIGHTED}, {"l1_coefficient": L1}),
    "gated": (sae.Gated(detached=False), {"penalty": WEIGHTED}, {"l1_coefficient": L1}),
    "topk": (sae.TopK(k=3), {}, {"k": 3, "rescale_acts_by_decoder_norm": False}),
    "abstopk": (sae.AbsTopK(k=3), {}, {"k": 3, "rescale_acts_by_decoder_norm": False}),
    "batchtopk": (sae.BatchTopK(k=3.0), {}, {"k": 3.0}),
    "matryoshka_batchtopk": (
        sae.BatchTopK(k=3.0), {"reconstruction": sae.Matryoshka(widths=(6, 12))},
        {"k": 3.0, "matryoshka_widths": [6, 12, D_SAE]},
    ),
    "jumprelu step": (sae.JumpRelu(), {"penalty": sae.L0(weight=L1)}, {"l0_coefficient": L1}),
    "jumprelu quadratic": (
        sae.JumpRelu(), {"penalty": sae.QuadraticL0(weight=L1, target=3.0, form="saelens")},
        {"l0_coefficient": L1, "target_l0": 3.0},
    ),
    "jumprelu tanh": (sae.JumpRelu(), {"penalty": sae.TanhPenalty(weight=L1)}, {"l0_coefficient": L1}),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_SAELENS)
def test_training_steps_are_those_of_saelens(name):
    from sae_lens.config import SAETrainerConfig
    from sae_lens.registry import get_sae_training_class
    from sae_lens.training.sae_trainer import SAETrainer

    activation, choices, settings = OF_SAELENS[name]
    architecture, _, mode = name.partition(" ")
    if mode:
        settings = settings | {"jumprelu_sparsity_loss_mode": mode}
    cls, configuration = get_sae_training_class(architecture)
    peer = cls(configuration(d_in=D_IN, d_sae=D_SAE, **settings))
    one = start(activation, unit=False)
    weights = {name: torch.from_numpy(np.array(value)) for name, value in model.parameters(one).items()}
    with torch.no_grad():
        for ours, theirs in of_saelens(peer).items():
            target = {"own.threshold": getattr(peer, "topk_threshold", None)}.get(ours)
            (theirs if target is None else target).copy_(weights[ours])
        if hasattr(peer, "log_threshold"):
            peer.log_threshold.copy_(torch.log(weights["own.threshold"]))
    trainer = SAETrainer(
        SAETrainerConfig(total_training_samples=640, train_batch_size_samples=64, lr=RATE, lr_end=RATE), peer, iter(())
    )
    for batch in BATCHES:
        trainer.step(torch.from_numpy(batch))
    optimizer = sae.Adam(lr=RATE, clip=1.0)
    same(trained(one, optimizer=optimizer, constraint=sae.Free(), **choices), of_saelens(peer), one)


def of_dictionary_learning(ae, activation) -> dict[str, torch.Tensor]:
    """The parameters of a dictionary_learning autoencoder by our names."""
    names = {
        "encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec", "bias": "b_dec",
        "decoder_bias": "b_dec", "gate_bias": "b_enc", "mag_bias": "own.b_mag", "r_mag": "own.r_mag",
        "threshold": "own.threshold",
    }  # fmt: skip
    found = {name: value for name, value in ae.state_dict().items() if name not in ("k", "group_sizes")}
    if not model.own(make(activation)):
        found.pop("threshold", None)  # TopK stores one that it does not use
    linear = "encoder.weight" in found
    turn = lambda name, value: value.T if names.get(name, name) == ("W_dec" if linear else "W_enc") else value
    return {names.get(name, name): turn(name, value) for name, value in found.items()}


def update(trainer, one: Sae, batches=BATCHES) -> dict[str, torch.Tensor]:
    """The parameters after a trainer's steps from the weights of an autoencoder."""
    weights = {name: torch.from_numpy(np.array(value)) for name, value in model.parameters(one).items()}
    with torch.no_grad():
        for name, value in of_dictionary_learning(trainer.ae, one.activation).items():
            value.copy_(weights[name])
    for i, batch in enumerate(batches):
        trainer.update(NOT_ZERO + i, torch.from_numpy(batch))
    return of_dictionary_learning(trainer.ae, one.activation)


CLIPPED = {"optimizer": sae.Adam(lr=RATE, clip=1.0)}


def test_training_steps_are_those_of_dictionary_learning_standard():
    from dictionary_learning.trainers.standard import StandardTrainer

    trainer = StandardTrainer(**COMMON, **EARLY, l1_penalty=L1, sparsity_warmup_steps=None)
    one = start(sae.Relu())
    same(trained(one, penalty=sae.ElasticNet(l1=L1), constraint=sae.UnitNorm()), update(trainer, one), one)


def test_training_steps_are_those_of_dictionary_learning_april_update():
    from dictionary_learning.trainers.standard import StandardTrainerAprilUpdate

    trainer = StandardTrainerAprilUpdate(**COMMON, **EARLY, l1_penalty=L1, sparsity_warmup_steps=None)
    one = start(sae.Relu(), unit=False)
    same(trained(one, penalty=WEIGHTED, constraint=sae.Free(), **CLIPPED), update(trainer, one), one)


def test_training_steps_are_those_of_dictionary_learning_gated():
    from dictionary_learning.trainers.gdm import GatedSAETrainer

    trainer = GatedSAETrainer(**COMMON, **EARLY, l1_penalty=L1, sparsity_warmup_steps=None)
    one = start(sae.Gated())
    ours = trained(one, penalty=sae.ElasticNet(l1=L1), constraint=sae.UnitNorm(), optimizer=sae.Adam(lr=RATE, b1=0.0))
    same(ours, update(trainer, one), one)


def test_training_steps_are_those_of_dictionary_learning_topk():
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer, one = TopKTrainer(**COMMON, **EARLY, k=3), start(sae.TopK(k=3))
    same(trained(one, constraint=sae.UnitNorm(), **CLIPPED), update(trainer, one), one)


@pytest.mark.parametrize("nested", [False, True])
def test_training_steps_are_those_of_dictionary_learning_batch_topk_and_matryoshka(nested):
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer

    how = {**COMMON, **EARLY, "k": 3, "threshold_beta": 0.99, "threshold_start_step": 0}
    if nested:
        groups = {"group_fractions": [0.25, 0.25, 0.5], "group_weights": [1.0] * 3}
        trainer, reconstruction = MatryoshkaBatchTopKTrainer(**how, **groups), sae.Matryoshka(widths=(6, 12), mean=True)
    else:
        trainer, reconstruction = BatchTopKTrainer(**how), sae.SquaredError()
    one = start(sae.BatchTopK(k=3.0))
    ours = trained(one, constraint=sae.UnitNorm(), reconstruction=reconstruction, **CLIPPED)
    same(ours, update(trainer, one), one)


def test_a_training_step_is_that_of_dictionary_learning_jumprelu_where_no_pre_activation_lies_just_below_a_threshold():
    """Its L0 takes the ramp's derivative at the latent, which is 0 below the threshold, where ours takes z."""
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer

    width = 0.2
    one = start(sae.JumpRelu(bandwidth=width), subtracts=False)
    threshold = np.asarray(one.own["threshold"][...])
    assert threshold.min() > width / 2, "a latent of 0 is off the ramp"
    z = np.concatenate(BATCHES) @ np.asarray(one.W_enc[...]).T + np.asarray(one.b_enc[...])
    below = np.any((z > threshold - width / 2 - 1e-3) & (z <= threshold), axis=1)
    batch = np.concatenate(BATCHES)[~below][:64]
    near = np.abs(z[~below][:64] - threshold) < width / 2
    assert len(batch) >= 32 and near.any(0).sum() > 5, "some thresholds have a gradient"
    trainer = JumpReluTrainer(**COMMON, **EARLY, bandwidth=width, sparsity_penalty=L1, target_l0=3.0,
                              sparsity_warmup_steps=None)  # fmt: skip
    penalty = sae.QuadraticL0(weight=L1, target=3.0, form="dictionary_learning")
    optimizer = sae.Adam(lr=RATE, b1=0.0, clip=1.0)
    theirs = update(trainer, one, [batch])
    same(trained(one, [batch], constraint=sae.UnitNorm(), penalty=penalty, optimizer=optimizer), theirs, one)

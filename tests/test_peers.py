"""The same latents, reconstructions and steps as SAELens, dictionary_learning and sparsify, with them installed.

`make test-peers` installs them in an environment of its own and runs this file. Elsewhere it is skipped.
"""

import importlib.util
import json
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import sae
from sae import interop, train
from sae.core import model
from sae.core.model import Sae
from sae.core.normalization import Normalization

MISSING = [name for name in ("torch", "sae_lens", "dictionary_learning") if importlib.util.find_spec(name) is None]
if MISSING:
    pytest.skip(f"{', '.join(MISSING)}: not installed; run make test-peers", allow_module_level=True)

os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its decoder else needs a GPU wherever triton is installed

import torch  # noqa: E402
from dictionary_learning.utils import load_dictionary  # noqa: E402
from sae_lens import SAE  # noqa: E402

D_SAE, D_IN, D_OUT = 24, 8, 6
NEAR = {"atol": 1e-5, "rtol": 1e-5}


def numbers(seed: int, *shape: int) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) * 0.5).astype(np.float32)


X = 3 * numbers(7, 200, D_IN)
ROWS = torch.from_numpy(X)


def make(activation, subtracts=True, d_out=D_IN, skip=False, normalized=True, unit=False) -> Sae:
    """An autoencoder with random numbers in every place, on data with a shift and a scale for each dimension."""
    W_dec = numbers(2, D_SAE, d_out)
    W_dec = W_dec / np.linalg.norm(W_dec, axis=1, keepdims=True) if unit else W_dec
    own = {name: jnp.abs(numbers(9, *value.shape)) for name, value in activation.init(D_SAE).items()}
    width = D_IN if d_out == D_IN and not skip else D_IN + d_out
    normalization = Normalization(numbers(5, width), np.abs(numbers(6, width)) + 0.5) if normalized else None
    return Sae(
        numbers(0, D_SAE, D_IN), numbers(1, D_SAE), W_dec, numbers(3, d_out), activation, subtracts, own=own,
        normalization=normalization, W_skip=numbers(4, d_out, D_IN) if skip else None,
    )  # fmt: skip


def agree(one: Sae, latents: torch.Tensor, x_hat: torch.Tensor) -> None:
    np.testing.assert_allclose(latents.detach().numpy(), one.encode(X), **NEAR)
    np.testing.assert_allclose(x_hat.detach().numpy(), one(X), **NEAR)
    assert 0 < (latents != 0).float().mean() < 1


SAELENS = {
    "standard": sae.Relu(), "jumprelu": sae.JumpRelu(), "batchtopk": sae.BatchTopK(k=3.0), "topk": sae.TopK(k=3),
    "abstopk": sae.AbsTopK(k=3), "gated": sae.Gated(), "soft": sae.SoftThreshold(signed=False),
}  # fmt: skip


@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("name", SAELENS)
def test_saelens_opens_what_we_write_and_we_open_what_it_writes(name, subtracts, tmp_path):
    one = make(SAELENS[name], subtracts)
    theirs = SAE.load_from_disk(interop.save(one, tmp_path / "ours"))
    agree(one, theirs.encode(ROWS), theirs(ROWS))
    theirs.save_model(tmp_path / "theirs")
    agree(interop.load(tmp_path / "theirs"), theirs.encode(ROWS), theirs(ROWS))


@pytest.mark.parametrize("weighs", [True, False])
def test_a_checkpoint_of_saelens_batch_topk_is_what_saelens_saves_of_it(weighs, tmp_path):
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    torch.manual_seed(0)
    settings = BatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=3, rescale_acts_by_decoder_norm=weighs)
    peer = BatchTopKTrainingSAE(settings)
    with torch.no_grad():
        peer.W_dec.copy_(torch.from_numpy(numbers(2, D_SAE, D_IN)))
        peer.topk_threshold.fill_(0.3)
    peer.save_model(tmp_path / "checkpoint")
    peer.save_inference_model(tmp_path / "final")
    final = SAE.load_from_disk(tmp_path / "final")
    for name in ("checkpoint", "final"):
        agree(interop.load(tmp_path / name), final.encode(ROWS), final(ROWS))


@pytest.mark.parametrize("activation", [sae.Relu(), sae.JumpRelu(), sae.BatchTopK(k=3.0)])
@pytest.mark.parametrize("skip", [True, False])
def test_saelens_transcoders(activation, skip, tmp_path):
    one = make(activation, subtracts=False, d_out=D_OUT, skip=skip)
    theirs = SAE.load_from_disk(interop.save(one, tmp_path / "ours"))
    agree(one, theirs.encode(ROWS), theirs(ROWS))
    theirs.save_model(tmp_path / "theirs")
    agree(interop.load(tmp_path / "theirs"), theirs.encode(ROWS), theirs(ROWS))


def test_saelens_matching_pursuit(tmp_path):
    one = make(sae.MatchingPursuit(k=3), normalized=False, unit=True)
    theirs = SAE.load_from_disk(interop.save(one, tmp_path / "ours"))
    agree(one, theirs.encode(ROWS), theirs(ROWS))
    theirs.save_model(tmp_path / "theirs")
    agree(interop.load(tmp_path / "theirs"), theirs.encode(ROWS), theirs(ROWS))


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("name", ["standard", "jumprelu", "batchtopk", "topk", "gated"])
def test_dictionary_learning_opens_what_we_write_and_we_open_what_it_writes(name, unit, tmp_path):
    one = make(SAELENS[name], unit=unit, normalized=not unit)
    folder = interop.save(one, tmp_path / "ours", "dictionary_learning")
    theirs, _ = load_dictionary(str(folder), device="cpu")
    agree(one, theirs.encode(ROWS), theirs(ROWS))
    torch.save(theirs.state_dict(), folder / "ae.pt")  # as its trainer saves
    agree(interop.load(folder), theirs.encode(ROWS), theirs(ROWS))


@pytest.mark.parametrize("name", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_batch_topk_of_dictionary_learning(name, tmp_path):
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE

    torch.manual_seed(0)
    widths = {"group_sizes": [8, 16]} if "Matryoshka" in name else {}
    theirs = {"BatchTopKSAE": BatchTopKSAE, "MatryoshkaBatchTopKSAE": MatryoshkaBatchTopKSAE}[name](
        D_IN, D_SAE, k=3, **widths
    )
    theirs.threshold.fill_(0.3)
    torch.save(theirs.state_dict(), tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": name, "k": 3}}))
    agree(interop.load(tmp_path), theirs.encode(ROWS), theirs(ROWS))


@pytest.mark.skipif(importlib.util.find_spec("sparsify") is None, reason="sparsify (eai-sparsify) is not installed")
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("activation", [sae.TopK(k=3), sae.GroupMax(k=4)])
def test_sparsify_opens_what_we_write_and_we_open_what_it_writes(activation, skip, tmp_path):
    from sparsify import SparseCoder

    one = make(activation, subtracts=not skip, skip=skip)
    theirs = SparseCoder.load_from_disk(interop.save(one, tmp_path / "ours", "sparsify"))

    def computed() -> tuple[torch.Tensor, torch.Tensor]:
        found = theirs.encode(ROWS)
        latents = torch.zeros(len(ROWS), D_SAE).scatter_(1, found.top_indices, found.top_acts)
        return latents, theirs(ROWS).sae_out

    agree(one, *computed())
    theirs.save_to_disk(tmp_path / "theirs")
    agree(interop.load(tmp_path / "theirs"), *computed())


# -- training: three steps on the same batches from the same weights -------------------------------------------------

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


# -- the hub ---------------------------------------------------------------------------------------------------------

FROM_THE_HUB = """
import sys
import torch
from sae_lens import SAE

sae = SAE.from_pretrained(sys.argv[1], sys.argv[2])
rows = torch.load(sys.argv[3])
torch.save({"latents": sae.encode(rows).detach(), "x_hat": sae(rows).detach()}, sys.argv[4])
"""


def test_saelens_loads_what_we_push_from_the_hub(tmp_path):
    """In a process of its own: huggingface_hub reads HF_ENDPOINT when it is imported."""
    from hub_server import TOKEN, Hub

    one = make(sae.BatchTopK(k=3.0))
    with Hub() as server:
        environment = os.environ | {"HF_ENDPOINT": server.address, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1",
                                    "HF_HOME": str(tmp_path / "home")}  # fmt: skip
        interop.save(one, tmp_path / "all" / "first")
        pushed = f"from sae.interop import hub; hub.push({str(tmp_path / 'all')!r}, 'me/peers', ['first'])"
        torch.save(ROWS, tmp_path / "rows.pt")
        theirs = [FROM_THE_HUB, "me/peers", "first", str(tmp_path / "rows.pt"), str(tmp_path / "out.pt")]
        for code, *arguments in ([pushed], theirs):
            subprocess.run([sys.executable, "-c", code, *arguments], env=environment, check=True)
    found = torch.load(tmp_path / "out.pt")
    agree(one, found["latents"], found["x_hat"])

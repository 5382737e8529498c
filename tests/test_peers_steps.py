"""Training steps from the same weights on the same batches, against SAELens', dictionary_learning's and sparsify's own.

`make test-peers` installs them in an environment of its own and runs this file. Elsewhere it is skipped.
"""

import importlib.util

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
from sae_lens.config import SAETrainerConfig  # noqa: E402
from sae_lens.registry import get_sae_training_class  # noqa: E402
from sae_lens.training.sae_trainer import SAETrainer  # noqa: E402

BATCHES = [3 * numbers(20 + i, 64, D_IN) for i in range(3)]
RATE = 1e-2
COMMON = {"steps": 10, "activation_dim": D_IN, "dict_size": D_SAE, "layer": 0, "lm_name": "none", "device": "cpu"}
EARLY = {"warmup_steps": 0, "lr": RATE}
CLIPPED = {"optimizer": sae.Adam(lr=RATE, clip=1.0)}
NOT_ZERO = 1  # dictionary_learning's TopK trainers put the batch's median into b_dec at step 0


def start(activation, subtracts=True, unit=True) -> Sae:
    one = make(activation, subtracts, normalized=False, unit=unit)
    return model.replace(one, own={name: 0.3 + 0.1 * value for name, value in model.own(one).items()})


def trained(one: Sae, batches=BATCHES, optimizer=None, parts=None, **choices) -> Sae:
    """What these choices make of an autoencoder; `parts` are the widths of inputs and targets in a row."""
    experiment = sae.Experiment(
        name="peer", data=sae.Digits(), d_sae=D_SAE, n_steps=10, batch_size=64, activation=one.activation,
        apply_b_dec_to_input=one.apply_b_dec_to_input, optimizer=optimizer or sae.Adam(lr=RATE),
        **{"dead_after": 10**6, **choices},
    )  # fmt: skip
    state = train.init(experiment, jnp.asarray(batches[0].T), parts)
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


def in_saelens(one: Sae, architecture: str, **settings):
    """SAELens' training class with the weights of an autoencoder."""
    cls, configuration = get_sae_training_class(architecture)
    peer = cls(configuration(d_in=D_IN, d_sae=D_SAE, **settings))
    weights = {name: torch.from_numpy(np.array(value)) for name, value in model.parameters(one).items()}
    with torch.no_grad():
        for ours, theirs in of_saelens(peer).items():
            target = {"own.threshold": getattr(peer, "topk_threshold", None)}.get(ours)
            (theirs if target is None else target).copy_(weights[ours])
        if hasattr(peer, "log_threshold"):
            peer.log_threshold.copy_(torch.log(weights["own.threshold"]))
    return peer


def saelens_steps(peer, **settings) -> None:
    """Let SAELens' trainer take a step on every batch."""
    settings = {"total_training_samples": 640, "train_batch_size_samples": 64, "lr": RATE, "lr_end": RATE, **settings}
    trainer = SAETrainer(SAETrainerConfig(**settings), peer, iter(()))
    for batch in BATCHES:
        trainer.step(torch.from_numpy(batch))


@pytest.mark.parametrize("name", OF_SAELENS)
def test_training_steps_are_those_of_saelens(name):
    activation, choices, settings = OF_SAELENS[name]
    architecture, _, mode = name.partition(" ")
    if mode:
        settings = settings | {"jumprelu_sparsity_loss_mode": mode}
    one = start(activation, unit=False)
    peer = in_saelens(one, architecture, **settings)
    saelens_steps(peer)
    same(trained(one, constraint=sae.Free(), **CLIPPED, **choices), of_saelens(peer), one)


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


def test_training_steps_are_those_of_dictionary_learning_p_anneal_while_p_stands():
    """Where p falls, its trainer corrects the coefficient by batches before; see `Lp`, which needs no state."""
    from dictionary_learning.trainers.p_anneal import PAnnealTrainer

    for function, root in (("Lp^p", False), ("Lp", True)):
        trainer = PAnnealTrainer(**COMMON, **EARLY, p_start=0.7, p_end=0.7, sparsity_function=function,
                                 initial_sparsity_penalty=0.03, sparsity_warmup_steps=None, anneal_start=5)  # fmt: skip
        one = start(sae.Relu())
        penalty = sae.Lp(weight=0.03, p=0.7, p_start=0.7, floor=0.0, root=root)
        same(trained(one, penalty=penalty, constraint=sae.UnitNorm()), update(trainer, one), one)


# -- dead latents take part ------------------------------------------------------------------------------------------

DEAD = 6  # more than the d_in / 2 that AuxK takes
FEW = 4  # no more than these
AFTER_ONE = {"dead_after": 64}  # examples: latents that were silent in the first batch are dead from the second on


def with_dead(activation, unit: bool, dead: int = DEAD) -> Sae:
    """The first latents have small positive values, so that they are never among the largest and AuxK moves them.

    All others are active in every batch. (One that falls silent for a batch and comes back is dead for that batch here
    and in SAELens; dictionary_learning counts the batch before it asks.)
    """
    one = start(activation, unit=unit)
    W_enc, b_enc = np.array(one.W_enc[...]), np.array(one.b_enc[...])
    W_enc[:dead] *= 0.01
    b_enc[:dead], b_enc[dead:] = 0.02 + 0.01 * np.arange(dead), np.abs(b_enc[dead:])
    b_enc[10] += 2
    return model.replace(one, own=None, W_enc=jnp.asarray(W_enc), b_enc=jnp.asarray(b_enc))


def same_with_dead(ours: Sae, theirs: dict[str, torch.Tensor], before: Sae, without: Sae, dead: int = DEAD) -> None:
    """As `same`, and AuxK alone has moved the latents that are dead."""
    same(ours, theirs, before)
    moved = lambda one, name: np.abs(model.parameters(one)[name] - model.parameters(before)[name])[:dead].max()
    for name in ("W_enc", "W_dec"):
        assert moved(ours, name) > 1e-3 > 1e-6 > moved(without, name), f"{name} of dead latents"


@pytest.mark.parametrize(("name", "dead"), [("topk", DEAD), ("batchtopk", FEW)])
def test_training_steps_with_dead_latents_are_those_of_saelens(name, dead):
    """Of more dead latents than d_in / 2, SAELens' BatchTopK takes those of the largest `z ‖W_dec‖`, ours of z."""
    activation = sae.TopK(k=5) if name == "topk" else sae.BatchTopK(k=5.0)
    one = with_dead(activation, unit=False, dead=dead)
    peer = in_saelens(one, name, k=5, rescale_acts_by_decoder_norm=name == "batchtopk")
    saelens_steps(peer, dead_feature_window=0)  # in steps, and it asks for more than that
    step = lambda auxiliary: trained(one, constraint=sae.Free(), auxiliary=auxiliary, **CLIPPED, **AFTER_ONE)
    ours, without = step(sae.AuxK(weight=1.0, form="saelens")), step(sae.NoAuxiliary())
    same_with_dead(ours, of_saelens(peer), one, without, dead)


@pytest.mark.parametrize("batched", [False, True])
def test_training_steps_with_dead_latents_are_those_of_dictionary_learning(batched):
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    how = {**COMMON, **EARLY, "k": 5, "threshold_beta": 0.99, "threshold_start_step": 0}
    trainer = BatchTopKTrainer(**how) if batched else TopKTrainer(**how)
    trainer.dead_feature_threshold = 128  # it counts a batch before it asks, this project after
    one = with_dead(sae.BatchTopK(k=5.0) if batched else sae.TopK(k=5), unit=True)
    step = lambda auxiliary: trained(one, constraint=sae.UnitNorm(), auxiliary=auxiliary, **CLIPPED, **AFTER_ONE)
    ours, without = step(sae.AuxK(weight=1 / 32)), step(sae.NoAuxiliary())
    same_with_dead(ours, update(trainer, one), one, without)


# -- matching pursuit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norms", [(1.0, 1.0), (0.5, 1.2)])
def test_training_steps_of_matching_pursuit_are_those_of_saelens(norms):
    one = start(sae.MatchingPursuit(k=3))
    one = model.replace(one, W_dec=one.W_dec[...] * np.linspace(*norms, D_SAE, dtype=np.float32)[:, None])
    settings = {"max_iterations": 3, "residual_threshold": 0.0, "decoder_init_norm": 1.0}
    peer = in_saelens(one, "matching_pursuit", **settings)
    saelens_steps(peer)
    ours = trained(one, constraint=sae.Free(), **CLIPPED)
    for name, theirs in of_saelens(peer).items():
        value, before = (model.parameters(which)[name] for which in (ours, one))
        np.testing.assert_allclose(value, theirs.detach().numpy(), **NEAR, err_msg=name)
        assert np.abs(value - before).max() > 1e-4, f"{name} is not trained"


# -- sparsify --------------------------------------------------------------------------------------------------------

needs_sparsify = pytest.mark.skipif(
    importlib.util.find_spec("sparsify") is None, reason="sparsify (eai-sparsify) is not installed"
)


class Rows(torch.nn.Module):
    """A language model for sparsify's trainer: token i becomes row i, and its one layer makes the targets of it."""

    device, dummy_inputs = torch.device("cpu"), {"input_ids": torch.zeros(1, 1, dtype=torch.long)}

    def __init__(self, rows: torch.Tensor, layer: torch.nn.Module) -> None:
        super().__init__()
        self.rows, self.layer = rows, layer
        self.base_model = self.__dict__["base_model"] = torch.nn.Module()
        self.base_model.layer = layer

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The targets, [sequence, token, d_in]."""
        return self.layer(self.rows[input_ids])


def sparsify_steps(one: Sae, layer: torch.nn.Module, folder, **settings) -> dict[str, torch.Tensor]:
    """The parameters, by our names, after sparsify's trainer has taken a step on every batch."""
    from sparsify import SparseCoderConfig, Trainer
    from sparsify.config import TrainConfig

    config = TrainConfig(
        SparseCoderConfig(num_latents=D_SAE, **settings), batch_size=1, optimizer="adam", lr=RATE, lr_warmup_steps=0,
        hookpoints=["layer"], log_to_wandb=False, save_dir=str(folder), run_name="peer",
        finetune="these weights",  # or it sets b_dec to the mean
    )  # fmt: skip
    tokens = torch.arange(64 * len(BATCHES)).reshape(len(BATCHES), 64)
    model_of_rows = Rows(torch.from_numpy(np.concatenate(BATCHES)), layer)
    trainer = Trainer(config, [{"input_ids": row} for row in tokens], model_of_rows)
    trainer.lr_schedulers = []  # its rate falls to 0 by the last batch
    (coder,) = trainer.saes.values()
    names = {"encoder.weight": "W_enc", "encoder.bias": "b_enc"}
    with torch.no_grad():
        for name, value in coder.named_parameters():
            value.copy_(torch.from_numpy(np.array(model.parameters(one)[names.get(name, name)])))
    trainer.fit()
    if settings.get("normalize_decoder", True) and not settings.get("transcode"):
        coder.set_decoder_norm_to_unit_norm()  # it does so before a step, this project after
    return {names.get(name, name): value for name, value in coder.named_parameters()}


@needs_sparsify
@pytest.mark.parametrize("activation", [sae.TopK(k=3), sae.GroupMax(k=4)])
def test_training_steps_are_those_of_sparsify(activation, tmp_path):
    """Where the latents that are kept are above 0: its backward pass else takes the ReLU for the identity."""
    one = start(activation)
    one = model.replace(one, b_enc=one.b_enc[...] + 2.5)
    kind = "groupmax" if isinstance(activation, sae.GroupMax) else "topk"
    theirs = sparsify_steps(one, torch.nn.Identity(), tmp_path, k=activation.k, activation=kind)
    same(trained(one, reconstruction=sae.Fvu(), constraint=sae.UnitNorm()), theirs, one)


@needs_sparsify
@pytest.mark.parametrize("skip", [False, True])
def test_training_steps_of_transcoders_are_those_of_sparsify(skip, tmp_path):
    one = make(sae.TopK(k=3), subtracts=False, skip=skip, normalized=False)
    layer = torch.nn.Sequential(torch.nn.Tanh(), torch.nn.Linear(D_IN, D_IN))
    layer[1].weight.data.copy_(torch.from_numpy(numbers(11, D_IN, D_IN)))
    theirs = sparsify_steps(one, layer, tmp_path, k=3, transcode=True, skip_connection=skip)
    rows = [np.concatenate([batch, layer(torch.from_numpy(batch)).detach().numpy()], axis=1) for batch in BATCHES]
    task = sae.Transcoder(skip=skip)
    ours = trained(one, rows, parts=(D_IN, D_IN), task=task, reconstruction=sae.Fvu(), constraint=sae.Free())
    same(ours, theirs, one)


@needs_sparsify
def test_the_auxk_and_multi_topk_of_sparsify_do_not_train_its_encoder():
    """So no step with them has a counterpart: its encoder's backward pass knows the chosen latents alone."""
    from sparsify import SparseCoder, SparseCoderConfig

    torch.manual_seed(0)
    coder = SparseCoder(D_IN, SparseCoderConfig(num_latents=D_SAE, k=3, multi_topk=True))
    out = coder(torch.from_numpy(BATCHES[0]), dead_mask=torch.arange(D_SAE) < DEAD)
    for loss in (out.auxk_loss, out.multi_topk_fvu):
        W_enc, W_dec = torch.autograd.grad(loss, [coder.encoder.weight, coder.W_dec], retain_graph=True)
        assert loss > 0 and W_dec.abs().max() > 0 and not W_enc.any()

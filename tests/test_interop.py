"""Formats of other libraries without these libraries: what is written is computed anew by their formulas in numpy.

tests/test_peers.py opens the same files with the libraries themselves.
"""

import dataclasses
import importlib.util
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from peers import D_IN, D_OUT, D_SAE, X, make, numbers

import sae
from sae import interop
from sae.cli import main as cli
from sae.core.normalization import Normalization
from sae.interop.plain import plain_of, sae_of

needs_torch = pytest.mark.skipif(
    not importlib.util.find_spec("torch"), reason="torch is not installed: make test-peers"
)


SAELENS = {
    "standard": sae.Relu(), "jumprelu": sae.JumpRelu(), "batchtopk": sae.BatchTopK(k=3.0), "topk": sae.TopK(k=3),
    "multi-topk": sae.MultiTopK(k=3), "abstopk": sae.AbsTopK(k=3), "gated": sae.Gated(),
    "soft": sae.SoftThreshold(signed=False), "lista": sae.SoftThreshold(signed=False, trained=True),
}  # fmt: skip
SPARSIFY = {"topk": sae.TopK(k=3), "groupmax": sae.GroupMax(k=4)}


def agree(one, latents, x_hat, x=X):
    np.testing.assert_allclose(latents, one.encode(x), atol=1e-5)
    np.testing.assert_allclose(x_hat, one(x), atol=1e-5, rtol=1e-5)
    assert 0 < np.mean(np.asarray(latents) != 0) < 1


def largest(z: np.ndarray, k: int, by=lambda z: z) -> np.ndarray:
    return np.where(by(z) >= np.sort(by(z), axis=1)[:, -k][:, None], z, 0)


def saelens_says(folder: Path, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latents and reconstructions as SAELens computes them from a folder: x is a row, W_enc [d_in, d_sae]."""
    cfg = json.loads((folder / "cfg.json").read_text())
    t = safetensors.numpy.load_file(folder / "sae_weights.safetensors")
    assert cfg["normalize_activations"] == "none" and cfg["metadata"]["sae_lens_version"].startswith("6.")
    assert t["W_dec"].shape == (cfg["d_sae"], cfg.get("d_out", cfg["d_in"]))
    transcodes = "transcoder" in cfg["architecture"]
    inputs = x - t["b_dec"] * cfg["apply_b_dec_to_input"] if not transcodes else x
    z = inputs @ t["W_enc"] + t.get("b_enc", 0)
    match cfg["architecture"]:
        case "gated":
            magnitude = np.maximum(inputs @ (t["W_enc"] * np.exp(t["r_mag"])) + t["b_mag"], 0)
            f = (inputs @ t["W_enc"] + t["b_gate"] > 0) * magnitude
        case "topk":
            f = np.maximum(largest(z, cfg["k"]), 0)
        case "abstopk":
            f = largest(z, cfg["k"], np.abs)
        case "jumprelu" | "jumprelu_transcoder" | "jumprelu_skip_transcoder":
            f = np.maximum(z, 0) * (z > t["threshold"])
        case "standard" | "transcoder" | "skip_transcoder":
            f = np.maximum(z, 0)
    skip = x @ t["W_skip"].T if "skip" in cfg["architecture"] else 0
    return f, f @ t["W_dec"] + t["b_dec"] + skip


def sparsify_says(folder: Path, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    cfg = json.loads((folder / "cfg.json").read_text())
    t = safetensors.numpy.load_file(folder / "sae.safetensors")
    z = np.maximum((x if cfg["transcode"] else x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"], 0)
    if cfg["activation"] == "topk":
        f = largest(z, cfg["k"])
    else:
        groups = z.reshape(len(z), cfg["k"], -1)
        f = np.where(groups == groups.max(axis=2, keepdims=True), groups, 0).reshape(z.shape)
    return f, f @ t["W_dec"] + t["b_dec"] + (x @ t["W_skip"].T if cfg["skip_connection"] else 0)


@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("name", SAELENS)
def test_saelens_folders_compute_what_the_autoencoder_computes_and_are_read_back(name, subtracts, tmp_path):
    one = make(SAELENS[name], subtracts)
    folder = interop.save(one, tmp_path / "a", "saelens")
    agree(one, *saelens_says(folder, X))
    back = interop.load(folder)
    agree(one, back.encode(X), back(X))


@pytest.mark.parametrize("activation", [sae.Relu(), sae.JumpRelu(), sae.BatchTopK(k=3.0)])
@pytest.mark.parametrize("skip", [True, False])
def test_saelens_transcoders(activation, skip, tmp_path):
    one = make(activation, subtracts=False, d_out=D_OUT, skip=skip)
    folder = interop.save(one, tmp_path / "a")
    agree(one, *saelens_says(folder, X))
    back = interop.load(folder)
    agree(one, back.encode(X), back(X))


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("name", SPARSIFY)
def test_sparsify_folders_compute_what_the_autoencoder_computes_and_are_read_back(name, skip, tmp_path):
    one = make(SPARSIFY[name], subtracts=not skip, skip=skip)
    folder = interop.save(one, tmp_path / "a", "sparsify")
    agree(one, *sparsify_says(folder, X))
    back = interop.load(folder)
    agree(one, back.encode(X), back(X))


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("scale", [1, 2])
def test_matching_pursuit_is_tied_so_its_latents_are_those_of_raw_rows(scale, unit, tmp_path):
    one = make(sae.MatchingPursuit(k=3), normalized=False, unit=unit)
    one.normalization = Normalization(numbers(5, D_IN), np.full(D_IN, scale, np.float32))
    folder = interop.save(one, tmp_path / "a")
    assert "W_enc" not in safetensors.numpy.load_file(folder / "sae_weights.safetensors")
    back = interop.load(folder)
    agree(one, scale * back.encode(X), back(X))
    with pytest.raises(sae.UserError, match="data whose dimensions have scales of their own"):
        interop.save(make(sae.MatchingPursuit(k=3), unit=True), tmp_path / "c")


@needs_torch
@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("name", ["standard", "jumprelu", "batchtopk", "topk", "gated", "soft"])
def test_dictionary_learning_folders_are_read_back(name, unit, tmp_path):
    one = make(SAELENS[name], unit=unit, normalized=not unit)
    folder = interop.save(one, tmp_path / "a", "dictionary_learning")
    back = interop.load(folder)
    agree(one, back.encode(X), back(X))


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is installed")
def test_without_torch_pt_files_are_refused_in_one_line_and_nothing_is_left(tmp_path):
    with pytest.raises(sae.UserError, match=r"^ae.pt: .pt files need PyTorch"):
        interop.save(make(sae.Relu()), tmp_path / "a", "dictionary_learning")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("activation", "format", "says"),
    [
        (sae.Tanh(), "saelens", "Tanh, which other libraries lack"),
        (sae.SoftThreshold(), "saelens", "allowed: signed=False"),
        (sae.GroupMax(k=4), "saelens", "got groupmax, allowed: relu, jumprelu"),
        (sae.AbsTopK(k=3), "dictionary_learning", "got abstopk"),
        (sae.Relu(), "sparsify", "got relu, allowed: topk, groupmax"),
        (sae.Relu(), "saelen", "close names: saelens"),
    ],
)
def test_what_a_format_lacks_is_said_in_one_line(activation, format, says, tmp_path):
    with pytest.raises(sae.UserError, match=says) as error:
        interop.save(make(activation), tmp_path / "a", format)
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


def test_a_users_own_activation_is_not_taken_for_ours(tmp_path):
    @sae.definition
    class Doubled(sae.TopK):
        def __call__(self, sae, pre_acts):
            return 2 * super().__call__(sae, pre_acts)

    with pytest.raises(sae.UserError, match="Doubled, which other libraries lack"):
        interop.save(make(Doubled(k=3)), tmp_path / "a")


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(sae.UserError, match="allowed: a new or empty folder"):
        interop.save(make(sae.Relu()), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_latents_of_a_topk_that_weighs_by_decoder_norms_are_scaled_as_saelens_does(tmp_path):
    folder = interop.save(make(sae.TopK(k=3)), tmp_path / "a")
    edit(folder, rescale_acts_by_decoder_norm=True)
    t = safetensors.numpy.load_file(folder / "sae_weights.safetensors")
    norms = np.linalg.norm(t["W_dec"], axis=1)
    f = np.maximum(largest(((X - t["b_dec"]) @ t["W_enc"] + t["b_enc"]) * norms, 3), 0)
    agree(interop.load(folder), f, (f / norms) @ t["W_dec"] + t["b_dec"])


def test_a_configuration_of_saelens_5_and_half_precision_are_read(tmp_path):
    one = make(sae.TopK(k=3))
    folder = interop.save(one, tmp_path / "a")
    old = {"d_in": D_IN, "d_sae": D_SAE, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}}
    (folder / "cfg.json").write_text(json.dumps(old | {"hook_point": "blocks.8"}))
    agree(one, interop.load(folder).encode(X), interop.load(folder)(X))
    t = safetensors.numpy.load_file(folder / "sae_weights.safetensors")
    half = {name: value.astype(ml_dtypes.bfloat16) for name, value in t.items()}
    safetensors.numpy.save_file(half, folder / "sae_weights.safetensors")
    np.testing.assert_allclose(interop.load(folder).W_dec[...], t["W_dec"], rtol=1e-2)


def edit(folder: Path, **settings) -> None:
    path = folder / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def change(folder: Path, **tensors) -> None:
    path = folder / "sae_weights.safetensors"
    found = safetensors.numpy.load_file(path) | tensors
    safetensors.numpy.save_file({name: value for name, value in found.items() if value is not None}, path)


BAD = {
    "architecture: got 'temporal'": lambda f: edit(f, architecture="temporal"),
    "architecture: got \\['topk'\\]": lambda f: edit(f, architecture=["topk"]),
    "normalize_activations: got 'layer_norm'": lambda f: edit(f, normalize_activations="layer_norm"),
    "k: got 0, allowed: 1 to d_sae = 24": lambda f: edit(f, k=0),
    "k: got '../x'": lambda f: edit(f, k="../x"),
    "got no tensor 'W_enc'": lambda f: change(f, W_enc=None),
    "b_enc: got shape \\[3\\]": lambda f: change(f, b_enc=np.ones(3, np.float32)),
    "W_enc: got shape \\[3\\]": lambda f: change(f, W_enc=np.ones(3, np.float32)),
    "W_dec: got a number that is not finite": lambda f: change(f, W_dec=np.full((D_SAE, D_IN), np.nan, np.float32)),
    "cfg.json: not readable as JSON": lambda f: (f / "cfg.json").write_text("{"),
    "cfg.json: got list": lambda f: (f / "cfg.json").write_text("[]"),
    "cfg.json: cannot be read": lambda f: ((f / "cfg.json").unlink(), (f / "cfg.json").mkdir()),
    "cfg.json: no such file": lambda f: (f / "cfg.json").unlink(),
    "not a whole .safetensors file": lambda f: (f / "sae_weights.safetensors").write_bytes(b"\x80\x04cos\nsystem\n"),
    "settings or tensors of another shape or type": lambda f: (
        edit(f, architecture="batchtopk"),
        change(f, topk_threshold=np.zeros(0, np.float32)),
    ),
    "of another shape or type .*supported between": lambda f: (
        edit(f, architecture="matching_pursuit", residual_threshold="low"),
    ),
    "got shape \\[3\\], allowed: a matrix": lambda f: (
        edit(f, architecture="matching_pursuit"),
        change(f, W_dec=np.ones(3, np.float32)),
    ),
    "finetuning_scaling_factor": lambda f: change(f, scaling_factor=np.full(D_SAE, 2, np.float32)),
    "got no autoencoder": lambda f: (f / "sae_weights.safetensors").unlink(),
    "got files of saelens and sparsify": lambda f: (f / "sae.safetensors").write_bytes(b""),
}


@pytest.mark.parametrize("says", BAD)
def test_a_folder_is_data_and_its_faults_are_one_line(says, tmp_path):
    folder = interop.save(make(sae.TopK(k=3)), tmp_path / "a")
    BAD[says](folder)
    with pytest.raises(sae.UserError, match=says) as error:
        interop.load(folder)
    assert "\n" not in str(error.value)


def test_biases_move_between_encoder_and_input_without_changing_the_function():
    for activation in (sae.Relu(), sae.Gated()):
        one = plain_of(make(activation))
        assert one.subtracts
        there = one.not_subtracting()
        back = sae_of(there)
        agree(back, sae_of(one).encode(X), sae_of(one)(X))
        np.testing.assert_allclose(there.subtracting().b_enc, one.b_enc)


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    small = dataclasses.replace(tiny, n_steps=20)
    sweep = sae.Sweep(name="tiny", members=[small, dataclasses.replace(small, activation=sae.TopK(k=5))])
    sae.run(sweep, out=folder, wandb="off")
    return folder


def command(capsys, *argv) -> tuple[int, str, str]:
    code = cli.main([*map(str, argv)])
    return code, *capsys.readouterr()


def test_export_writes_a_folder_for_every_member_and_a_card(run, tmp_path, capsys):
    out = tmp_path / "out"
    code, said, _ = command(capsys, "export", run, "--member", 0, 1, "--metadata", "model_name=digits", "--format",
                            "saelens", out)  # fmt: skip
    assert code == 0 and "wrote member 1 to" in said
    results = sae.load(run)
    x = results.data(0).held_out[:]
    for member in (0, 1):
        agree(results.sae(member), *saelens_says(out / str(member), x), x=x)
        card = (out / str(member) / "README.md").read_text()
        fvu = results.members["eval/fvu"][member]
        assert f"| eval/fvu | {fvu:.6g} | fraction of variance unexplained" in card and "| penalty.l1 | 0.1 |" in card
        assert str(tmp_path) not in card
        rates = safetensors.numpy.load_file(out / str(member) / "sparsity.safetensors")["sparsity"]
        fired = np.mean(np.asarray(results.sae(member).encode(x)) != 0, axis=0)
        np.testing.assert_allclose(rates, np.log10(fired + 1e-10), atol=1e-4)
    assert json.loads((out / "1" / "cfg.json").read_text())["metadata"]["model_name"] == "digits"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--member", "0", "--metadata", "=x"), "metadata: got '=x'"),
        ((), "member: got none, allowed: one or more of 0-1"),
        (("--member", "7"), "got member 7, allowed: those that are finished: 0-1"),
        (("--member", "0", "--format", "sparsify"), "sparsify: got relu, allowed: topk, groupmax"),
        (("--member", "0", "--metadata", "g-2=3"), "metadata: got 'g-2=3', allowed: NAME=VALUE"),
    ],
)
def test_export_says_in_one_line_what_is_wrong(run, tmp_path, capsys, arguments, says):
    code, _, err = command(capsys, "export", run, tmp_path / "out", *arguments)
    assert code == 1 and says in err and len(err.splitlines()) == 1 and not (tmp_path / "out").exists()

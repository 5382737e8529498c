"""dictionary_learning's folders: ae.pt, a torch state dict, and config.json, which names its class.

Linear layers are stored as torch has them, encoder.weight [d_sae, d_in] and decoder.weight [d_in, d_sae]; JumpReLU and
Matryoshka as W_enc [d_in, d_sae] and W_dec [d_sae, d_in]. There are no transcoders.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sae.core.foreign import read_object
from sae.core.text import nearest
from sae.core.types import UserError
from sae.interop.plain import Plain, needed
from sae.interop.tensors import read_pt, write_pt, write_settings

SETTINGS, WEIGHTS = "config.json", "ae.pt"
ACTIVATIONS = "relu, jumprelu, topk, gated; no transcoders"
LOADING = """from dictionary_learning.utils import load_dictionary

dictionary, config = load_dictionary("{folder}", device="cpu")
latents = dictionary.encode(x)  # x: raw rows, a torch tensor [n, {d_in}]
x_hat = dictionary.decode(latents)"""
CLASSES = (
    "AutoEncoder",
    "AutoEncoderNew",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "GatedAutoEncoder",
    "JumpReluAutoEncoder",
    "MatryoshkaBatchTopKSAE",
)


def is_one(folder: Path) -> bool:
    """Whether a folder has this format."""
    return (folder / WEIGHTS).is_file()


def write(one: Plain, folder: Path, metadata: Mapping[str, Any], firing_rates: np.ndarray | None = None) -> None:
    """Write an autoencoder. Raises UserError for one that the format lacks, and without torch.

    `load_dictionary` rescales an AutoEncoder to unit-norm decoder rows, and its latents with them. So ReLU latents over
    other rows are written as an AutoEncoderNew, which keeps its latents.
    """
    if one.transcodes or one.kind not in ("relu", "jumprelu", "topk", "gated"):
        what = "a transcoder" if one.transcodes else one.kind
        raise UserError(f"dictionary_learning: got {what}, allowed: {ACTIVATIONS}")
    trainer: dict[str, Any] = {"activation_dim": one.d_in, "dict_size": one.d_sae}
    if one.kind == "jumprelu":
        one = one.not_subtracting()
        assert one.threshold is not None
        name, tensors = "JumpReluAutoEncoder", {"W_enc": one.W_enc.T, "b_enc": one.b_enc, "W_dec": one.W_dec}
        tensors |= {"b_dec": one.b_dec, "threshold": one.threshold}
    elif one.kind == "gated":
        one = one.subtracting()
        assert one.b_mag is not None and one.r_mag is not None
        name, tensors = "GatedAutoEncoder", {"encoder.weight": one.W_enc, "decoder.weight": one.W_dec.T}
        tensors |= {"decoder_bias": one.b_dec, "gate_bias": one.b_enc, "mag_bias": one.b_mag, "r_mag": one.r_mag}
    elif one.kind == "topk":
        one, name = one.subtracting(), "AutoEncoderTopK"
        tensors = {"encoder.weight": one.W_enc, "encoder.bias": one.b_enc, "decoder.weight": one.W_dec.T}
        tensors |= {"b_dec": one.b_dec, "k": np.array(one.k), "threshold": np.array(-1.0)}
        trainer["k"] = one.k
    else:
        one = one.subtracting() if one.unit_norm else one.not_subtracting()
        name, bias = ("AutoEncoder", "bias") if one.unit_norm else ("AutoEncoderNew", "decoder.bias")
        tensors = {"encoder.weight": one.W_enc, "encoder.bias": one.b_enc, "decoder.weight": one.W_dec.T}
        tensors[bias] = one.b_dec
    write_pt(folder / WEIGHTS, tensors)
    write_settings(folder / SETTINGS, {"trainer": {"dict_class": name, **trainer}, "metadata": dict(metadata)})


def read(folder: Path) -> Plain:
    """Read an autoencoder as it is stored. Raises UserError, also without torch."""
    settings = read_object(folder / SETTINGS)
    trainer = settings.get("trainer")
    name = trainer.get("dict_class") if isinstance(trainer, dict) else None
    if not isinstance(trainer, dict) or name not in CLASSES:
        raise UserError(f"{SETTINGS}: trainer.dict_class: got {name!r}; {nearest(str(name), CLASSES)}")
    tensors = read_pt(folder / WEIGHTS)
    if name == "JumpReluAutoEncoder":
        W_enc, b_enc, W_dec, b_dec, threshold = needed(tensors, "W_enc", "b_enc", "W_dec", "b_dec", "threshold")
        return Plain("jumprelu", W_enc.T, b_enc, W_dec, b_dec, False, threshold=np.maximum(threshold, 0.0))
    if name == "GatedAutoEncoder":
        W_enc, W_dec, b_dec, gate, b_mag, r_mag = needed(
            tensors, "encoder.weight", "decoder.weight", "decoder_bias", "gate_bias", "mag_bias", "r_mag"
        )
        return Plain("gated", W_enc, gate, W_dec.T, b_dec, b_mag=b_mag, r_mag=r_mag)
    if name == "MatryoshkaBatchTopKSAE":
        W_enc, b_enc, W_dec, b_dec = needed(tensors, "W_enc", "b_enc", "W_dec", "b_dec")
        return Plain("jumprelu", W_enc.T, b_enc, W_dec, b_dec, threshold=_one_threshold(tensors, len(b_enc)))
    bias = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias"}.get(name, "b_dec")
    W_enc, b_enc, W_dec, b_dec = needed(tensors, "encoder.weight", "encoder.bias", "decoder.weight", bias)
    if name == "BatchTopKSAE":
        return Plain("jumprelu", W_enc, b_enc, W_dec.T, b_dec, threshold=_one_threshold(tensors, len(b_enc)))
    if name == "AutoEncoderTopK":
        k = trainer.get("k", int(tensors["k"]) if tensors.get("k", np.zeros(2)).size == 1 else None)
        return Plain("topk", W_enc, b_enc, W_dec.T, b_dec, k=k)
    return Plain("relu", W_enc, b_enc, W_dec.T, b_dec, subtracts=name == "AutoEncoder")


def _one_threshold(tensors: Mapping[str, np.ndarray], d_sae: int) -> np.ndarray:
    """The threshold that all latents share, [d_sae]; the -1 of one that was never set stands for 0."""
    (threshold,) = needed(tensors, "threshold")
    if threshold.size != 1:
        raise UserError(f"threshold: got shape {list(threshold.shape)}, allowed: one number")
    return np.full(d_sae, max(float(threshold.reshape(())), 0.0))

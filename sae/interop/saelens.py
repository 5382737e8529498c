"""SAELens' folders: cfg.json, sae_weights.safetensors and, where firing rates are known, sparsity.safetensors.

W_enc is [d_in, d_sae] there. The layout is that of version 6; configurations of version 5 are read, too.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sae.core.console import say
from sae.core.foreign import read_object, read_tensors, write_tensors
from sae.core.text import nearest
from sae.core.types import UserError
from sae.interop.plain import Plain, needed
from sae.interop.tensors import write_settings

SETTINGS, WEIGHTS, SPARSITY = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors"
VERSION = "6.54.12"  # of SAELens, whose layout this is
ARCHITECTURES = {  # {SAELens' name: kind}; the names of transcoders follow
    "standard": "relu",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "abstopk": "abstopk",
    "gated": "gated",
    "matching_pursuit": "matching_pursuit",
}
TRANSCODERS = {
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
IN_TRAINING = ("batchtopk", "matryoshka_batchtopk")  # as checkpoints have them: one threshold for all latents
ACTIVATIONS = "relu, jumprelu, topk, abstopk, gated, matching_pursuit; of transcoders relu and jumprelu"
LOADING = """from sae_lens import SAE

sae = SAE.load_from_disk("{folder}")
latents = sae.encode(x)  # x: raw rows, a torch tensor [n, {d_in}]
x_hat = sae.decode(latents)"""


def is_one(folder: Path) -> bool:
    """Whether a folder has this format."""
    return (folder / WEIGHTS).is_file()


def write(one: Plain, folder: Path, metadata: Mapping[str, Any], firing_rates: np.ndarray | None = None) -> None:
    """Write an autoencoder. Raises UserError for one that the format lacks."""
    skips = one.W_skip is not None
    names = TRANSCODERS if one.transcodes else ARCHITECTURES
    wanted = [name for name, kind in names.items() if kind == one.kind and ("skip" in name) == skips]
    if not wanted:
        what = f"{'a transcoder with ' if one.transcodes else ''}{one.kind}"
        raise UserError(f"saelens: got {what}, allowed: {ACTIVATIONS}")
    if one.transcodes:
        one = one.not_subtracting()
    tensors = {"W_enc": one.W_enc.T, "W_dec": one.W_dec, "b_dec": one.b_dec}
    settings: dict[str, Any] = {"d_in": one.d_in, "d_sae": one.d_sae, "dtype": "float32", "device": "cpu"}
    settings |= {"apply_b_dec_to_input": one.subtracts, "normalize_activations": "none", "reshape_activations": "none"}
    settings["architecture"] = wanted[0]
    if one.kind == "gated":
        tensors |= {"b_gate": one.b_enc, "b_mag": _some(one.b_mag), "r_mag": _some(one.r_mag)}
    elif one.kind == "matching_pursuit":
        del tensors["W_enc"]  # it is tied
        settings |= {
            "residual_threshold": 0.0,
            "max_iterations": one.k,
            "stop_on_duplicate_support": one.stop_on_repeat,
        }
    else:
        tensors["b_enc"] = one.b_enc
    if one.kind == "jumprelu":
        tensors["threshold"] = _some(one.threshold)
    if one.kind in ("topk", "abstopk"):
        settings |= {"k": one.k, "rescale_acts_by_decoder_norm": False}
    if one.transcodes:
        settings["d_out"] = one.d_out
    if one.W_skip is not None:
        tensors["W_skip"] = one.W_skip
    settings["metadata"] = {"sae_lens_version": VERSION, **metadata}
    write_tensors(folder / WEIGHTS, tensors)
    if firing_rates is not None:
        write_tensors(folder / SPARSITY, {"sparsity": np.log10(np.asarray(firing_rates) + 1e-10)})
    write_settings(folder / SETTINGS, settings)


def read(folder: Path) -> Plain:
    """Read an autoencoder. Raises UserError."""
    settings, tensors = read_object(folder / SETTINGS), read_tensors(folder / WEIGHTS)
    tensors.pop("sparsity", None)
    name = settings.get("architecture", "standard")
    older = settings.get("activation_fn", settings.get("activation_fn_str"))
    k = settings.get("k")
    if older is not None and name == "standard":  # version 5 wrote TopK as an activation of "standard"
        arguments = settings.get("activation_fn_kwargs") or {}
        if older == "topk":
            name, k = "topk", arguments.get("k") if isinstance(arguments, dict) else None
        elif older != "relu":
            raise UserError(f"activation_fn: got {older!r}, allowed: relu, topk")
    known = ARCHITECTURES | TRANSCODERS | dict.fromkeys(IN_TRAINING, "jumprelu")
    if not isinstance(name, str) or name not in known:
        raise UserError(f"architecture: got {name!r}; {nearest(str(name), known)}")
    _check_transformation(settings, tensors)
    kind, transcodes, subtracts = known[name], name in TRANSCODERS, bool(settings.get("apply_b_dec_to_input", True))
    W_dec, b_dec = needed(tensors, "W_dec", "b_dec")
    more: dict[str, Any] = {}
    if kind == "matching_pursuit":
        W_enc, b_enc = W_dec, np.zeros(len(W_dec))
        more = {"stop_on_repeat": bool(settings.get("stop_on_duplicate_support", True))}
        k = settings.get("max_iterations") or W_dec.shape[-1]
        if not subtracts:
            b_dec, subtracts = np.zeros_like(b_dec), True
    else:
        (W_enc,) = needed(tensors, "W_enc")
        W_enc = W_enc.T
        (b_enc,) = needed(tensors, "b_gate" if kind == "gated" else "b_enc")
    if kind == "gated":
        more["b_mag"], more["r_mag"] = needed(tensors, "b_mag", "r_mag")
    if name in IN_TRAINING:
        (threshold,) = needed(tensors, "topk_threshold")
        more["threshold"] = np.full(len(b_enc), max(float(np.ravel(threshold)[0]), 0.0))
    elif kind == "jumprelu":
        more["threshold"] = np.maximum(needed(tensors, "threshold")[0], 0.0)  # the ReLU lets nothing below 0 through
    if "skip" in name:
        (more["W_skip"],) = needed(tensors, "W_skip")
    one = Plain(
        kind, W_enc, b_enc, W_dec, b_dec, subtracts and not transcodes, k=k, transcodes=transcodes, **more
    )  # fmt: skip
    if kind == "matching_pursuit" and settings.get("residual_threshold", 1e-2) > 0.1:
        raise UserError("residual_threshold: got more than .1, allowed: at most .1, which hardly ends an example early")
    weighs = settings.get("rescale_acts_by_decoder_norm", False)
    if weighs and (kind in ("topk", "abstopk") or name in IN_TRAINING):
        norms = np.where(one.norms > 0, one.norms, 1.0)
        one = dataclasses.replace(one.scaled(norms), threshold=one.threshold)  # a threshold is on the scaled latents
    return one


def _check_transformation(settings: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Raises UserError where rows are transformed in a way that no matrix can hold; says what SAELens leaves open."""
    how = settings.get("normalize_activations") or "none"
    how = "expected_average_only_in" if how is True else how
    if how == "expected_average_only_in":
        say("normalize_activations = expected_average_only_in: its factor is not there; rows are taken as scaled")
    elif how != "none":
        raise UserError(
            f"normalize_activations: got {how!r}, which SAELens does to each row anew; allowed: none, "
            "expected_average_only_in"
        )
    if "scaling_factor" in tensors and not np.allclose(tensors["scaling_factor"], 1):
        raise UserError("finetuning_scaling_factor: got factors other than 1, allowed: an autoencoder without them")


def _some(value: np.ndarray | None) -> np.ndarray:
    assert value is not None
    return value

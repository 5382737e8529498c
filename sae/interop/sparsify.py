"""EleutherAI sparsify's folders: cfg.json and sae.safetensors, with encoder.weight and W_dec [d_sae, d_in] both."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sae.core.foreign import read_object, read_tensors, write_tensors
from sae.core.types import UserError
from sae.interop.plain import Plain, needed
from sae.interop.tensors import write_settings

SETTINGS, WEIGHTS = "cfg.json", "sae.safetensors"
ACTIVATIONS = "topk, groupmax; transcoders whose input and target have one width"
LOADING = """from sparsify import SparseCoder

sae = SparseCoder.load_from_disk("{folder}")
found = sae.encode(x)  # x: raw rows, a torch tensor [n, {d_in}]; found.top_acts, found.top_indices
x_hat = sae(x).sae_out"""


def is_one(folder: Path) -> bool:
    """Whether a folder has this format."""
    return (folder / WEIGHTS).is_file()


def write(one: Plain, folder: Path, metadata: Mapping[str, Any], firing_rates: np.ndarray | None = None) -> None:
    """Write an autoencoder. Raises UserError for one that the format lacks."""
    if one.kind not in ("topk", "groupmax") or one.d_in != one.d_out:
        widths = f" of widths {one.d_in} and {one.d_out}" if one.d_in != one.d_out else ""
        raise UserError(f"sparsify: got {one.kind}{widths}, allowed: {ACTIVATIONS}")
    one = one.not_subtracting() if one.transcodes else one.subtracting()
    tensors = {"encoder.weight": one.W_enc, "encoder.bias": one.b_enc, "W_dec": one.W_dec, "b_dec": one.b_dec}
    if one.W_skip is not None:
        tensors["W_skip"] = one.W_skip
    settings = {
        "activation": one.kind,
        "expansion_factor": max(1, one.d_sae // one.d_in),
        "normalize_decoder": one.unit_norm,
        "num_latents": one.d_sae,
        "k": one.k,
        "multi_topk": False,
        "skip_connection": one.W_skip is not None,
        "transcode": one.transcodes,
        "d_in": one.d_in,
    }
    write_tensors(folder / WEIGHTS, tensors)
    write_settings(folder / SETTINGS, settings)  # sparsify warns of entries that it does not know


def read(folder: Path) -> Plain:
    """Read an autoencoder. Raises UserError."""
    settings, tensors = read_object(folder / SETTINGS), read_tensors(folder / WEIGHTS)
    kind = settings.get("activation", "topk")
    if kind not in ["topk", "groupmax"] or settings.get("signed"):
        got = "signed" if settings.get("signed") else kind
        raise UserError(f"activation: got {got!r}, allowed: topk, groupmax")
    W_enc, b_enc, W_dec, b_dec = needed(tensors, "encoder.weight", "encoder.bias", "W_dec", "b_dec")
    W_skip = needed(tensors, "W_skip")[0] if settings.get("skip_connection") else None
    transcodes = bool(settings.get("transcode"))
    return Plain(
        kind, W_enc, b_enc, W_dec, b_dec, not transcodes, W_skip, k=settings.get("k", 32), transcodes=transcodes
    )  # fmt: skip

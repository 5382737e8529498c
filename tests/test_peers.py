"""The same latents, reconstructions and steps as SAELens, dictionary_learning and sparsify, with them installed.

`make test-peers` installs them in an environment of its own and runs this file. Elsewhere it is skipped.
"""

import importlib.util
import json
import os

import numpy as np
import pytest

import sae
from sae import interop
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
    own = {name: np.abs(numbers(9, *value.shape)) for name, value in activation.init(D_SAE).items()}
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

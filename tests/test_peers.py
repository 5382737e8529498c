"""The same latents, reconstructions and steps as SAELens, dictionary_learning and sparsify, with them installed.

`make test-peers` installs them in an environment of its own and runs this file. Elsewhere it is skipped.
"""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import peers
import pytest
from peers import D_IN, D_OUT, D_SAE, NEAR, X, make, numbers

import sae
from sae import interop
from sae.core.model import Sae

peers.need("torch", "sae_lens", "dictionary_learning")

import torch  # noqa: E402
from dictionary_learning.utils import load_dictionary  # noqa: E402
from sae_lens import SAE  # noqa: E402

ROWS = torch.from_numpy(X)


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


@pytest.mark.parametrize("unit", [True, False])
def test_saelens_matching_pursuit(unit, tmp_path):
    one = make(sae.MatchingPursuit(k=3), normalized=False, unit=unit)
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

"""LossRecovered is SAELens' own evaluation of the same exported autoencoder on the same tokens, with SAELens installed.

`make test-peers` installs it in an environment of its own and runs this file. Elsewhere it is skipped.
"""

import importlib.util
import os

import jax.numpy as jnp
import numpy as np
import pytest

MISSING = [name for name in ("torch", "sae_lens", "transformers") if importlib.util.find_spec(name) is None]
if MISSING:
    pytest.skip(f"{', '.join(MISSING)}: not installed; run make test-peers", allow_module_level=True)

import lm_harvest  # noqa: E402
import torch  # noqa: E402
from sae_lens import SAE  # noqa: E402
from sae_lens.evals import get_downstream_reconstruction_metrics  # noqa: E402
from sae_lens.load_model import HookedProxyLM  # noqa: E402
from sae_lens.training.activation_scaler import ActivationScaler  # noqa: E402

import sae  # noqa: E402
from sae import Relu, Sae, interop  # noqa: E402
from sae.analysis import members  # noqa: E402
from sae.core.normalization import Normalization  # noqa: E402
from sae.lm import loss_recovered, models  # noqa: E402


class Tokens:
    """What SAELens' evaluation asks of its store of activations: the next tokens."""

    def __init__(self, ids: np.ndarray) -> None:
        self.ids, self.at = torch.as_tensor(ids).long(), 0

    def get_batch_tokens(self, n: int) -> torch.Tensor:
        self.at += n
        return self.ids[self.at - n : self.at]


def theirs(one: Sae, language_model: models.LanguageModel, ids: np.ndarray, module: str, folder, first: int):
    """SAELens' numbers. The token `first` at position 0 is left alone, as in the harvest."""
    exported = SAE.load_from_disk(interop.save(one, folder))
    exported.cfg.metadata.hook_name = module
    model = HookedProxyLM(language_model.model, language_model.tokenizer, [module])
    with torch.no_grad():
        return get_downstream_reconstruction_metrics(
            exported, model, Tokens(ids), ActivationScaler(), True, True, len(ids) // 4, 4, ignore_tokens=[first]
        )


def ours(one: Sae, made, contexts) -> dict[str, float]:
    language_model, folder = made
    put = lambda rows: np.asarray(members.each(loss_recovered.reconstruct, members.stack([one]), jnp.asarray(rows)))
    hook = folder.hooks[0]
    found = loss_recovered.losses(
        lambda rows: np.asarray(one(rows))[None] if one.normalization else put(rows),
        language_model, folder, (hook, hook), contexts,
    )  # fmt: skip
    entropy, kl = found.mean(found.cross_entropy, found.predicted), found.mean(found.kl, found.replaced)
    return {
        "ce_loss_without_sae": entropy[0], "ce_loss_with_ablation": entropy[1], "ce_loss_with_sae": entropy[3],
        "ce_loss_score": found.recovered(0), "kl_div_with_ablation": kl[1], "kl_div_with_sae": kl[3],
    }  # fmt: skip


def made_up(seed: int, activation, d: int = 16) -> Sae:
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(24, d)) / np.sqrt(d)
    normalization = Normalization(np.zeros(d, np.float32), np.full(d, 1.5, np.float32))
    parameters = (W, 0.1 * rng.normal(size=24), W, 0.1 * rng.normal(size=d))
    return Sae(*(jnp.asarray(a, jnp.float32) for a in parameters), activation, normalization=normalization)


@pytest.mark.parametrize("activation", [Relu(), sae.TopK(k=6)])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_loss_recovered_is_saelens_own(family, activation, tmp_path):
    made = lm_harvest.write(tmp_path, family)
    one, module = made_up(0, activation), made[0].hook(made[1].hooks[0]).module
    expected = theirs(one, made[0], made[1].part("held-out").ids, module, tmp_path / "sae", 1)
    found = ours(one, made, np.arange(12))
    assert expected["kl_div_with_sae"] > 0.01
    for name, value in found.items():
        assert value == pytest.approx(expected[name], abs=1e-4), name


@pytest.mark.skipif("SAE_TEST_MODEL" not in os.environ, reason="SAE_TEST_MODEL names no model, such as a .gguf file")
def test_loss_recovered_of_a_real_model_is_saelens_own(tmp_path):
    """Four contexts of a real model; the autoencoder is PCA, so that much is recovered, and not all."""
    made = lm_harvest.real(os.environ["SAE_TEST_MODEL"], tmp_path)
    one = lm_harvest.principal(made[1])
    ids = made[1].part("held-out").ids
    expected = theirs(one, made[0], ids, made[0].hook(made[1].hooks[0]).module, tmp_path / "sae", int(ids[0, 0]))
    assert 0.1 < expected["ce_loss_score"] < 0.999
    for name, value in ours(one, made, np.arange(len(ids))).items():
        assert value == pytest.approx(expected[name], abs=1e-3), name

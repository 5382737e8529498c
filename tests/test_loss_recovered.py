"""LossRecovered on tiny models: against a plain forward with hooks, and where the answer is known."""

import importlib.util
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

MISSING = [name for name in ("torch", "transformers", "tokenizers") if importlib.util.find_spec(name) is None]
if MISSING:
    pytest.skip(f"{', '.join(MISSING)}: not installed; pip install -e '.[lm]'", allow_module_level=True)

import lm_harvest  # noqa: E402
import torch  # noqa: E402

import sae  # noqa: E402
from sae import Activations, Experiment, Relu, Sae, Sweep, Transcoder, UserError, grid, replace  # noqa: E402
from sae.analysis import controls, members  # noqa: E402
from sae.lm import loss_recovered  # noqa: E402
from sae.lm.loss_recovered import BESIDE, Losses, LossRecovered  # noqa: E402

HOOK = "resid-post.1"
ALL = np.arange(12)


@pytest.fixture(scope="module")
def harvest(tmp_path_factory):
    return lm_harvest.write(
        tmp_path_factory.mktemp("lm"), hooks=(HOOK, "mlp-in.1", "mlp-out.1"), documents_in_a_context=2
    )


def random_sae(seed: int, d: int = 16) -> Sae:
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(24, d)) / np.sqrt(d)
    return Sae(*(jnp.asarray(a, jnp.float32) for a in (W, np.zeros(24), W, rng.normal(size=d))), Relu())


def mean_of(folder, hook=HOOK) -> Sae:
    """It gives the mean training row, whatever the input."""
    mean = folder.mean(hook)
    zeros = jnp.zeros((24, len(mean)))
    return Sae(zeros, jnp.zeros(24), zeros, jnp.asarray(mean), Relu())


def measured(harvest, saes, contexts=ALL, hooks=(HOOK, HOOK)):
    stacked = members.stack(saes)
    put = lambda rows: np.asarray(members.each(loss_recovered.reconstruct, stacked, jnp.asarray(rows)))
    return loss_recovered.losses(put, *harvest, hooks, contexts)


def by_hooks(harvest, replace, contexts=ALL, hook=HOOK):
    """Cross-entropy and KL by a forward of the whole model in which a hook of torch replaces what a block gives."""
    language_model, folder = harvest
    part = folder.part("held-out")
    ids, documents, kept = part.ids[contexts], part.documents[contexts], part.row[contexts] >= 0
    module = language_model.modules[language_model.hook(hook).module]

    def put(_, args, out):
        value = out if torch.is_tensor(out) else out[0]
        new = torch.as_tensor(replace(value.numpy(), kept))
        return new if torch.is_tensor(out) else (new, *out[1:])

    logits = {}
    for name in ("intact", "replaced"):
        handle = module.register_forward_hook(put) if name == "replaced" else None
        with torch.no_grad():
            logits[name] = (
                torch.log_softmax(language_model.model(torch.as_tensor(ids).long()).logits, -1).double().numpy()
            )
        if handle:
            handle.remove()
    entropy, kl = [], []
    for c, t in zip(*np.nonzero(kept), strict=True):
        kl.append(np.sum(np.exp(logits["intact"][c, t]) * (logits["intact"][c, t] - logits["replaced"][c, t])))
        if t + 1 < ids.shape[1] and documents[c, t + 1] == documents[c, t]:
            entropy.append(-logits["replaced"][c, t, ids[c, t + 1]])
    return np.mean(entropy), np.mean(kl), len(entropy)


def test_losses_are_those_of_a_plain_forward_with_hooks(harvest):
    one = random_sae(0)
    found = measured(harvest, [one, random_sae(1)])
    entropy, kl = found.mean(found.cross_entropy, found.predicted), found.mean(found.kl, found.replaced)
    mean = harvest[1].mean(HOOK)
    at_kept = lambda new: lambda value, kept: np.where(kept[..., None], new(value), value).astype(np.float32)
    expected = {
        0: at_kept(lambda value: value),
        1: lambda value, kept: np.zeros_like(value),  # everywhere
        2: at_kept(lambda value: np.broadcast_to(mean, value.shape)),
        3: at_kept(lambda value: np.asarray(one(value))),
    }
    for i, change in expected.items():
        own_entropy, own_kl, counted = by_hooks(harvest, change)
        assert entropy[i] == pytest.approx(own_entropy, abs=1e-5)
        assert kl[i] == pytest.approx(own_kl, abs=1e-5)
        assert found.predicted.sum() == counted == 12 * 13  # of 15, one ends a document and one a context
    assert found.replaced.sum() == 12 * 15 and len(found.predicted) == 24


def test_the_identity_recovers_all_and_the_mean_is_the_mean_ablation(harvest):
    exact = measured(harvest, [controls.identity(16)])
    assert exact.recovered(0) == 1.0 and abs(exact.kl[3]).max() == 0
    assert exact.interval(0) == (1.0, 1.0)
    mean = measured(harvest, [mean_of(harvest[1])])
    np.testing.assert_array_equal(mean.cross_entropy[3], mean.cross_entropy[2])
    assert mean.recovered(0) == mean.recovered(-1) != 1
    assert exact.recovered(-1) == mean.recovered(-1)


@pytest.mark.parametrize("family", ["gpt2", "gpt-neox"])
@pytest.mark.parametrize("hook", ["resid-pre.1", "mlp-out.0", "attn-out.2"])
def test_the_identity_recovers_all_at_every_place(family, hook, tmp_path):
    made = lm_harvest.write(tmp_path, family, hooks=(hook,), n_contexts=4)
    found = measured(made, [controls.identity(16)], np.arange(4), (hook, hook))
    assert found.recovered(0) == pytest.approx(1.0, abs=1e-6) and found.kl[1].sum() > 0


def test_numbers_by_hand_and_their_interval_over_documents():
    entropy = np.array([[1.0, 4.0], [3.0, 8.0], [2.0, 7.0], [2.0, 5.0]])
    found = Losses(entropy, entropy, np.array([1.0, 2.0]), np.array([1.0, 2.0]))
    assert found.recovered(0) == pytest.approx((11 - 7) / (11 - 5)) and found.recovered(-1) == pytest.approx(2 / 6)
    np.testing.assert_allclose(found.mean(entropy, found.predicted), [5 / 3, 11 / 3, 3, 7 / 3])
    assert found.interval(0) == pytest.approx((1 / 2, 3 / 4))  # the first document alone, or the second
    one = Losses(entropy[:, :1], entropy[:, :1], np.ones(1), np.ones(1))
    assert np.isnan(one.interval(0)).all()


def test_a_sweep_asks_it_of_autoencoders_and_transcoders(harvest, tmp_path):
    _, folder = harvest
    plain = Experiment(
        name="loss", data=Activations(path=str(folder.path), hook=HOOK), d_sae=24, batch_size=64, n_steps=20
    )
    data = Activations(path=str(folder.path), hook=("mlp-in.1", "mlp-out.1"))
    across = replace(plain, {"data": data, "task": Transcoder(), "apply_b_dec_to_input": False})
    measure = LossRecovered(n_tokens=60)
    sweep = Sweep(name="loss", members=[*grid(plain, {"seed": (0, 1)}), across], measures=[measure])
    table = sae.run(sweep, out=tmp_path / "run", wandb="off").members
    assert table[list(measure.columns)].notna().all().all()
    assert (table["analysis/loss_documents"] == 8).all() and (table["analysis/loss_tokens"] == 4 * 13).all()
    assert table["analysis/ce_intact"].nunique() == 1 and table["analysis/ce_zero"].nunique() == 2
    low, value, high = (table[f"analysis/loss_recovered{end}"] for end in ("_low", "", "_high"))
    assert (low <= value).all() and (value <= high).all()
    again = measured(harvest, [sae.load(tmp_path / "run").sae(0)], measure._contexts(folder))
    assert again.recovered(0) == pytest.approx(value[0], abs=1e-4)  # raw rows, outside of the sweep
    assert table["analysis/kl"][0] == pytest.approx(again.mean(again.kl, again.replaced)[len(BESIDE)], abs=1e-4)


def test_another_model_and_a_missing_one_are_refused_in_a_line(harvest, tmp_path):
    _, folder = harvest
    other = lm_harvest.tiny_lm.folder(tmp_path / "other", "qwen2")
    with pytest.raises(UserError, match=f"other is sha256:.*, allowed: sha256:.*, which {folder.path} was made of"):
        loss_recovered._loaded(other, folder, asked=True)
    with pytest.raises(UserError, match=r"LossRecovered\(model=\.\.\.\) says where it is now"):
        loss_recovered._loaded(str(tmp_path / "gone" / "model"), folder, asked=False)
    shutil.rmtree(other)

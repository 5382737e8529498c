"""Language models: activations and continued forwards are those of a plain full forward, in every family."""

import contextlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="language models need torch: pip install -e '.[lm]'")
pytest.importorskip("transformers", reason="language models need transformers: pip install -e '.[lm]'")

import tiny_lm  # noqa: E402

from sae import UserError  # noqa: E402
from sae.lm import extra, models, pieces  # noqa: E402

IDS = np.random.default_rng(0).integers(2, 300, (2, 12))


def lm(family: str) -> models.LanguageModel:
    return models.LanguageModel(tiny_lm.model(family), tiny_lm.tokenizer(), "")


@pytest.fixture(params=tiny_lm.FAMILIES)
def one(request):
    return lm(request.param)


def message(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    return str(caught.value)


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


def test_the_residual_stream_is_what_transformers_calls_hidden_states(one):
    with torch.no_grad():
        states = one.model(torch.tensor(IDS), output_hidden_states=True).hidden_states
    names = [f"resid-pre.{layer}" for layer in range(3)] + ["resid-post.1"]
    found = one.activations(IDS, names)
    for layer in range(3):
        close(found[f"resid-pre.{layer}"], states[layer])
    close(found["resid-post.1"], states[2])


def test_attention_and_mlp_are_what_a_block_adds(one):
    for layer in range(3):
        places = [f"{place}.{layer}" for place in ("resid-pre", "attn-out", "mlp-out", "resid-post")]
        found = one.activations(IDS, places)
        before, attention, mlp, after = (found[name] for name in places)
        close(before + attention + mlp, after)


def test_what_enters_the_mlp_gives_what_leaves_it(one):
    found = one.activations(IDS, ["mlp-in.1", f"{one.blocks_path}.1.mlp"])
    with torch.no_grad():
        close(one.blocks[1].mlp(found["mlp-in.1"]), found[f"{one.blocks_path}.1.mlp"])


def plain(one, module, value):
    """A full forward in which one module's output is replaced, by torch alone."""
    swap = lambda _, args, out: value if not isinstance(out, tuple) else (value, *out[1:])
    handle = one.modules[module].register_forward_hook(swap)
    try:
        with torch.no_grad():
            return one.model(torch.tensor(IDS)).logits
    finally:
        handle.remove()


def test_the_upper_part_is_a_full_forward_with_a_replaced_value(one):
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        whole = one.model(torch.tensor(IDS)).logits
    for layer in range(3):
        below = one.activations(IDS, [f"resid-pre.{layer}"])[f"resid-pre.{layer}"]
        for place in models.PLACES:
            hook = one.hook(f"{place}.{layer}")
            value = one.activations(IDS, [hook])[hook.name]
            close(one.upper(IDS, below, hook, value), whole)  # its own value changes nothing
            other = torch.randn(value.shape, generator=rng) * value.std()
            got = one.upper(IDS, below, hook, other)
            assert (got - whole).abs().max() > 1e-2
            if not hook.entering:
                close(got, plain(one, hook.module, other))
        close(one.upper(IDS, below, f"mlp-out.{layer}"), whole)
        path = f"{one.blocks_path}.{layer}.mlp"
        value = torch.randn(below.shape, generator=rng)
        close(one.upper(IDS, below, path, value), plain(one, path, value))
    with torch.no_grad():
        close(one.model(torch.tensor(IDS)).logits, whole, 0)  # the model is as it was


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_forward_stops_after_the_last_hook_and_skips_what_is_below(family):
    one, ran = lm(family), []
    with contextlib.ExitStack() as stack:
        for layer, block in enumerate(one.blocks):
            stack.callback(block.mlp.register_forward_hook(lambda *_, layer=layer: ran.append(layer)).remove)
        one.activations(IDS, ["resid-post.1", "resid-pre.1"])
        assert ran == [0, 1]
        ran.clear()
        one.activations(IDS, ["resid-pre.1"])
        assert ran == [0]
        below = torch.zeros(*IDS.shape, one.d_model)
        one.upper(IDS, below, "mlp-out.1", below)  # the first looks into a block
        ran.clear()
        one.upper(IDS, below, "mlp-out.1", below)
        assert ran == [1, 2]
        ran.clear()
        one.upper(IDS, below, "resid-post.1", below)
        assert ran == [2]


def test_padding_at_the_end_changes_nothing_before_it(one):
    padded = np.concatenate([IDS, np.full((2, 4), -1)], axis=1)
    found, wanted = (one.activations(ids, ["resid-post.2"])["resid-post.2"] for ids in (padded, IDS))
    close(found[:, :12], wanted)


@pytest.mark.parametrize("family", [name for name in tiny_lm.FAMILIES if name != "gemma2"])  # which caps its logits
def test_the_unembedding_gives_the_logits_of_a_residual_without_its_scale(family):
    one = lm(family)
    r = one.activations(IDS, ["resid-post.2"])["resid-post.2"].double()
    if family in ("gpt2", "gpt-neox"):
        scale = r.std(dim=-1, unbiased=False, keepdim=True)
    else:
        scale = r.square().mean(dim=-1, keepdim=True).sqrt()
    got = (r / scale).numpy() @ one.unembedding().astype(np.float64).T
    constant = one.logits(IDS).double().numpy() - got  # biases give every token one of its own
    np.testing.assert_allclose(constant, np.broadcast_to(constant[:1, :1], constant.shape), atol=2e-3)
    assert family in ("gpt2", "gpt-neox") or np.abs(constant).max() < 2e-3


def test_a_hook_that_is_not_there_is_one_line_with_close_names():
    one = lm("llama")
    assert "hook: got 'resid-post.3', allowed: layers 0 to 2" in message(one.hook, "resid-post.3")
    assert "close names: resid-post." in message(one.hook, "residpost.1")
    assert "close names: model.layers.0.mlp.act_fn" in message(one.hook, "model.layers.0.mlp.actfn")
    everything = message(one.hook, "???")
    assert "allowed: resid-pre.L, resid-post.L, attn-out.L" in everything and "model.layers.0.mlp" in everything
    assert one.hook("resid-post", 1) == one.hook("resid-post.1")
    assert one.hook("mlp.act_fn", 2) == one.hook("model.layers.2.mlp.act_fn")
    assert one.hook("model.layers.2.mlp.act_fn").layer == 2 and one.hook("model.norm").layer is None
    assert "one in a block" in message(one.upper, IDS, None, "model.norm", None)
    assert one.activations(IDS, ["model.norm"])["model.norm"].shape == (2, 12, 16)
    assert "which gives [1, 12, 8], allowed: [batch 2" in message(one.activations, IDS, ["model.rotary_emb"])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_saved_folder_is_the_model(tmp_path, family):
    path = tiny_lm.folder(tmp_path / "m", family)
    one = models.load(path)
    close(one.logits(IDS), lm(family).logits(IDS))
    assert (one.n_layers, one.d_model) == (3, 16) and re.fullmatch(r"sha256:[0-9a-f]{64}", one.identity)
    assert models.load(path, "bfloat16").logits(IDS).dtype == torch.bfloat16
    file = tmp_path / "m" / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-4] + b"\0\0\0\0")
    assert models.load(path).identity != one.identity


def test_what_is_no_model_is_one_line(tmp_path):
    path = Path(tiny_lm.folder(tmp_path / "model", "llama"))
    assert "no such file or folder; in" in message(models.load, str(tmp_path / "modl"))
    assert "close names: model" in message(models.load, str(tmp_path / "modl"))
    (tmp_path / "empty").mkdir()
    assert "no config.json and no .gguf file" in message(models.load, str(tmp_path / "empty"))
    (tmp_path / "x.txt").write_text("x")
    assert "got a .txt file" in message(models.load, str(tmp_path / "x.txt"))
    assert "model-dtype: got 'float8', close names: float32" in message(models.load, str(path), "float8")
    (path / "model.safetensors").write_bytes(b"no")
    assert "no causal language model could be loaded" in message(models.load, str(path))


def test_code_in_a_folder_is_not_run(tmp_path):
    path, marker = Path(tiny_lm.folder(tmp_path / "m")), tmp_path / "ran"
    (path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass C: pass\n")
    text = (path / "config.json").read_text().replace('"llama"', '"strange"')
    text = text.replace("{", '{"auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C"},', 1)
    (path / "config.json").write_text(text)
    assert "no causal language model could be loaded" in message(models.load, str(path))
    assert not marker.exists()


def test_the_pieces_of_a_text_are_the_text():
    tokenizer = tiny_lm.tokenizer()
    found, special = pieces.pieces(tokenizer, 300)
    for text in ("Hello wörld\n\tx = 1  # 漢字 🎉", "", " leading", "a<|end|>b"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert b"".join(found[i] for i in ids) == text.encode()
    assert special[:2].all() and not special[2 : len(tokenizer)].any() and found[0] == b"<|end|>"


def test_the_pieces_of_sentencepiece_are_the_text():
    import tokenizers
    import transformers

    vocabulary = {"<unk>": 0, "▁": 1, "▁a": 2, "b": 3, "<0xC3>": 4, "<0xA9>": 5, "\n": 6, "a": 7}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>", byte_fallback=True))
    made.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    parts = [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    made.decoder = tokenizers.decoders.Sequence(parts)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
    found, special = pieces.pieces(tokenizer, 10)
    text = "b a é\nb"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert b"".join(found[i] for i in ids) == text.encode() and 0 not in ids
    assert special.tolist() == [True] + [False] * 7 + [True] * 2 and found[8:] == [b"", b""]


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "language models need torch" in message(extra.library, "torch")
    assert "pip install -e '.[lm]'" in message(models.load, "anything")

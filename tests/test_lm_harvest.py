"""A harvest: rows are the model's activations on their tokens, and a harvest that stopped goes on bit for bit."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="a harvest needs torch: pip install -e '.[lm]'")
pytest.importorskip("transformers", reason="a harvest needs transformers: pip install -e '.[lm]'")

import tiny_lm  # noqa: E402
from hub_server import Hub  # noqa: E402

import sae  # noqa: E402
from sae import Activations, UserError  # noqa: E402
from sae.cli import main as cli  # noqa: E402
from sae.data import harvested  # noqa: E402
from sae.lm import models  # noqa: E402

HOOKS = ("resid-post", "mlp-out")
HOW = {"layer": (0, 1), "hook": HOOKS, "tokens": 1_200, "context": 16, "held_out_fraction": 0.2, "batch": 3}
NAMES = ("resid-post.0", "resid-post.1", "mlp-out.0", "mlp-out.1")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, and a folder of twenty texts."""
    folder = tmp_path_factory.mktemp("lm")
    tiny_lm.folder(folder / "model")
    tiny_lm.folder(folder / "gpt2", "gpt2", bos=True)
    (folder / "docs").mkdir()
    words = Path(tiny_lm.__file__).read_text().split()
    for i in range(20):
        (folder / "docs" / f"{i}.txt").write_text(" ".join(words[5 * i : 5 * i + 40]))
    return folder


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr("sae.lm.harvesting.SHARD_ROWS", 16 * 8)


@pytest.fixture(scope="module")
def one(place):
    return models.load(place / "model")


@pytest.fixture(scope="module")
def whole(place, one, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sae.lm.harvesting.SHARD_ROWS", 16 * 8)
        return run(one, place, tmp_path_factory.mktemp("whole") / "acts")


def run(one, place, out, **changes):
    lines: list[str] = []
    found = sae.lm.harvest(one, place / "docs", out, say=lines.append, **HOW | changes)
    run.lines = lines
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))} | {
        "card": re.sub(rb'"checksum.*', b"", (folder / "card.json").read_bytes())
    }


def message(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    return str(caught.value)


def test_every_row_is_the_activation_of_its_token(whole, one):
    assert whole.hooks == NAMES and whole.context == 16
    assert whole.card["revision"] == one.identity and whole.card["complete"]
    for split in ("train", "held-out"):
        part = whole.part(split)
        found = one.activations(part.ids, NAMES)
        for hook in NAMES:
            wanted = found[hook].numpy()[part.context, part.position]
            np.testing.assert_allclose(part.rows(hook)[:].astype(np.float32), wanted, rtol=2e-3, atol=2e-3)
        assert (part.position >= 1).all() and (part.documents[part.context, part.position] >= 0).all()
    total = sum(whole.part(split).n_rows for split in ("train", "held-out"))
    assert 1_200 <= total < 1_200 + 16


def test_documents_are_whole_and_on_one_side(whole, place):
    table = whole.documents
    assert set(table["split"]) == {"train", "held-out"} and table["name"].is_unique
    assert set(table["kind"]) == {"txt"} and set(table["corpus"]) == {str(place / "docs")}
    for split in ("train", "held-out"):
        part = whole.part(split)
        inside = np.unique(part.documents[part.documents >= 0])
        assert (table["split"][inside] == split).all()
        for number in inside[:3]:
            text = b"".join(whole.pieces[i] for i in part.ids[part.documents == number])
            assert (place / "docs" / table["name"][number]).read_bytes().startswith(text) and text
            assert table["n_tokens"][number] == (part.documents == number).sum()


def test_the_unembedding_and_the_pieces_are_there(whole, one):
    assert len(whole.pieces) == 300 and whole.unembedding().shape == (300, 16)
    np.testing.assert_allclose(whole.unembedding(), one.unembedding(), rtol=1e-3, atol=1e-3)


def test_it_is_a_source(whole, tiny, quiet, tmp_path):
    source = Activations(path=str(whole.path), hook="resid-post.1")
    assert source.load().d_in == 16 and source.load().n_train == whole.part("train").n_rows


class StopError(Exception):
    pass


@pytest.mark.parametrize("stop", ["killed", "full disk"])
@pytest.mark.parametrize("after", [1, 13, 24])
def test_a_harvest_that_stopped_goes_on_bit_for_bit(whole, one, place, tmp_path, monkeypatch, stop, after):
    write, n = harvested._write, 0

    def faulty(path, tensors):
        nonlocal n
        n += 1
        if n > after:
            raise StopError if stop == "killed" else OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, tensors)

    monkeypatch.setattr(harvested, "_write", faulty)
    with pytest.raises(StopError if stop == "killed" else OSError):
        run(one, place, tmp_path / "acts")
    monkeypatch.undo()
    monkeypatch.setattr("sae.lm.harvesting.SHARD_ROWS", 16 * 8)
    if after > 1:
        assert "not complete" in message(harvested.open_folder, tmp_path / "acts")
    calls = []
    activations = models.LanguageModel.activations
    monkeypatch.setattr(models.LanguageModel, "activations", lambda *a: calls.append(1) or activations(*a))
    found = run(one, place, tmp_path / "acts")
    assert files(found.path) == files(whole.path)
    n_batches = sum(-(-8 // 3) for split in ("train", "held-out") for _ in range(found.card["counts"][split]["shards"]))
    assert after < 24 or (len(calls) < n_batches and any("goes on from" in line for line in run.lines))


def test_what_is_complete_is_left_as_it_is(whole, one, place, tmp_path):
    shutil.copytree(whole.path, tmp_path / "acts")
    stamp = (tmp_path / "acts" / "card.json").stat().st_mtime_ns
    run(one, place, tmp_path / "acts")
    assert any("is complete" in line for line in run.lines)
    assert (tmp_path / "acts" / "card.json").stat().st_mtime_ns == stamp


def test_a_folder_of_another_harvest_is_refused(whole, one, place, tmp_path):
    acts = tmp_path / "acts"
    shutil.copytree(whole.path, acts)
    assert "holds another harvest: tokens was 1200, is 999" in message(run, one, place, acts, tokens=999)
    assert "hooks was resid-post.0, resid-post.1" in message(run, one, place, acts, layer=(0,))
    assert "dtype was float16, is bfloat16" in message(run, one, place, acts, dtype="bfloat16")
    other = models.LanguageModel(tiny_lm.model("qwen2"), one.tokenizer, "sha256:1")
    assert "revision was sha256:" in message(run, other, place, acts)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    assert "not empty and holds no harvest" in message(run, one, place, tmp_path / "full")
    assert (tmp_path / "full" / "mine.txt").read_text() == "x"


def test_other_text_in_the_same_place_is_refused(whole, one, place, tmp_path):
    shutil.copytree(whole.path, tmp_path / "acts")
    card = json.loads((tmp_path / "acts" / "card.json").read_text())
    del card["checksum"]
    (tmp_path / "acts" / "card.json").write_text(json.dumps(card | {"complete": False}))
    changed = tmp_path / "there"
    shutil.copytree(place / "docs", changed / "docs")
    for path in (changed / "docs").iterdir():
        path.write_text("other " + path.read_text())
    (tmp_path / "acts" / "card.json").write_text(
        json.dumps(card | {"complete": False, "texts": [str(changed / "docs")]})
    )
    assert "holds a harvest of other text: shard 0" in message(run, one, changed, tmp_path / "acts")


def test_bfloat16_and_a_module_path_and_a_bos_token(place, tmp_path):
    one = models.load(place / "gpt2")
    how = {"hook": ("mlp.act",), "layer": 1, "dtype": "bfloat16", "tokens": 300}
    found = run(one, place, tmp_path / "acts", **how)
    part, name = found.part("train"), "transformer.h.1.mlp.act"
    assert found.hooks == (name,) and found.card["hooks"][name] == found.card["hooks"][name] | {"layer": 1, "d": 64}
    assert part.rows(name).dtype == ml_dtypes.bfloat16 and (part.ids[:, 0] == 1).all()  # <s> begins every context
    wanted = one.activations(part.ids, [name])[name].numpy()[part.context, part.position]
    np.testing.assert_allclose(part.rows(name)[:].astype(np.float32), wanted, rtol=1e-2, atol=1e-2)


def test_values_that_float16_does_not_hold_are_refused(one, place, tmp_path, monkeypatch):
    activations = models.LanguageModel.activations
    large = lambda self, ids, hooks: {name: 1e5 + 0 * value for name, value in activations(self, ids, hooks).items()}
    monkeypatch.setattr(models.LanguageModel, "activations", large)
    assert "at most 65504 in float16; --dtype bfloat16 holds it" in message(run, one, place, tmp_path / "acts")
    run(one, place, tmp_path / "wide", dtype="bfloat16", tokens=300)


def test_special_tokens_in_a_text_are_text(one, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "x.txt").write_text("a<|end|>b " * 40)
    found = run(one, tmp_path, tmp_path / "acts", tokens=100)
    part = found.part("train")
    assert not found.special[part.ids[part.documents >= 0]].any()


def test_too_little_text_and_wrong_settings_are_one_line(one, place, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "x.txt").write_text("few")
    assert "too few for held-out ones" in message(run, one, tmp_path, tmp_path / "acts")
    for changes, text in {
        (("tokens", 0),): "tokens: got 0, allowed: at least 1",
        (("context", 1),): "context: got 1, allowed: at least 2",
        (("context", 500),): "context: got 500, allowed: at most 128 with this model",
        (("first", 16),): "first: got 16, allowed: below the context, 16",
        (("held_out_fraction", 1.0),): "held-out-fraction: got 1, allowed: above 0 and below 1",
        (("dtype", "float32"),): "dtype: got 'float32'",
        (("layer", ()),): "layer: got none with resid-post, allowed: 0 to 2",
        (("layer", 7),): "hook: got 'resid-post.7', allowed: layers 0 to 2",
        (("hook", "resid"),): "hook: got 'resid'",
        (("tokns", 5),): "harvest has no setting 'tokns'; close names: tokens",
    }.items():
        assert text in message(run, one, place, tmp_path / "other", **dict(changes))
    assert not (tmp_path / "other").exists()


def test_a_disk_without_room_is_said_before(one, place, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000))
    assert "are still to be written and the disk has 0 MiB left" in message(run, one, place, tmp_path / "acts")


def test_the_command_line(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(place)
    line = ["harvest", "model", "docs", "--layer", "0", "1", "--hook", *HOOKS, "--tokens", "1200", "--context", "16"]
    line += ["--held-out-fraction", "0.2", "--batch", "3", "-o", str(tmp_path / "acts")]
    assert cli.main([*line, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"[\d,]+ training and [\d,]+ held-out rows at resid-post.0 \[16\]", said) and " MiB" in said
    assert not (tmp_path / "acts").exists()
    assert cli.main(line) == 0
    said = capsys.readouterr().out
    assert "first ones (attention sinks)" in said and "separators" in said and "training and" in said
    assert harvested.open_folder(tmp_path / "acts").card["command"].startswith("sae harvest model docs --layer 0 1")
    for bad, text in {
        ("harvest",): "harvest: got no arguments, allowed: sae harvest MODEL TEXT...",
        ("harvest", "model"): "harvest: got no text",
        ("harvest", "model", "docs", "--leyer", "1"): "harvest has no option '--leyer'; close names: --layer",
        ("harvest", "./modle", "docs", "--layer", "1"): "./modle: no such file or folder; in ., close names: model",
    }.items():
        assert cli.main(list(bad)) == 1
        shown = capsys.readouterr().err
        assert text in shown and shown.count("\n") == 1, shown


def test_a_model_of_the_hub_is_known_by_its_commit(place, tmp_path):
    """In processes of their own, as the hub's address is read when its client is imported."""
    files = {path.name: path.read_bytes() for path in (place / "model").iterdir()}
    with Hub() as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "cache")}
        line = [sys.executable, "-m", "sae.cli", "harvest", "acme/tiny", str(place / "docs"), "--layer", "1"]
        line += ["--tokens", "200", "--context", "16", "-o", str(tmp_path / "acts")]
        call = lambda: subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)
        hub.repos["acme/tiny"] = [("a" * 40, files)]
        assert (first := call()).returncode == 0, first.stderr
        card = harvested.read_card(tmp_path / "acts")
        assert (card["model"], card["revision"]) == ("acme/tiny", "a" * 40)
        hub.repos["acme/tiny"].append(("b" * 40, files))
        assert (again := call()).returncode == 1
        assert f"holds another harvest: revision was {'a' * 40}, is {'b' * 40}" in again.stderr


def test_ctrl_c_keeps_the_shards_that_are_there(place, whole, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(place)
    line = ["harvest", "model", str(place / "docs"), "--layer", "0", "1", "--hook", *HOOKS, "--tokens", "1200"]
    line += ["--context", "16", "--held-out-fraction", "0.2", "--batch", "3", "-o", str(tmp_path / "acts")]
    write, n = harvested._write, 0

    def slow(path, tensors):
        nonlocal n
        write(path, tensors)
        n += 1
        if n == 20:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(harvested, "_write", slow)
    assert cli.main(line) == 130
    assert "stopped by SIGINT; what was done is saved, and the same command goes on" in capsys.readouterr().err
    assert cli.main(line) == 0
    there, wanted = files(tmp_path / "acts"), files(whole.path)
    assert {name: there[name] for name in there if name != "card"} == {k: v for k, v in wanted.items() if k != "card"}

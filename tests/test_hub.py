"""Pushing to and loading from the Hugging Face hub, which is a server on loopback here (tests/hub_server.py)."""

import importlib.util

import numpy as np
import pytest
from hub_server import TOKEN, Hub

import sae
from sae import interop
from sae.cli import main as cli
from sae.interop import hub

needs_hub = pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None,
    reason="huggingface_hub is not installed: pip install -e '.[hub]'",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    members = [sae.replace(tiny, {"n_steps": 20, "activation": a}) for a in (sae.Relu(), sae.BatchTopK(k=5.0))]
    sae.run(sae.Sweep(name="tiny", members=members), out=folder, wandb="off")
    return folder


@pytest.fixture
def server(monkeypatch):
    with Hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def command(capsys, *argv) -> tuple[int, str, str]:
    code = cli.main(["push", *map(str, argv)])
    return code, *capsys.readouterr()


@needs_hub
def test_what_is_pushed_is_loaded_by_folder_and_by_revision(run, server, tmp_path, capsys):
    code, out, err = command(capsys, run, "--member", 0, 1, "me/digits")
    assert code == 0 and 'sae.load_pretrained("hf:me/digits/tiny-1")' in out, err
    first, files = server.repos["me/digits"][-1]
    names = [f"tiny-{i}/{f}" for i in (0, 1) for f in ("README.md", "cfg.json", "sae_weights.safetensors",
                                                       "sparsity.safetensors")]  # fmt: skip
    assert sorted(files) == sorted([*names, "README.md"]), "SAELens' layout: a folder for each"
    card = files["tiny-1/README.md"].decode()
    assert 'SAE.from_pretrained("me/digits", "tiny-1")' in card and 'sae.load_pretrained("hf:me/digits/tiny-1")' in card
    results, cache = sae.load(run), tmp_path / "cache"
    x = results.data(0).held_out[:]
    for member in (0, 1):
        theirs = sae.load_pretrained(f"hf:me/digits/tiny-{member}", cache_dir=cache)
        np.testing.assert_allclose(theirs.encode(x), results.sae(member).encode(x), atol=1e-4)

    assert command(capsys, run, "--member", 1, "--name", "tiny-0", "me/digits")[0] == 0  # another autoencoder there
    server.tags["me/digits", "v1"] = first
    latents = lambda place: np.asarray(sae.load_pretrained(place, cache_dir=cache).encode(x))
    np.testing.assert_allclose(latents("hf:me/digits/tiny-0"), results.sae(1).encode(x), atol=1e-4)
    for revision in ("v1", first):
        np.testing.assert_allclose(latents(f"hf:me/digits/tiny-0@{revision}"), results.sae(0).encode(x), atol=1e-4)
    with pytest.raises(sae.UserError, match="no folder; allowed: tiny-0, tiny-1"):
        sae.load_pretrained("hf:me/digits", cache_dir=cache)
    with pytest.raises(sae.UserError, match="no autoencoder 'tiny-3'; close names: tiny-1, tiny-0"):
        sae.load_pretrained("hf:me/digits/tiny-3", cache_dir=cache)


@needs_hub
def test_a_repository_of_one_needs_no_folder_and_a_second_load_gets_no_weights(run, server, tmp_path, capsys):
    assert command(capsys, run, "--member", 0, "me/one", "--metadata", "model_name=digits")[0] == 0
    one = sae.load_pretrained("hf:me/one", cache_dir=tmp_path)
    server.asked.clear()
    again = sae.load_pretrained("hf:me/one", cache_dir=tmp_path)
    assert not any(line.startswith("GET") and "safetensors" in line for line in server.asked)
    np.testing.assert_array_equal(one.W_enc[...], again.W_enc[...])


@needs_hub
@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("hf:me/nothing", "no such repository, or HF_TOKEN does not open it"),
        ("hf:me/empty@v9", "the repository has no such revision"),
        ("hf:me/empty", "it holds none in a format of sae.interop"),
        ("hf:me/evil", "it holds none in a format"),
        ("hf:me/broken", "saelens: .*not a whole .safetensors file"),
    ],
)
def test_what_the_hub_lacks_is_said_in_one_line(server, tmp_path, place, says):
    server.repos["me/empty"] = [("1" * 40, {"README.md": b"none"})]
    server.repos["me/evil"] = [("2" * 40, {"../../sae_weights.safetensors": b"x", "../cfg.json": b"{}"})]
    server.repos["me/broken"] = [("3" * 40, {"cfg.json": b"{}", "sae_weights.safetensors": b"\x80\x04cos\nsystem\n"})]
    with pytest.raises(sae.UserError, match=says) as error:
        sae.load_pretrained(place, cache_dir=tmp_path / "cache")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "cfg.json").exists()


@needs_hub
def test_a_hub_that_does_not_answer_and_a_wrong_token_are_one_line(run, server, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    code, _, err = command(capsys, run, "--member", 0, "me/digits")
    assert code == 1 and "set HF_TOKEN" in err and len(err.splitlines()) == 1 and "hf_wrong" not in err, err
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(sae.UserError, match="the hub did not answer as asked"):
        sae.load_pretrained("hf:me/digits", cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--member", 0, "digits"), "repository: got 'digits', allowed: OWNER/NAME"),
        (("me/digits",), "member: got none, allowed: one or more of 0-1"),
        (("--member", 0, "me/digits", "--name", "../x"), "name: got '../x', allowed: letters, digits and _.-"),
        (("--member", 0, 1, "--name", "x", "me/digits"), "name: got 'x' for 2 members"),
    ],
)
def test_push_says_in_one_line_what_is_wrong(run, capsys, argv, says):
    code, _, err = command(capsys, run, *argv)
    assert code == 1 and says in err and len(err.splitlines()) == 1, err


@pytest.mark.parametrize("place", ["hf:a", "hf:a/../b", "hf:a/b/..", "hf:a/b@x/../y", "hf:/a/b", "hf:a/b c"])
def test_a_place_never_leads_out_of_its_repository(place):
    with pytest.raises(sae.UserError, match="allowed: hf:OWNER/NAME"):
        sae.load_pretrained(place)


def test_a_folder_needs_no_network_and_no_huggingface_hub(run, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_hub", lambda: pytest.fail("it asked the hub"))
    one = sae.load(run).sae(0)
    folder = interop.save(one, tmp_path / "one")
    x = np.ones((3, 64), np.float32)
    np.testing.assert_allclose(sae.load_pretrained(folder)(x), one(x), atol=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("huggingface_hub") is not None, reason="huggingface_hub is installed")
def test_without_huggingface_hub_one_line_says_what_to_install():
    with pytest.raises(sae.UserError, match=r"pip install -e '.\[hub\]', or load from a folder"):
        sae.load_pretrained("hf:me/digits")

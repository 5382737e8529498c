"""The folder of a harvest: what is written comes back, rows and tokens belong together, a fault is one line."""

import json
import shutil

import ml_dtypes
import numpy as np
import pandas as pd
import pytest
import safetensors.numpy

import sae
from sae import Activations, Arrays, Crosscoder, Transcoder, UserError
from sae.data import harvested
from sae.data.feed import Feed
from sae.experiment import validate
from sae.study import definition_files

D, CONTEXT = 6, 8
PIECES = [b"<s>", b"a", b" b", "é".encode()[:1], "é".encode()[1:]]


def tokens(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """n contexts of two documents with a separator between them; the last context is padded."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, len(PIECES), (n, CONTEXT)).astype(np.int32)
    documents = np.full(ids.shape, 2 * seed, np.int32)
    documents[:, 5:] = 2 * seed + 1
    ids[:, 4], documents[:, 4] = 0, -1
    ids[-1, 6:], documents[-1, 6:] = -1, -1
    return ids, documents


def folder(path, dtype="float16", hooks=("resid-post.1", "mlp-out.1"), **more):
    contexts = {"train": tokens(9, 0), "held-out": tokens(2, 1)}
    rng, rows = np.random.default_rng(0), {}
    for split, (_, owners) in contexts.items():
        n = len(harvested.kept(owners, 1)[0])
        rows[split] = {
            hook: rng.normal(3, 20, (n, D + i)).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
            for i, hook in enumerate(hooks)
        }
    table = pd.DataFrame(
        {"name": ["a", "b", "c", "d"], "corpus": "x", "kind": "txt", "split": ["train"] * 2 + ["held-out"] * 2,
         "n_tokens": [36, 25, 8, 4]}
    )  # fmt: skip
    card = {"model": "tiny", "revision": "abc"} | more
    made = harvested.write(path, contexts=contexts, rows=rows, documents=table, pieces=PIECES, **card)
    return made, contexts, rows


def message(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_is_written_comes_back_over_shards(tmp_path, dtype):
    W = np.arange(10, dtype=np.float32).reshape(5, 2)
    made, contexts, rows = folder(tmp_path / "acts", dtype, unembedding=W)
    assert made.hooks == ("resid-post.1", "mlp-out.1") and made.width("mlp-out.1") == D + 1 and made.context == CONTEXT
    assert made.pieces == PIECES and not made.special.any() and list(made.documents["n_tokens"]) == [36, 25, 8, 4]
    np.testing.assert_array_equal(made.unembedding(), W)
    for split, n_shards in (("train", 3), ("held-out", 1)):  # 9 and 2 contexts, 4 in a shard
        part, (ids, documents) = made.part(split), contexts[split]
        assert made.card["counts"][split] == {"contexts": len(ids), "rows": part.n_rows, "shards": n_shards}
        np.testing.assert_array_equal(part.ids, ids)
        np.testing.assert_array_equal(part.documents, documents)
        for hook in made.hooks:
            got = part.rows(hook)
            assert got.dtype == dtype and got.shape == rows[split][hook].shape
            np.testing.assert_array_equal(got[:].astype(np.float32), rows[split][hook].astype(np.float32))


def test_a_row_belongs_to_a_token_of_a_document_that_is_not_first(tmp_path):
    made, contexts, _ = folder(tmp_path / "acts")
    part, (_, documents) = made.part("train"), contexts["train"]
    where = [(c, t) for c in range(9) for t in range(CONTEXT) if t >= 1 and documents[c, t] >= 0]  # in text order
    assert list(zip(part.context.tolist(), part.position.tolist(), strict=True)) == where
    assert part.n_rows == 9 * 6 - 2 and (part.ids[part.context, part.position] > 0).all()
    for i, (c, t) in enumerate(where):
        assert part.row[c, t] == i
    assert (part.row >= 0).sum() == part.n_rows


def test_the_card_has_the_statistics_of_training_rows(tmp_path):
    made, _, rows = folder(tmp_path / "acts")
    for hook in made.hooks:
        x = rows["train"][hook].astype(np.float64)
        norms, card = np.sqrt((x**2).sum(1)), made.card["hooks"][hook]
        np.testing.assert_allclose(card["mean_norm"], norms.mean(), rtol=1e-12)
        np.testing.assert_allclose(card["mean_square"], (norms**2).mean(), rtol=1e-12)
        np.testing.assert_allclose(card["max_norm"], norms.max(), rtol=1e-12)
        np.testing.assert_allclose(made.mean(hook), x.mean(0), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_activations_are_the_rows_and_held_out_example_i_is_row_i(tmp_path, dtype):
    _, _, rows = folder(tmp_path / "acts", dtype)
    source = Activations(path=str(tmp_path / "acts"), hook="mlp-out.1")
    data = source.load()
    x = rows["train"]["mlp-out.1"].astype(np.float64)
    scale = np.sqrt(D + 1) / np.linalg.norm(x, axis=1).mean()  # the default: the mean norm becomes sqrt(d)
    np.testing.assert_allclose(data.training_examples(), x * scale, rtol=1e-5)
    assert np.linalg.norm(data.training_examples(), axis=1).mean() == pytest.approx(np.sqrt(D + 1), rel=1e-5)
    held_out = np.concatenate([np.asarray(x).T for x in Feed(data, 0, 1, 1).held_out()])
    np.testing.assert_allclose(held_out, rows["held-out"]["mlp-out.1"].astype(np.float64) * scale, rtol=1e-5)
    streamed, resident = (Feed(data, 3, 8, 200, resident_bytes=n) for n in (0, 2**31))
    np.testing.assert_array_equal(streamed.block(5).batches(5), resident.block(5).batches(5))
    assert source.harvested().part("held-out").n_rows == len(held_out)


def test_two_hooks_are_a_transcoder_and_several_a_crosscoder(tmp_path, tiny):
    hooks = ("mlp-in.1", "mlp-out.1", "resid-post.1")
    _, _, rows = folder(tmp_path / "acts", hooks=hooks)
    path = str(tmp_path / "acts")
    data = Activations(path=path, hook=("mlp-out.1", "mlp-in.1"), normalize="none").load()  # in the order asked for
    assert data.parts == (D + 1, D)
    wanted = [rows["train"][hook].astype(np.float32) for hook in ("mlp-out.1", "mlp-in.1")]
    np.testing.assert_array_equal(data.training_examples(), np.concatenate(wanted, axis=1))
    for task, some in ((Transcoder(), hooks[:2]), (Crosscoder(), hooks)):
        changes = {"task": task, "apply_b_dec_to_input": False, "data": Activations(path=path, hook=some)}
        validate(sae.replace(tiny, changes))
        assert task.shapes(changes["data"].load().parts)


def test_it_trains_from_a_definition_beside_the_folder_and_not_on_other_rows(tmp_path, tiny, quiet):
    folder(tmp_path / "acts")
    one = sae.replace(tiny, {"data": Activations(path=str(tmp_path / "acts"), hook="resid-post.1"), "d_sae": 16,
                             "batch_size": 16, "n_steps": 20})  # fmt: skip
    results = sae.run(one, out=str(tmp_path / "run"), console=quiet)
    assert results.members["eval/fvu"].between(0, 2).all() and results.sae(0).W_dec.shape == (16, D)
    assert results.data(0).d_in == D
    shutil.rmtree(tmp_path / "acts")
    folder(tmp_path / "acts", revision="another")
    assert "model: was abc, is another" in message(sae.load(tmp_path / "run").data, 0)


def test_a_path_in_a_file_is_beside_it(tmp_path):
    folder(tmp_path / "acts", hooks=("resid-post.1",))
    text = 'from sae import *\nexperiment = Experiment(name="q", data=Activations(path="acts"), d_sae=8, n_steps=4)\n'
    (tmp_path / "q.py").write_text(text)
    data = definition_files.load_file(tmp_path / "q.py").data
    assert data.load().d_in == D and data.hooks() == ("resid-post.1",)


def test_a_hook_that_is_not_there_names_those_that_are(tmp_path):
    made, _, _ = folder(tmp_path / "acts")
    path = str(tmp_path / "acts")
    assert "holds 2 hooks; set hook to one of: resid-post.1, mlp-out.1" in message(Activations(path=path).load)
    typo = message(Activations(path=path, hook="resid_post.1").load)
    assert "hook: got 'resid_post.1', close names: resid-post.1" in typo
    assert "hook: got none, allowed: one or more of" in message(Activations(path=path, hook=()).load)
    assert "part: got 'test', allowed: train, held-out" in message(made.part, "test")


def test_what_is_no_harvest_is_one_line(tmp_path):
    folder(tmp_path / "acts")
    assert "no such file or folder; in" in message(harvested.open_folder, str(tmp_path / "act"))
    assert "close names: acts" in message(harvested.open_folder, str(tmp_path / "act"))
    assert "without card.json" in message(harvested.open_folder, tmp_path)
    assert "a file, allowed" in message(harvested.open_folder, tmp_path / "acts" / "card.json")
    assert "allowed: Activations(path=" in message(Arrays(path=str(tmp_path / "acts")).load)


def edited(path, **changes):
    card = json.loads((path / "card.json").read_text())
    del card["checksum"]  # as somebody does who edits it by hand
    (path / "card.json").write_text(json.dumps(card | changes))


def test_a_harvest_that_is_not_complete_says_how_it_goes_on(tmp_path):
    folder(tmp_path / "acts")
    edited(tmp_path / "acts", complete=False, command="sae harvest m t")
    line = message(harvested.open_folder, tmp_path / "acts")
    assert "not complete (4 shards so far); the same command goes on: sae harvest m t" in line


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format": 2}, "format 2, allowed: 1; a newer version"),
        ({"hooks": {"../../etc": {"d": 3}}}, "hook '../../etc'"),
        ({"hooks": {"..": {"d": 3}}}, "hook '..'"),
        ({"hooks": {"contexts": {"d": 3}}}, "hook 'contexts'"),
        ({"hooks": {}}, "no hooks"),
        ({"counts": {"train": {}}}, "counts"),
        ({"dtype": "object"}, "dtype"),
        ({"context": -3}, "context"),
    ],
)
def test_a_card_that_leads_astray_is_refused(tmp_path, changes, text):
    folder(tmp_path / "acts")
    edited(tmp_path / "acts", **changes)
    assert text in message(harvested.open_folder, tmp_path / "acts")


def test_a_damaged_folder_says_which_file(tmp_path):
    def damaged(change):
        shutil.rmtree(tmp_path / "acts", ignore_errors=True)
        folder(tmp_path / "acts")
        change(tmp_path / "acts")
        return message(harvested.open_folder, tmp_path / "acts")

    assert "00001.safetensors is missing" in damaged(lambda p: (p / "train/mlp-out.1/00001.safetensors").unlink())
    shards = ["train/contexts/00000.safetensors", "train/contexts/00002.safetensors"]
    assert "its shards hold 12 contexts" in damaged(lambda p: shutil.copy(p / shards[0], p / shards[1]))
    shards = ["train/mlp-out.1/00000.safetensors", "train/mlp-out.1/00002.safetensors"]
    assert "its shards hold 72 rows and card.json counts 52" in damaged(
        lambda p: shutil.copy(p / shards[0], p / shards[1])
    )
    cut = damaged(lambda p: (p / shards[0]).write_bytes((p / shards[0]).read_bytes()[:-9]))
    assert "not a whole .safetensors file" in cut or "is damaged" in cut
    other = lambda p: (
        shutil.rmtree(p / "train/mlp-out.1") or shutil.copytree(p / "train/resid-post.1", p / "train/mlp-out.1")
    )
    assert "its rows are 6 wide and card.json says 7" in damaged(other)


def test_a_shard_is_only_there_when_all_of_it_is(tmp_path):
    folder(tmp_path / "acts")
    hooks = ("resid-post.1", "mlp-out.1")
    assert harvested.done_shards(tmp_path / "acts", "train", hooks) == [0, 1, 2]
    (tmp_path / "acts/train/mlp-out.1/00001.safetensors").unlink()
    assert harvested.done_shards(tmp_path / "acts", "train", hooks) == [0]


def test_rows_and_tokens_that_disagree_are_not_written(tmp_path):
    ids, documents = tokens(2, 0)
    with pytest.raises(ValueError, match="3 rows, allowed: 10"):
        harvested.write_shard(tmp_path, "train", 0, ids, documents, {"h": np.ones((3, 2))}, start=0, first=1)


def test_safetensors_reads_what_is_written(tmp_path):
    made, _, rows = folder(tmp_path / "acts")
    there = safetensors.numpy.load_file(tmp_path / "acts/train/resid-post.1/00000.safetensors")
    np.testing.assert_array_equal(there["rows"], rows["train"]["resid-post.1"][: len(there["rows"])])
    assert made.path == tmp_path / "acts"

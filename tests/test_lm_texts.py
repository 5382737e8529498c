"""Texts and contexts: which documents there are, where each goes, and that nothing is lost or mixed."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sae import UserError
from sae.lm.contexts import Packing, contexts, drawn
from sae.lm.texts import Corpus

PACKING = Packing(context=8, pack=True, first=1, held_out_fraction=0.2, tokens=10**6, prefix=(), separator=0)


def message(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)


def tokenize(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def documents(text, seed=0):
    return list(Corpus(str(text), seed).documents())


def corpus(folder: Path, texts: list[str]) -> Corpus:
    """A .jsonl file keeps its order, which makes these tests short."""
    path = folder / "x.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Corpus(str(path), 0)


def test_a_folder_gives_its_text_files_and_says_what_it_left_out(tmp_path):
    inside = tmp_path / "docs"
    (inside / "a" / ".git").mkdir(parents=True)
    for name, data in {
        "one.txt": b"one", "a/two.PY": "zwei ä".encode(), "empty.txt": b" \n", "binary.png": b"\x89PNG\0\0",
        "latin.txt": "é".encode("latin-1"), "a/.git/config": b"hidden", ".hidden": b"hidden", "none": b"bare",
    }.items():  # fmt: skip
        (inside / name).write_bytes(data)
    (tmp_path / "secret.txt").write_text("outside")
    (inside / "link.txt").symlink_to(tmp_path / "secret.txt")
    (inside / "away").symlink_to(tmp_path)
    found = Corpus(str(inside), 0)
    got = {(one.name, one.kind, one.text) for one in found.documents()}
    assert got == {("one.txt", "txt", "one"), ("a/two.PY", "py", "zwei ä"), ("none", "", "bare")}
    assert found.left_out() == "1 empty document and 2 files that held no UTF-8 text"


def test_the_seed_decides_the_order_of_files_and_lines_keep_theirs(tmp_path):
    (tmp_path / "docs").mkdir()
    for i in range(20):
        (tmp_path / "docs" / f"{i:02d}.txt").write_text(f"text {i}")
    orders = [[one.name for one in documents(tmp_path / "docs", seed)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == sorted(orders[2]) != orders[0]
    lines = documents(corpus(tmp_path, ["b", "a"]).path)
    assert [(one.name, one.text) for one in lines] == [("x.jsonl:1", "b"), ("x.jsonl:2", "a")]


def test_a_field_of_jsonl_is_named_after_a_colon(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"body": "a", "n": 1}\n\n{"body": "b"}\n')
    assert [one.text for one in documents(f"{path}:body")] == ["a", "b"]
    assert "line 1 has no text 'text'; allowed: body, n" in message(documents, path)
    assert "line 1 has no text 'bodi'; close names: body" in message(documents, f"{path}:bodi")
    path.write_text("[1]\n")
    assert "line 1 has no text 'text'; it is no object" in message(documents, path)
    path.write_text("{")
    assert "line 1 is no JSON" in message(documents, path)


def test_what_is_no_text_is_one_line(tmp_path):
    (tmp_path / "docs").mkdir()
    assert "docs: no text in it (it is empty)" in message(documents, tmp_path / "docs")
    (tmp_path / "docs" / "x.bin").write_bytes(b"\0")
    assert "no text in it (1 file that held no UTF-8 text)" in message(documents, tmp_path / "docs")
    assert "no UTF-8 text (it is binary)" in message(documents, tmp_path / "docs" / "x.bin")
    assert "no such file or folder; in" in message(Corpus, str(tmp_path / "dosc"), 0)
    assert "close names: docs" in message(Corpus, str(tmp_path / "dosc"), 0)
    assert "no such file" in message(Corpus, str(tmp_path / "nothing.jsonl:text"), 0)


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_a_data_set_is_streamed(tmp_path, monkeypatch, form):
    pytest.importorskip("datasets", reason="hf:NAME needs datasets: pip install -e '.[lm]'")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    table = pd.DataFrame({"text": ["a", "", "c"], "other": ["x", "y", "z"], "n": [1, 2, 3]})
    if form == "parquet":
        table.to_parquet(tmp_path / "set" / "train.parquet")
    else:
        table.to_json(tmp_path / "set" / "train.jsonl", orient="records", lines=True)
    place = f"hf:{tmp_path / 'set'}"
    found = Corpus(place, 0)
    assert [(one.text, one.kind) for one in found.documents()] == [("a", "hf"), ("c", "hf")] and found.empty == 1
    assert [one.text for one in documents(f"{place}:train:other")] == ["x", "y", "z"]
    assert "no column of text 'txt'" in message(documents, f"{place}:train:txt")
    assert "close names: text" in message(documents, f"{place}:train:txt")
    assert "no data set could be read" in message(documents, f"{place}:test")
    assert "no data set could be read" in message(documents, f"hf:{tmp_path / 'nowhere'}")


def test_packed_contexts_hold_every_token_once_and_in_order(tmp_path):
    texts = ["abcdefghij", "klm", "nopqrstuvwxyz", "ABCDE", "FG", "HIJKLMNOP", "QRSTUVW", "xyz"]
    every = list(contexts(corpus(tmp_path, texts), tokenize, PACKING))
    for split in ("train", "held-out"):
        mine = [one for one in every if one.split == split]
        ids, owners = (np.concatenate([getattr(one, name) for one in mine]) for name in ("ids", "documents"))
        assert (owners[ids <= 0] == -1).all() and (owners[ids > 0] >= 0).all()
        numbers = list(dict.fromkeys(owners[owners >= 0].tolist()))
        assert numbers == sorted(numbers) and numbers
        for number in numbers:  # every document is whole, and in one split
            assert "".join(map(chr, ids[owners == number])) == texts[number]
        inner = ids[ids >= 0]
        assert 0 < (inner == 0).sum() < len(numbers)  # between documents; none where a context ends between them
        assert all(one.ids[0] > 0 and len(one.ids) == 8 for one in mine) and not any(
            (one.ids == -1).any() for one in mine[:-1]
        )
    splits = {number: one.split for one in every for number in one.named}
    assert len(splits) == len(texts) and list(splits.values()).count("held-out") >= 1


def test_the_share_that_is_held_out_is_near_what_is_asked_at_every_moment(tmp_path):
    rng = np.random.default_rng(0)
    texts = ["x" * int(n) for n in rng.integers(1, 40, 400)]
    held = np.array([one.split == "held-out" for one in contexts(corpus(tmp_path, texts), tokenize, PACKING)])
    assert held.mean() == pytest.approx(0.2, abs=0.02)
    assert held[:200].mean() == pytest.approx(0.2, abs=0.05)


def test_a_document_has_contexts_of_its_own_where_nothing_is_packed(tmp_path):
    packing = Packing(context=4, pack=False, first=1, held_out_fraction=0.2, tokens=10**6, prefix=(9,), separator=0)
    every = list(contexts(corpus(tmp_path, ["abcdefg", "h", "ij", "k", "l", "m", "n"]), tokenize, packing))
    assert all(len(one.named) == 1 and one.ids[0] == 9 and one.documents[0] == -1 for one in every)
    first = [one.ids.tolist() for one in every if 0 in one.named]
    a = ord("a")
    assert first == [[9, a, a + 1, a + 2], [9, a + 3, a + 4, a + 5], [9, a + 6, -1, -1]]
    without = Packing(context=4, pack=False, first=2, held_out_fraction=0.2, tokens=10**6, prefix=(9,), separator=0)
    again = list(contexts(corpus(tmp_path, ["abcdefg", "h", "ij", "k", "l", "m", "n"]), tokenize, without))
    assert all((one.ids >= 0).sum() >= 3 for one in again)  # one that keeps no row is left out


@pytest.mark.parametrize("texts", [["x" * 200], ["x" * 100, "y" * 99]])
def test_the_last_contexts_are_held_out_where_there_are_too_few_documents(tmp_path, texts):
    notes = []
    every = list(contexts(corpus(tmp_path, texts), tokenize, PACKING, notes.append))
    assert len(notes) == 1 and "too few to keep some apart; the last contexts are held out" in notes[0]
    train, held = ([one for one in every if one.split == split] for split in ("train", "held-out"))
    assert len(held) == round(0.2 * len(every))
    text = "".join(chr(i) for one in [*train, *held] for i in one.ids if i > 0)
    assert text == "".join(texts)  # those that are held out follow the others
    place = [i for i, one in enumerate(every) if one.split == "held-out"]
    assert place[0] < 5 and place[-1] > len(every) - 5, "they come among the others, for a budget that ends before"


def test_corpora_share_the_rows_and_the_budget_ends_them(tmp_path):
    def stream(name: str, n: int):
        folder = tmp_path / name
        folder.mkdir()
        return contexts(corpus(folder, [name * 30] * n), tokenize, packing)

    packing = Packing(context=8, pack=True, first=1, held_out_fraction=0.2, tokens=300, prefix=(), separator=None)
    found = list(drawn([stream("a", 50), stream("b", 50)], packing))
    rows = [sum(7 for which, _ in found if which == one) for one in (0, 1)]
    assert rows[0] + rows[1] == 301 and abs(rows[0] - rows[1]) <= 7
    found = list(drawn([stream("c", 1), stream("d", 50)], packing))  # one ends: the other gives what is missing
    assert sum(7 for which, _ in found if which == 1) > 250


def test_the_same_texts_give_the_same_contexts(tmp_path):
    one, two = (list(contexts(corpus(tmp_path, ["abc" * 20, "de" * 9] * 9), tokenize, PACKING)) for _ in range(2))
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)
        assert a.split == b.split

"""Labels by hand and by Python itself; probes against scikit-learn; Probing on rows that hold known labels."""

import inspect
import io
import keyword
import tokenize

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_harvest
from sklearn.linear_model import LogisticRegression

import sae
from sae import Activations, Adam, Digits, Experiment, Relu, Sae, Sweep, UserError
from sae.analysis import members
from sae.analysis.ask import Data
from sae.lm import labels, probes, probing
from sae.lm.labels import KINDS, TASKS
from sae.lm.probes import Problems
from sae.lm.probing import Probing

PROSE = b'He said "It is 5 (five)" to Ann.\n\nThen (all of\n\nit "was gone, A 7'
SOURCE = inspect.getsource(labels).encode()


def prose(seed: int, n: int = 60) -> bytes:
    rng = np.random.default_rng(seed)
    words = ["tall", "Ann", "5", "(see", "7)", '"I', 'am"', "red", "Bob,", "no.", "who", "Zoe", "12", "\n\nso"]
    return " ".join(rng.choice(words, n)).encode()


def documents(n: int = 9):
    lines = SOURCE.split(b"\n")
    code = [b"\n".join(lines[i * 12 : i * 12 + 24]) for i in range(n)]
    some = [(f"{i}.py", "code", "py", text) for i, text in enumerate(code)]
    some += [(f"{i}.txt", "prose", "txt", prose(i)) for i in range(n)]
    return [(name, corpus, kind, "train" if i % 3 == 0 else "held-out", text) for i, (name, corpus, kind, text) in
            enumerate(some)]  # fmt: skip


PLANTED = ("digit", "next_capital", "python_name", "corpus_0")


def rows(split, made, found):
    """Dimension 3 i + 1 is 1 where the planted label i is, and all others are noise."""
    rng = np.random.default_rng(len(found.documents))
    x = rng.normal(size=(len(found.documents), 12))
    for i, task in enumerate(PLANTED):
        x[:, 3 * i + 1] = 8 * (found[task] == 1) + 0.1 * rng.normal(size=len(x))
    return x.astype(np.float16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_harvest.write(tmp_path_factory.mktemp("acts") / "acts", documents(), rows)


def of_text(tmp_path, text, kind="txt", first=0):
    """The labels of the tokens of one held-out document, by task, and its tokens."""
    pair = [("a", "one", kind, split, text) for split in ("train", "held-out")]
    made = tiny_harvest.write(tmp_path / kind, pair, lambda split, made, found: np.arange(
        2 * len(found.documents)).reshape(-1, 2).astype(np.float16), first=first)  # fmt: skip
    return labels.labels(made, made.part("held-out")), tiny_harvest.tokens(text)


def test_labels_of_prose_by_hand(tmp_path):
    found, pieces = of_text(tmp_path, PROSE)
    assert pieces[:12] == [b"He", b" said", b' "', b"It", b" is", b" 5", b" (", b"five", b')"', b" to", b" Ann", b"."]
    first = lambda task: found[task][:12].tolist()
    assert first("digit") == [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert first("capital") == [1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    assert first("punctuation") == [0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 1]
    assert first("word_start") == [1, 1, 0, 1, 1, 0, 0, 1, 0, 1, 1, 0]
    assert first("brackets") == [0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0]
    assert first("quotes") == [0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
    for name in labels.OF_TOKEN:
        np.testing.assert_array_equal(found[f"next_{name}"][:-1], found[name][1:])
        assert found[f"next_{name}"][-1] == -1  # nothing follows
    tail = {piece: (found["brackets"][i], found["quotes"][i]) for i, piece in enumerate(pieces[12:], 12)}
    assert tail[b" of"] == (1, 0) and tail[b"it"] == (0, 0) and tail[b"was"] == (0, 1)  # a blank line closes both
    assert (found["python_name"] == -1).all() and (found["python_document"] == 0).all()
    assert (found["corpus_0"] == 1).all() and (found["corpus_1"] == -1).all()


def test_a_word_that_runs_on_has_no_second_start(tmp_path):
    found, pieces = of_text(tmp_path, b"wonderful x_one 2nd (yes)")
    started = [piece for piece, is_start in zip(pieces, found["word_start"], strict=True) if is_start]
    assert pieces[:3] == [b"wond", b"erfu", b"l"]
    assert started == [b"wond", b" x", b"yes"]


def test_python_kinds_by_hand(tmp_path):
    found, pieces = of_text(tmp_path, b'if x1 == "a b":  # one b\n    return 5\n', "py")
    got = np.max([kind * (found[f"python_{name}"] == 1) for name, kind in KINDS.items()], axis=0)
    by_piece = dict(zip(pieces, got, strict=True))
    assert by_piece[b"if"] == by_piece[b" retu"] == by_piece[b"rn"] == KINDS["keyword"]
    assert by_piece[b" x"] == by_piece[b"1"] == KINDS["name"]
    assert by_piece[b" =="] == KINDS["operator"] and by_piece[b' "'] == by_piece[b"a"] == KINDS["string"]
    assert by_piece[b" #"] == by_piece[b" one"] == KINDS["comment"] and by_piece[b" 5"] == KINDS["number"]
    assert by_piece[b"\n"] == 0
    assert (found["quotes"] == -1).all()


@pytest.mark.parametrize("size", [1, 3, 7])
def test_python_kinds_are_what_tokenize_says_of_a_real_file(size):
    """Every piece of this module's own source, of a fixed size, has the kind of what covers its first character."""
    text = SOURCE.decode()
    assert text.isascii()
    starts = np.cumsum([0, *map(len, text.splitlines(keepends=True))])
    covering = [None] * len(text)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = labels.NAMED.get(tokenize.tok_name[token.type])
        kind = "keyword" if kind == "name" and keyword.iskeyword(token.string) else kind
        begin, end = starts[token.start[0] - 1] + token.start[1], starts[token.end[0] - 1] + token.end[1]
        covering[begin:end] = [kind] * (min(end, len(text)) - begin)
    pieces = [SOURCE[i : i + size] for i in range(0, len(SOURCE), size)]
    got = labels.python_kinds(pieces)
    inside_strings = 0
    for i, piece in enumerate(pieces[:-1]):
        at = i * size + (len(piece) - len(piece.lstrip()) if piece.strip() else 0)
        assert got[i] == KINDS.get(covering[at], 0), (piece, covering[at])
        inside_strings += got[i] == KINDS["string"]
    assert inside_strings > 20


def test_python_kinds_stop_where_the_text_is_no_python():
    kinds = lambda *pieces: labels.python_kinds(list(pieces)).tolist()
    name, number, operator = KINDS["name"], KINDS["number"], KINDS["operator"]
    assert kinds(b"a", b"=", b"1", b"\n") == [name, operator, number, 0]
    assert kinds(b" a", b"=", b"1", b"\n", b"b", b"\n") == [name, operator, number, 0, name, 0]  # a tokenizer's space
    assert kinds(b"a", b"=", b"imp") == [name, operator, -1]  # cut off: it may have been `import`
    cut = kinds(b"a", b"=", b'"""', b"b\n", b"c")
    assert cut[3:] == [-1, -1] and cut[:2] == [name, operator]  # a string that never ends


def test_documents_run_on_over_contexts_and_positions_without_rows(folder):
    found = labels.labels(folder, folder.part("held-out"))
    part = folder.part("held-out")
    assert len(found.documents) == part.n_rows and found.values.shape == (len(TASKS), part.n_rows)
    np.testing.assert_array_equal(found.documents, part.documents[part.context, part.position])
    held = folder.documents["kind"].to_numpy()[found.documents]
    np.testing.assert_array_equal(found["python_document"] == 1, held == "py")
    last = part.position == folder.context - 1  # what follows is in the next context
    assert last.any() and (found["next_digit"][last] != -1).all()
    assert len(np.unique(found.strata)) == 2


def problem(seed=0, n=600, d=40, p=3):
    rng = np.random.default_rng(seed)
    F = np.maximum(rng.normal(size=(n, d)) - 0.5, 0) * rng.uniform(0.1, 5, size=d)
    F[:, 7] = 0  # a dead latent
    y = np.where(F @ rng.normal(size=(d, p)) + 3 * rng.normal(size=(n, p)) > -1, 1, -1).T
    first = np.tile(np.arange(n) < 400, (p, 1))
    made = (y, probes.balanced(y, first), probes.balanced(y, ~first))
    return jnp.asarray(F, jnp.float32), Problems(*(jnp.asarray(a, jnp.float32) for a in made))


few = jax.jit(probes.few, static_argnames="ks")


def by_scikit_learn(F, problems, i, columns):
    """The scores of problem i by LogisticRegression, on columns that are standardized by the weighted training rows."""
    w, z = np.float64(problems.train[i]), np.float64(F)[:, columns]
    z = z - w @ z
    deviation = np.sqrt(w @ z**2)
    z = z / np.where(deviation > 0, deviation, 1)
    fit = LogisticRegression(C=1 / probes.RIDGE, solver="newton-cholesky", tol=1e-10, max_iter=1_000)
    rows = w > 0
    return fit.fit(z[rows], np.asarray(problems.y[i])[rows], sample_weight=w[rows]).decision_function(z)


def test_probes_are_scikit_learns():
    F, problems = problem()
    np.testing.assert_allclose(problems.train.sum(1), 1, rtol=1e-5)
    best = probes.best_columns(F, problems, 5)
    scores, beta = few(F, best, problems, (1, 2, 5))
    assert (beta[0, :, 1:5] == 0).all() and (beta[2] != 0).all()
    for scores_of_k, k in zip(scores, (1, 2, 5), strict=True):
        for i in range(3):
            expected = by_scikit_learn(F, problems, i, np.asarray(best[i, :k]))
            np.testing.assert_allclose(scores_of_k[i], expected, atol=3e-4)
    scores, directions = jax.jit(probes.all_columns)(F, problems)
    for i in range(3):
        expected = by_scikit_learn(F, problems, i, np.arange(F.shape[1]))
        np.testing.assert_allclose(scores[i], expected, atol=0.02)  # of scores as large as 15
        right = (expected > 0) == (np.asarray(problems.y[i]) > 0)
        np.testing.assert_allclose(
            probes.accuracy(scores, problems)[i], np.asarray(problems.test[i]) @ right, atol=0.01
        )
    np.testing.assert_allclose(directions[:, 7], 0)
    np.testing.assert_allclose(np.ptp(scores - directions @ F.T, axis=1), 0, atol=1e-4)  # the bias is left


def test_a_probe_on_a_column_that_tells_all_is_bounded_and_right():
    """Separable classes: the penalty alone keeps the coefficient finite."""
    y = np.where(np.arange(100) % 2, 1, -1)[None]
    F = jnp.asarray(np.stack([y[0] > 0, np.zeros(100), np.arange(100)], axis=1), jnp.float32)
    even = probes.balanced(y, y != 0)
    problems = Problems(*(jnp.asarray(a, jnp.float32) for a in (y, even, even)))
    scores, beta = few(F, jnp.array([[0, 1]]), problems, (1,))
    assert np.isfinite(beta).all() and probes.accuracy(scores, problems)[0, 0] == pytest.approx(1)
    scores, _ = few(F, jnp.array([[1, 0]]), problems, (1,))  # a dead latent: it says no to all
    assert probes.accuracy(scores, problems)[0, 0] == pytest.approx(0.5)


def test_the_best_columns_have_the_largest_difference_of_class_means():
    F, problems = problem(3)
    y, w = np.asarray(problems.y), np.asarray(problems.train) > 0
    for i in range(3):
        yes, no = (np.asarray(F)[w[i] & (y[i] == answer)].mean(0) for answer in (1, -1))
        expected = np.argsort(-np.abs(yes - no))[:5]
        np.testing.assert_array_equal(probes.best_columns(F, problems, 5)[i], expected)


def given(columns, d_in=12) -> Sae:
    """An autoencoder whose latents are some dimensions of the row, where they are positive, and dead ones up to 16."""
    W = np.concatenate([np.eye(d_in)[list(columns)], np.zeros((16 - len(columns), d_in))])
    return Sae(*(jnp.asarray(a, jnp.float32) for a in (W, np.zeros(len(W)), W, np.zeros(d_in))), Relu())


def asked(folder, n=8_192, splits=2, least=20, seed=0):
    part = folder.part("held-out")
    places = np.sort(np.random.default_rng(seed).permutation(part.n_rows)[:n])
    x = jnp.asarray(np.float32(part.rows("resid-post.1")[places]))
    return x, probing.divide(labels.labels(folder, part).of(places), splits, least, seed)


def test_divisions_are_of_documents_and_tasks_without_enough_rows_are_left_out(folder):
    x, splits = asked(folder)
    assert set(splits.tasks) | set(splits.left_out) <= set(TASKS)
    assert "python_number" in splits.left_out and all(n < 20 for n in splits.left_out.values())
    assert ("python_document" in splits.tasks) != ("corpus_0" in splits.tasks)  # the same here
    assert "corpus_1" not in splits.tasks  # all the opposite
    part = folder.part("held-out")
    documents = labels.labels(folder, part).documents
    train, test = np.asarray(splits.problems.train) > 0, np.asarray(splits.problems.test) > 0
    assert len(train) == 2 * len(splits.tasks)
    for one, other in zip(train, test, strict=True):
        assert not set(documents[one]) & set(documents[other])
    weights = np.asarray(splits.problems.test) * (np.asarray(splits.problems.y) > 0)
    np.testing.assert_allclose(weights.sum(1), 0.5, rtol=1e-5)
    with pytest.raises(UserError, match="no task has 100000 rows of each answer"):
        asked(folder, least=100_000)


def test_a_latent_that_is_a_label_is_found_and_others_are_not(folder):
    x, splits = asked(folder)
    wanted = [i for i, task in enumerate(splits.tasks) if task in (*PLANTED, "python_document")]
    assert len(wanted) >= 3
    others = [0, 2, 3, 5, 6, 8, 9]
    knows, ignorant = (  # one at a time, as the tests below ask it
        members.each(probing.of_member, members.stack([given(columns)]), x, splits.problems)
        for columns in ([0, 2, 4, 7, 10, 3, 1], others)
    )
    of_task = lambda found: np.asarray(found["accuracy"]).reshape(5, len(splits.tasks), 2)[:, wanted]
    assert of_task(knows).min() > 0.97
    assert np.abs(of_task(ignorant)[0].mean() - 0.5) < 0.08
    np.testing.assert_allclose(ignorant["l0"][0], (np.asarray(x)[:, others] > 0).sum(1).mean(), rtol=1e-5)


def test_noise_is_the_deviation_over_divisions_of_the_mean_over_tasks(folder):
    _, splits = asked(folder, splits=3)
    accuracy = np.random.default_rng(0).random(len(splits.problems.y))
    by_hand = np.array([accuracy[i::3].mean() for i in range(3)])
    mean, noise = probing.summary(accuracy, splits)
    assert mean == pytest.approx(by_hand.mean()) and noise == pytest.approx(by_hand.std(ddof=1))


def test_random_directions_are_as_often_active_as_a_member(folder, monkeypatch):
    x, splits = asked(folder)
    seen = {}
    monkeypatch.setattr(probing, "accuracies", lambda F, problems: seen.setdefault("F", F))
    probing.at_random.__wrapped__(x, splits.problems, 3.0, jax.random.key(1), d_sae=32)
    assert (np.asarray(seen["F"]) != 0).sum(1).mean() == pytest.approx(3.0, abs=0.01)


def test_shuffled_labels_are_read_by_chance(folder):
    x, splits = asked(folder)
    chance = np.asarray(probing.by_chance(x, splits.problems, jax.random.key(0)))
    dense = np.asarray(probing._dense(x, splits.problems))[-1]
    assert abs(chance.mean() - 0.5) < 0.05 < dense.mean() - 0.5


def test_a_sweep_asks_it_and_its_numbers_are_in_the_members_table(folder, tmp_path, capsys):
    one = Experiment(
        name="probed", data=Activations(path=str(folder.path)), d_sae=16, optimizer=Adam(lr=3e-3),
        batch_size=128, n_steps=20,
    )  # fmt: skip
    measure = Probing(splits=2, least=20)
    sweep = Sweep(name="probed", members=[one], measures=[measure])
    results = sae.run(sweep, out=tmp_path / "run", wandb="off")
    assert "left out, for fewer rows than 20: " in capsys.readouterr().out
    table = results.members
    assert set(measure.columns) <= set(table)
    assert table[list(measure.columns)].notna().all().all()
    assert (table["analysis/probe_all_dense"] > 0.6).all()
    tasks = probing.by_task(results, 0, measure)
    assert len(tasks) == table["analysis/probe_tasks"][0]
    for k in probing.NAMES:
        assert tasks[k].mean() == pytest.approx(table[f"analysis/probe_{k}"][0], abs=1e-5)
    assert tasks["dense"].mean() == pytest.approx(table["analysis/probe_all_dense"][0], abs=1e-5)


def test_data_without_tokens_are_refused_in_a_line():
    digits = Digits()
    with pytest.raises(UserError, match="Probing: got data of Digits, allowed: Activations"):
        probing.held_out_rows("Probing", Data(digits, 0, digits.load), 64, 10, 0)

"""What latents do on text: every number against a slow loop over the same examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from sae import TopK
from sae.core.model import Sae, unit_rows
from sae.data import harvested
from sae.lm import features
from sae.lm.features import AFTER, BEFORE, BINS, OTHERS, SAMPLE, STRONGEST, Labels
from sae.methods.activations import Relu

HOOK, D_IN, D_SAE = "resid-post.1", 8, 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """60 contexts of 40 tokens. Documents of 3 to 90 tokens are packed with separators; the last context is padded."""
    rng = np.random.default_rng(0)

    def packed(n_contexts, first):
        ids, documents, number = [], [], first
        while len(ids) < n_contexts * 40 - 7:
            length = int(rng.integers(3, 90))
            ids += [*rng.integers(1, 50, length), 0]
            documents += [*[number] * length, -1]
            number += 1
        ids, documents = ids[: n_contexts * 40 - 7] + [-1] * 7, documents[: n_contexts * 40 - 7] + [-1] * 7
        return np.reshape(ids, (n_contexts, 40)).astype(np.int32), np.reshape(documents, (n_contexts, 40))

    contexts = {"train": packed(8, 0), "held-out": packed(60, 1000)}
    rows = {
        split: {HOOK: rng.standard_normal((len(harvested.kept(documents, 1)[0]), D_IN)).astype(np.float16)}
        for split, (_, documents) in contexts.items()
    }
    pieces = [b"<end>", *(f" w{i}".encode() for i in range(1, 50))]
    return harvested.write(
        tmp_path_factory.mktemp("acts"),
        contexts=contexts,
        rows=rows,
        documents=pd.DataFrame({"name": ["x"]}),
        pieces=pieces,
        unembedding=rng.standard_normal((50, D_IN)),
        shard=16,
    )


def autoencoder(activation, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    W_enc, W_dec = (jax.random.normal(key, (D_SAE, D_IN)) for key in keys[:2])
    b_enc = jnp.linspace(-6.0, 1.0, D_SAE)  # the first latent is active on few examples or none, the last on most
    return Sae(W_enc, b_enc, W_dec, jax.random.normal(keys[2], (D_IN,)), activation)


@pytest.fixture(scope="module", params=[Relu(), TopK(k=3)], ids=["relu", "top-k"])
def looked(request, folder):
    sae, part = autoencoder(request.param), folder.part("held-out")
    rows = part.rows(HOOK)
    read = lambda some: rows[some].astype(np.float32)
    labels = Labels(
        ("third", "random"), np.stack([np.arange(len(rows)) % 3 == 0, np.arange(len(rows)) * 7 % 5 % 3 - 1])
    )
    found = features.look(sae, part, read, np.arange(len(rows)), labels=labels)
    return found, np.asarray(sae.encode(read(np.arange(len(rows))))), part, labels


def test_counts_are_those_of_all_examples_at_once(looked):
    found, latents, part, labels = looked
    active = latents != 0
    assert found.n == part.n_rows > 2 * features.BATCH  # several batches, and the last is smaller
    np.testing.assert_array_equal(found.fired, active.sum(0))
    np.testing.assert_allclose(found.largest, latents.max(0), rtol=1e-6)
    for got, told in ((found.labelled, labels.values == 1), (found.asked, labels.values >= 0)):
        np.testing.assert_array_equal(got, active.T.astype(int) @ told.T.astype(int))
    for j in np.flatnonzero(found.fired):
        edges = np.linspace(0, found.largest[j], BINS + 1)
        np.testing.assert_allclose(found.histogram[j], np.histogram(latents[active[:, j], j], edges)[0], atol=1)
    np.testing.assert_array_equal(found.histogram.sum(1), found.fired)


def best_of(values, owners, k):
    """The largest value of each owner, the k largest of these, as rows."""
    best = {}
    for row in np.flatnonzero(values > 0):
        if owners[row] not in best or values[row] > values[best[owners[row]]]:
            best[owners[row]] = row
    return sorted(best.values(), key=lambda row: -values[row])[:k]


def test_the_strongest_contexts_are_of_different_documents_then_of_different_contexts(looked):
    found, latents, part, _ = looked
    document = part.documents[part.context, part.position]
    piece = list(zip(part.context.tolist(), document.tolist(), strict=True))
    few = 0
    for j in range(D_SAE):
        wanted = best_of(latents[:, j], document.tolist(), STRONGEST)
        for row in best_of(latents[:, j], piece, STRONGEST):
            if len(wanted) < STRONGEST and row not in wanted:
                wanted.append(row)
        few += 0 < len(wanted) < STRONGEST
        wanted = sorted(wanted, key=lambda row: -latents[row, j])
        rows = found.rows[j, :STRONGEST]
        assert rows[rows >= 0].tolist() == wanted
        np.testing.assert_allclose(found.values[j, : len(wanted)], latents[wanted, j], rtol=1e-6)
    assert few  # some latent is active so rarely that there are not enough


def test_other_contexts_are_spread_over_the_values_and_none_is_shown_twice(looked):
    found, latents, part, _ = looked
    document = part.documents[part.context, part.position]
    for j in range(D_SAE):
        rows = found.rows[j, STRONGEST:]
        rows = rows[rows >= 0]
        values = latents[rows, j]
        assert len(set(found.rows[j][found.rows[j] >= 0])) == (found.rows[j] >= 0).sum()
        assert np.all(values > 0) and np.all(np.diff(values) <= 0)
        np.testing.assert_allclose(found.values[j, STRONGEST:][: len(rows)], values, rtol=1e-5, atol=1e-6)
        if found.fired[j] > 500:  # many documents: a sample of all of them, not of the strongest
            assert len(rows) == OTHERS and len(set(document[rows])) == OTHERS
            assert values.min() < np.quantile(latents[latents[:, j] > 0, j], 0.4)
            below = [(latents[latents[:, j] > 0, j] < value).mean() for value in values]
            np.testing.assert_allclose(found.below[j, STRONGEST:], below, atol=0.12)


def test_the_sample_is_drawn_evenly_from_the_active_examples(folder):
    """Over seeds, the mean quantile of what is drawn is a half."""
    part, sae = folder.part("held-out"), autoencoder(Relu())
    rows = part.rows(HOOK)
    read = lambda some: rows[some].astype(np.float32)
    latents = np.asarray(sae.encode(read(np.arange(len(rows)))))[:, -1]
    active = np.sort(latents[latents > 0])
    quantiles = []
    for seed in range(12):
        batches = features._Batches(part, np.arange(len(rows)), seed)
        counts = features._Counts.zero(sae, 0)
        for b in batches:
            x, none = jnp.asarray(read(np.arange(b.start, b.stop))), np.zeros((0, b.stop - b.start), np.int8)
            counts = features._count(sae, counts, x, b.start, b.key, *b.owners, none, segments=batches.segments)
        values = features._filled(counts.sample, SAMPLE)[1][-1]
        quantiles += (np.searchsorted(active, values) / len(active)).tolist()
    assert abs(np.mean(quantiles) - 0.5) < 4 * (1 / 12 / len(quantiles)) ** 0.5


def test_a_window_holds_the_tokens_and_values_around_its_example_within_the_document(looked):
    found, latents, part, _ = looked
    cut, without = 0, 0
    for j in range(0, D_SAE, 5):
        for c, row in enumerate(found.windows.rows[j]):
            context, position = (part.context[row], part.position[row]) if row >= 0 else (0, 0)
            for w, at in enumerate(range(position - BEFORE, position + AFTER + 1)):
                got, value = found.windows.ids[j, c, w], found.windows.values[j, c, w]
                inside = row >= 0 and 0 <= at < 40
                if not inside or part.documents[context, at] != part.documents[context, position]:
                    assert got == -1 and np.isnan(value)
                    cut += inside
                    continue
                assert got == part.ids[context, at]
                example = np.flatnonzero((part.context == context) & (part.position == at))
                if len(example):
                    np.testing.assert_allclose(value, latents[example[0], j], rtol=1e-5, atol=1e-6)
                else:
                    assert np.isnan(value) and at == 0
                    without += 1
    assert cut and without  # documents end inside of windows, and the first position has no example


def test_only_the_latents_asked_for_have_windows(folder, looked):
    found, _, part, _ = looked
    rows = part.rows(HOOK)
    read = lambda some: rows[some].astype(np.float32)
    asked = []
    some = features.look(
        autoencoder(Relu()), part, read, np.arange(len(rows)), lambda rates: asked.append(rates) or np.array([20, 3])
    )
    assert some.windows.ids.shape == (2, STRONGEST + OTHERS, BEFORE + 1 + AFTER) and some.shown.tolist() == [20, 3]
    np.testing.assert_array_equal(some.windows.rows, some.rows[[20, 3]])
    np.testing.assert_allclose(asked[0], some.fired / len(rows))
    assert np.nanmax(some.windows.values[0]) == pytest.approx(some.largest[20])
    assert some.labelled.shape == (D_SAE, 0)


def test_a_part_of_the_rows_is_looked_at_as_if_there_were_no_others(folder):
    sae, part = autoencoder(Relu()), folder.part("held-out")
    rows, table = features.spread(part, 700), part.rows(HOOK)
    contexts = np.unique(part.context[rows])
    assert 600 < len(rows) < 800 and contexts[0] == 0 and contexts[-1] == 59 and np.all(np.diff(rows) > 0)
    assert len(rows) == np.isin(part.context, contexts).sum()  # whole contexts
    assert np.array_equal(features.spread(part, 10**6), np.arange(part.n_rows))
    found = features.look(sae, part, lambda some: table[some].astype(np.float32), rows)
    latents = np.asarray(sae.encode(table[rows].astype(np.float32)))
    np.testing.assert_array_equal(found.fired, (latents != 0).sum(0))
    strongest = rows[latents.argmax(0)]
    fires = found.fired > 0
    assert found.rows[fires, 0].tolist() == strongest[fires].tolist()
    assert np.isin(found.rows[found.rows >= 0], rows).all() and (found.rows[~fires] == -1).all()
    peaks = found.windows.values[fires, 0, BEFORE]
    np.testing.assert_allclose(peaks, latents.max(0)[fires], rtol=1e-5)


def test_effects_are_centred_products_with_the_unembedding(folder):
    W, U = np.random.default_rng(1).standard_normal((700, D_IN)).astype(np.float32), folder.unembedding()
    latents = np.array([699, 0, 3])
    promoted, suppressed = features.effects(W, U, latents)
    logits = (W[latents] / np.linalg.norm(W[latents], axis=1, keepdims=True)) @ U.T
    logits -= logits.mean(1, keepdims=True)
    for i in range(3):
        order = np.argsort(-logits[i])
        assert promoted.ids[i].tolist() == order[:10].tolist()
        assert suppressed.ids[i].tolist() == order[::-1][:10].tolist()
        np.testing.assert_allclose(promoted.effects[i], logits[i][order[:10]], rtol=1e-4)
        np.testing.assert_allclose(suppressed.effects[i], logits[i][order[::-1][:10]], rtol=1e-4)


def test_a_direction_that_is_a_tokens_own_row_promotes_that_token():
    U = np.eye(12, dtype=np.float32)
    promoted, suppressed = features.effects(3 * U[:4], U, np.arange(4))
    assert promoted.ids[:, 0].tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(promoted.effects[:, 0], 1 - 1 / 12, rtol=1e-6)  # of unit length, less the mean
    np.testing.assert_allclose(suppressed.effects, -1 / 12, rtol=1e-5)


def test_neighbours_are_the_largest_cosines(folder):
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((600, D_IN)).astype(np.float32), rng.standard_normal((30, D_IN)).astype(np.float32)
    cosines = np.asarray(unit_rows(a)) @ np.asarray(unit_rows(b)).T
    found = features.neighbours(a, b, 2)
    np.testing.assert_array_equal(found.latents, np.argsort(-cosines, axis=1)[:, :2])
    np.testing.assert_allclose(found.cosines, -np.sort(-cosines, axis=1)[:, :2], rtol=1e-4, atol=1e-6)
    own = features.neighbours(b, b, 3, same=True)
    assert not np.any(own.latents == np.arange(30)[:, None]) and own.latents.shape == (30, 3)
    assert features.neighbours(b[:2], b[:2], 3, same=True).latents.tolist() == [[1], [0]]


def test_a_label_is_found_by_the_latent_that_is_active_on_it_and_not_by_one_that_always_is():
    fired, n = np.array([10, 100, 0]), 100
    told = np.stack([np.arange(n) < 10, np.arange(n) < 70, np.where(np.arange(n) < 10, np.arange(n) < 5, -1)])
    labelled = np.array([[10, 10, 5], [10, 70, 5], [0, 0, 0]])
    asked = np.array([[10, 10, 10], [100, 100, 10], [0, 0, 0]])
    empty = np.zeros((3, 0))
    found = features.Latents(n, fired, empty, empty, empty, empty, None, empty, labelled, asked)
    best = features.detected(found, Labels(("rare", "frequent", "seldom asked"), told))
    # of the ten examples of which the last label is asked, both first latents say yes to all
    assert best.labels.tolist() == [[0, -1, -1], [-1, -1, -1], [-1, -1, -1]]
    assert (best.f1[0, 0], best.precision[0, 0], best.recall[0, 0]) == (1, 1, 1)

"""What the latents of a trained autoencoder do on text: how often they fire, where, and which tokens they promote.

Rows of a harvested folder are encoded in batches, on the device. What is kept of them is a few numbers and a few
places for every latent, so memory does not grow with the examples. `look` reads the rows twice: the second time it
takes the value of a latent on each token around the places that the first time has found.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sae.core.model import Sae, unit_rows
from sae.core.types import Array
from sae.data.harvested import Part

STRONGEST = 8  # contexts of the largest values
OTHERS = 4  # contexts of other values
SAMPLE = 12  # active examples drawn at random; OTHERS of them are shown
BEFORE, AFTER = 16, 8  # tokens around the one on which a latent is active
BINS = 24  # of a histogram of values
BATCH = 1024  # examples at a time
TOKENS = 10  # promoted, and as many suppressed
NEAREST = 3  # latents of the same member
LABELS = 3  # labels for each latent
AT_ONCE = 512  # latents whose effects on all tokens, or whose cosines with all latents, are computed at once
GRAIN = 16  # numbers of segments are rounded up to multiples of this, so that few programs are compiled
Read = Callable[[np.ndarray], np.ndarray]


class Labels(NamedTuple):
    """What is known of the examples looked at: `values [n_labels, n]` int8, 1 yes, 0 no, -1 not asked of an example."""

    names: tuple[str, ...]
    values: np.ndarray


class Tokens(NamedTuple):
    """Tokens [n, TOKENS] and by how much a latent moves their logits, the largest effect first; `effects` likewise."""

    ids: np.ndarray
    effects: np.ndarray


class Neighbours(NamedTuple):
    """The nearest latents [d_sae, k] of a member and their cosines, the nearest first."""

    latents: np.ndarray
    cosines: np.ndarray


class Windows(NamedTuple):
    """The contexts of some latents. C = STRONGEST + OTHERS, the strongest first; W = BEFORE + 1 + AFTER.

    `rows [n, C]` are the examples at the middle, -1 for none, `ids [n, C, W]` the tokens around them (-1 outside of the
    document or the context), and `values [n, C, W]` the latent's values there, NaN where no example was kept.
    """

    rows: np.ndarray
    ids: np.ndarray
    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class Latents:
    """What each latent of a member does on n examples of a part."""

    n: int
    fired: np.ndarray  # [d_sae] int: examples on which it is active
    largest: np.ndarray  # [d_sae], its largest absolute value
    histogram: (
        np.ndarray
    )  # [d_sae, BINS] int: active examples by absolute value, in bins of equal width up to `largest`
    rows: np.ndarray  # [d_sae, C] int: its examples, as in `Windows`
    values: np.ndarray  # [d_sae, C]: its values on them
    windows: Windows  # of the latents `shown`
    shown: np.ndarray  # [n]
    labelled: np.ndarray  # [d_sae, n_labels] int: examples of a label on which it is active; [d_sae, 0] without labels
    asked: np.ndarray  # [d_sae, n_labels] int: examples of which a label is asked and on which it is active

    @property
    def rates(self) -> np.ndarray:
        """[d_sae] firing rates."""
        return self.fired / self.n

    @functools.cached_property
    def below(self) -> np.ndarray:
        """[d_sae, C]: the share of a latent's active examples that lie below its value on an example, to a bin."""
        cumulated = np.concatenate([np.zeros((len(self.fired), 1)), self.histogram.cumsum(axis=1)], axis=1)
        place = np.abs(self.values) / np.maximum(self.largest, 1e-30)[:, None] * BINS
        lower = np.clip(place.astype(int), 0, BINS - 1)
        ends = [np.take_along_axis(cumulated, lower + step, axis=1) for step in (0, 1)]
        share = ends[0] + (place - lower) * (ends[1] - ends[0])
        return share / np.maximum(self.fired, 1)[:, None]


def look(
    sae: Sae,
    part: Part,
    read: Read,
    rows: np.ndarray,
    shown: Callable[[np.ndarray], np.ndarray] | None = None,
    labels: Labels | None = None,
    seed: int = 0,
) -> Latents:
    """Look at some examples of a part, `rows [n]` in rising order, with one autoencoder that takes normalized examples.

    read(some of the rows [b]) gives these examples [b, d_row]; their first d_in columns are encoded.
    shown(rates [d_sae]) gives the numbers of the latents whose contexts are kept; all without it. A latent's strongest
    contexts are of different documents where it is active in enough of them, then of different contexts. The others
    are spread over the values of SAMPLE active examples that are drawn at random, also of different documents where
    possible.
    """
    n = len(rows)
    batches = _Batches(part, rows, seed)
    known = np.zeros((0, n), np.int8) if labels is None else labels.values
    counts = _Counts.zero(sae, len(known))
    for batch in batches:
        x = jnp.asarray(read(rows[batch.start : batch.stop])[:, : sae.d_in])
        told = known[:, batch.start : batch.stop]
        counts = _count(sae, counts, x, batch.start, batch.key, *batch.owners, told, segments=batches.segments)
    counts = jax.device_get(counts)
    places, values = _chosen(counts)
    found = np.where(places >= 0, rows[places], -1)
    fired, largest = np.asarray(counts.fired), np.asarray(counts.largest)
    some = np.arange(len(fired)) if shown is None else np.asarray(shown(fired / n))
    windows, histogram = _windows(sae, part, read, batches, found, some, largest)
    labelled, asked = np.asarray(counts.labelled), np.asarray(counts.asked)
    return Latents(n, fired, largest, histogram, found, values, windows, some, labelled, asked)


def spread(part: Part, most: int) -> np.ndarray:
    """The rows [n] of contexts that are evenly spaced over a part, about `most` rows and never more than there are."""
    n_contexts = len(part.ids)
    k = min(n_contexts, max(1, round(most * n_contexts / max(part.n_rows, 1))))
    chosen = np.zeros(n_contexts, bool)
    chosen[np.linspace(0, n_contexts - 1, k).round().astype(int)] = True
    return np.flatnonzero(chosen[part.context])


class _Batch(NamedTuple):
    start: int
    stop: int
    key: np.ndarray  # [b] random numbers in (0, 1), by which active examples are drawn
    owners: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # see `_count`


class _Batches:
    """The batches of some examples, numbered from 0, and the pieces of documents that they are of.

    A piece is what one context holds of one document.
    """

    def __init__(self, part: Part, rows: np.ndarray, seed: int) -> None:
        self.rows, n, context, position = rows, len(rows), part.context[rows], part.position[rows]
        self.documents = part.documents[context, position]
        self._keys = np.maximum(np.random.default_rng(seed).random(n, np.float32), 1e-7)
        changes = (np.diff(context) != 0) | (np.diff(self.documents) != 0)
        self._pieces = np.concatenate([[0], np.cumsum(changes)]).astype(np.int32)
        starts = range(0, n, BATCH)
        most = max(int(self._pieces[min(start + BATCH, n) - 1] - self._pieces[start]) + 1 for start in starts)
        self.segments = -(-most // GRAIN) * GRAIN

    def __iter__(self) -> Iterator[_Batch]:
        for start in range(0, len(self.rows), BATCH):
            stop = min(start + BATCH, len(self.rows))
            piece_of_row = self._pieces[start:stop] - self._pieces[start]
            firsts = np.searchsorted(piece_of_row, np.arange(piece_of_row[-1] + 1))
            of_piece = self.documents[start:stop][firsts]
            documents, document_of_piece = np.unique(of_piece, return_inverse=True)
            fill = lambda array: np.pad(array.astype(np.int32), (0, self.segments - len(array)), constant_values=-1)
            # a piece that is not there gets a document that is not there
            document_of_piece = np.pad(document_of_piece, (0, self.segments - len(of_piece)), constant_values=-1)
            document_of_piece = np.where(document_of_piece < 0, self.segments - 1, document_of_piece).astype(np.int32)
            numbers = np.arange(self._pieces[start], self._pieces[start] + len(of_piece))
            owners = (piece_of_row, document_of_piece, fill(numbers), fill(documents))
            yield _Batch(start, stop, self._keys[start:stop], owners)


@struct.dataclass
class _Best:
    """The k best examples of every latent, none of the same owner (a document, or a piece of one), [d_sae, k] each."""

    score: Array  # 0 for none
    row: Array
    value: Array
    owner: Array

    @classmethod
    def none(cls, d_sae: int, k: int) -> "_Best":
        """No example."""
        nobody = jnp.full((d_sae, k), -1)
        return cls(jnp.zeros((d_sae, k)), nobody, jnp.zeros((d_sae, k)), nobody)

    def merge(self, score: Array, row: Array, value: Array, owner: Array) -> "_Best":
        """Merge the best example of each owner in a batch: score, row and value [owners, d_sae], owner [owners]."""
        k = self.score.shape[1]
        # no more than k of a batch can be among the best k: each of them has its owner to itself
        new, place = jax.lax.top_k(score.T, min(k, len(owner)))
        new_row, new_value = (jnp.take_along_axis(one.T, place, axis=1) for one in (row, value))
        new_owner = owner[place]
        same = self.owner[:, :, None] == new_owner[:, None, :]
        beaten = jnp.any(same & (new[:, None, :] > self.score[:, :, None]), axis=2)
        late = jnp.any(same & (new[:, None, :] <= self.score[:, :, None]), axis=1)
        score = jnp.concatenate([jnp.where(beaten, 0, self.score), jnp.where(late, 0, new)], axis=1)
        score, order = jax.lax.top_k(score, k)
        pick = lambda old, new: jnp.take_along_axis(jnp.concatenate([old, new], axis=1), order, axis=1)
        return _Best(score, pick(self.row, new_row), pick(self.value, new_value), pick(self.owner, new_owner))


@struct.dataclass
class _Counts:
    """What is carried from batch to batch."""

    fired: Array  # [d_sae]
    largest: Array  # [d_sae]
    labelled: Array  # [d_sae, n_labels]
    asked: Array  # [d_sae, n_labels]
    strongest: tuple[_Best, _Best]  # of different documents, and of different pieces
    sample: tuple[_Best, _Best]  # likewise, of random keys instead of values

    @classmethod
    def zero(cls, sae: Sae, n_labels: int) -> "_Counts":
        """Before the first batch."""
        d_sae = sae.W_dec[...].shape[0]
        best = lambda k: (_Best.none(d_sae, k), _Best.none(d_sae, k))
        none = jnp.zeros((d_sae, n_labels), jnp.int32)
        return cls(jnp.zeros(d_sae, jnp.int32), jnp.zeros(d_sae), none, none, best(STRONGEST), best(SAMPLE))


@functools.partial(jax.jit, static_argnames="segments")
def _count(
    sae: Sae,
    counts: _Counts,
    x: Array,
    start: int,
    key: Array,
    piece_of_row: Array,
    document_of_piece: Array,
    pieces: Array,
    documents: Array,
    labels: Array,
    *,
    segments: int,
) -> _Counts:
    """Add a batch x [b, d_in], whose first example is number `start`; labels [n_labels, b], as in `Labels`.

    piece_of_row [b] and document_of_piece [segments] number what is in the batch from 0; pieces and documents
    [segments] are their numbers in all batches.
    """
    latents = sae.encode(x)
    active = latents != 0
    rows = start + jnp.arange(len(x))

    def best(score: Array, owner: Array, row: Array, in_order: bool) -> tuple[Array, Array]:
        """The best score and its row, of every owner, [segments, d_sae]; score and row [n, d_sae], owner [n]."""
        best = jnp.maximum(jax.ops.segment_max(score, owner, segments, in_order), 0)
        at_best = jnp.where(score == best[owner], row, jnp.iinfo(jnp.int32).max)
        return best, jax.ops.segment_min(at_best, owner, segments, in_order)

    def merged(old: tuple[_Best, _Best], score: Array) -> tuple[_Best, _Best]:
        by_piece = best(score, piece_of_row, rows[:, None], True)
        by_document = best(by_piece[0], document_of_piece, by_piece[1], False)
        value = lambda row: jnp.take_along_axis(latents, jnp.clip(row - start, 0, len(x) - 1), axis=0)
        new = [(*found, value(found[1])) for found in (by_document, by_piece)]
        return old[0].merge(*new[0], documents), old[1].merge(*new[1], pieces)

    size = jnp.abs(latents)
    # sums of at most b ones are exact in float32
    and_active = lambda told: jnp.matmul(told.astype(jnp.float32), active.astype(jnp.float32)).T.astype(jnp.int32)
    return _Counts(
        counts.fired + jnp.sum(active, axis=0, dtype=jnp.int32),
        jnp.maximum(counts.largest, jnp.max(size, axis=0)),
        counts.labelled + and_active(labels == 1),
        counts.asked + and_active(labels >= 0),
        merged(counts.strongest, size),
        merged(counts.sample, jnp.where(active, key[:, None], 0)),
    )


def _chosen(counts: _Counts) -> tuple[np.ndarray, np.ndarray]:
    """The examples that are shown and their values, [d_sae, STRONGEST + OTHERS] each, -1 and 0 for none.

    First the strongest, then those spread over the values of the sample, both by falling absolute value.
    """
    rows, values = _filled(counts.strongest, STRONGEST)
    others, of_others = _filled(counts.sample, SAMPLE)
    again = (others[:, :, None] == rows[:, None, :]).any(axis=2)
    others, of_others = _largest_first(np.where(again, -1, others), np.where(again, 0, of_others))
    there = (others >= 0).sum(axis=1)
    spread = np.linspace(0, np.maximum(there - 1, 0), OTHERS, axis=1).round().astype(int)
    place = np.where(there[:, None] > OTHERS, spread, np.arange(OTHERS))
    others, of_others = (np.take_along_axis(array, place, axis=1) for array in (others, of_others))
    return np.concatenate([rows, others], axis=1), np.concatenate([values, of_others], axis=1)


def _filled(best: tuple[_Best, _Best], k: int) -> tuple[np.ndarray, np.ndarray]:
    """k examples and values of every latent: those of different documents; where these are few, of different pieces."""
    found = [np.where(np.asarray(one.score) > 0, np.asarray(one.row), -1) for one in best]
    again = (found[1][:, :, None] == found[0][:, None, :]).any(axis=2)
    rows = np.concatenate([found[0], np.where(again, -1, found[1])], axis=1)
    values = np.concatenate([np.asarray(one.value) for one in best], axis=1)
    order = np.argsort(rows < 0, axis=1, kind="stable")[:, :k]
    rows, values = (np.take_along_axis(array, order, axis=1) for array in (rows, values))
    return _largest_first(rows, np.where(rows < 0, 0, values))


def _largest_first(rows: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(np.where(rows < 0, 1, -np.abs(values)), axis=1, kind="stable")
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(values, order, axis=1)


def window(part: Part, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Examples [...] -> (tokens around each [..., W], examples on these tokens [..., W]), W = BEFORE + 1 + AFTER.

    -1 stands for what is outside of the context or the document, and for a token of which no example was kept.
    """
    at = np.maximum(rows, 0)
    context, position = part.context[at][..., None], part.position[at][..., None] + np.arange(-BEFORE, AFTER + 1)
    length = part.ids.shape[1]
    inside = np.clip(position, 0, length - 1)
    document = part.documents[context, part.position[at][..., None]]
    there = (rows[..., None] >= 0) & (position == inside) & (part.documents[context, inside] == document)
    return np.where(there, part.ids[context, inside], -1), np.where(there, part.row[context, inside], -1)


def _windows(
    sae: Sae, part: Part, read: Read, batches: _Batches, rows: np.ndarray, shown: np.ndarray, largest: np.ndarray
) -> tuple[Windows, np.ndarray]:
    """(the contexts of the latents shown, the histograms of all): what the second reading of the examples finds."""
    ids, examples = window(part, rows[shown])
    place = np.minimum(np.searchsorted(batches.rows, examples), len(batches.rows) - 1).reshape(-1)
    asked = np.flatnonzero(batches.rows[place] == examples.reshape(-1))
    asked = asked[np.argsort(place[asked], kind="stable")]
    wanted = place[asked]
    latent = shown[asked // (ids.shape[1] * ids.shape[2])].astype(np.int32)
    values = np.full(ids.size, np.nan, np.float32)
    histogram = jnp.zeros((BINS + 1, len(largest)), jnp.int32)
    for batch in batches:
        x = jnp.asarray(read(batches.rows[batch.start : batch.stop])[:, : sae.d_in])
        first, last = np.searchsorted(wanted, [batch.start, batch.stop])
        room = (0, (1 << max(int(last - first) - 1, 0).bit_length()) - int(last - first))  # few sizes, few programs
        places = (np.pad(wanted[first:last] - batch.start, room), np.pad(latent[first:last], room))
        histogram, found = _values(sae, histogram, jnp.asarray(largest), x, *places)
        values[asked[first:last]] = np.asarray(found)[: last - first]
    return Windows(rows[shown], ids, values.reshape(ids.shape)), np.asarray(histogram)[:BINS].T


@functools.partial(jax.jit, donate_argnames="histogram")
def _values(sae: Sae, histogram: Array, largest: Array, x: Array, example: Array, latent: Array) -> tuple[Array, Array]:
    """The histogram with a batch x [b, d_in] added, and the values of some latents on some of its examples."""
    latents = sae.encode(x)
    place = jnp.abs(latents) / jnp.maximum(largest, 1e-30) * BINS
    place = jnp.where(latents != 0, jnp.clip(place.astype(jnp.int32), 0, BINS - 1), BINS)
    return histogram.at[place, jnp.arange(len(largest))].add(1), latents[example, latent]


def effects(directions: np.ndarray, unembedding: np.ndarray, latents: np.ndarray) -> tuple[Tokens, Tokens]:
    """The tokens that some latents promote and suppress, TOKENS of each, by their direct effect on the logits.

    The effect of latent j on token t is `(U_t - mean over tokens of U) · d_j / ‖d_j‖`, where U [n_tokens, d_model] is
    the unembedding and d [d_sae, d_model] are decoder rows in the units of the residual stream: what the logit of t
    gains over the mean logit where the latent adds a vector of length 1 to the last residual, before the division by
    its norm's scale (nostalgebraist 2020, "the logit lens").
    """
    centred = jnp.asarray(unembedding - unembedding.mean(axis=0, dtype=np.float64).astype(np.float32))
    rows = unit_rows(jnp.asarray(directions))[np.asarray(latents, int)]
    found = [_effects(centred, part, k=min(TOKENS, len(centred))) for part in _parts(rows)]
    joined = [np.concatenate([np.asarray(one[i]) for one in found]) for i in range(4)]
    return Tokens(joined[0], joined[1]), Tokens(joined[2], joined[3])


@functools.partial(jax.jit, static_argnames="k")
def _effects(unembedding: Array, directions: Array, *, k: int) -> tuple[Array, Array, Array, Array]:
    logits = jnp.matmul(directions, unembedding.T, precision="highest")
    (most, promoted), (least, suppressed) = jax.lax.top_k(logits, k), jax.lax.top_k(-logits, k)
    return promoted, most, suppressed, -least


def neighbours(directions: np.ndarray, others: np.ndarray, k: int, same: bool = False) -> Neighbours:
    """The k latents of `others` [n, d] nearest to each of `directions` [d_sae, d], by the cosine of decoder rows.

    `same`: others are the directions themselves, and no latent is its own neighbour.
    """
    rows, them = unit_rows(jnp.asarray(directions)), unit_rows(jnp.asarray(others))
    k, found, start = min(k, len(them) - same), [], 0
    for part in _parts(rows):
        itself = np.arange(start, start + len(part)) if same else np.full(len(part), -1)
        found.append(_nearest(part, them, itself, k=k))
        start += len(part)
    return Neighbours(*(np.concatenate([np.asarray(one[i]) for one in found]) for i in range(2)))


@functools.partial(jax.jit, static_argnames="k")
def _nearest(rows: Array, others: Array, itself: Array, *, k: int) -> tuple[Array, Array]:
    cosines = jnp.matmul(rows, others.T, precision="highest")
    cosines = jnp.where(jnp.arange(len(others)) == itself[:, None], -2, cosines)
    values, latents = jax.lax.top_k(cosines, k)
    return latents, values


def _parts(rows: Array) -> Iterator[Array]:
    for start in range(0, len(rows), AT_ONCE):
        yield rows[start : start + AT_ONCE]


class Detected(NamedTuple):
    """The labels [d_sae, k] that a latent is best at, -1 for none, with its F1, precision and recall as a detector."""

    labels: np.ndarray
    f1: np.ndarray
    precision: np.ndarray
    recall: np.ndarray


def scores(found: Latents, labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    """(F1, gain) [d_sae, n_labels] of "the latent is active" as a detector, on the examples of which a label is asked.

    F1 = 2 precision · recall / (precision + recall). A detector that always says yes reaches c = 2 p / (1 + p) for a
    label of a share p of the examples; gain = (F1 - c) / (1 - c).
    """
    told = labels.values
    n_label, n_asked = (told == 1).sum(axis=1), (told >= 0).sum(axis=1)
    f1 = 2 * found.labelled / np.maximum(found.asked + n_label, 1)
    constant = 2 * n_label / np.maximum(n_asked + n_label, 1)
    return f1, np.where(constant < 1, (f1 - constant) / np.maximum(1 - constant, 1e-9), 0)


def detected(found: Latents, labels: Labels, k: int = LABELS) -> Detected:
    """The labels that "the latent is active" detects best: those of the largest gain (see `scores`), above 0 only."""
    f1, gain = scores(found, labels)
    n_label = (labels.values == 1).sum(axis=1)
    order = np.argsort(-gain, axis=1, kind="stable")[:, : min(k, gain.shape[1])]
    pick = lambda values: np.take_along_axis(values, order, axis=1)
    best = np.where(pick(gain) > 0, order, -1)
    precision, recall = found.labelled / np.maximum(found.asked, 1), found.labelled / np.maximum(n_label, 1)
    return Detected(best, pick(f1), pick(precision), pick(recall))

"""The order of examples: every row once an epoch, at random, the same wherever it is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

import sae
from sae import Digits, Superposition, UserError
from sae.data import order
from sae.data.feed import Feed
from sae.data.order import batch_rows, permute
from sae.data.rows import Rows, rows


@pytest.mark.parametrize("n", [1, 2, 3, 10, 97, 1000, 1024, 65_537])
def test_permute_is_a_permutation_at_every_size(n):
    keys = jax.random.split(jax.random.key(0), 3)
    got = [np.asarray(jax.jit(permute, static_argnums=2)(key, jnp.arange(n, dtype=jnp.uint32), n)) for key in keys]
    for places in got:
        np.testing.assert_array_equal(np.sort(places), np.arange(n))
    if n >= 97:
        assert not np.array_equal(got[0], got[1])
        # neighbours end up far apart, as in a uniform permutation: a mean distance of n / 3
        assert np.abs(np.diff(got[0].astype(float))).mean() == pytest.approx(n / 3, rel=0.15)
        # and where a row lands does not depend on where it was
        assert abs(np.corrcoef(np.arange(n), got[0])[0, 1]) < 4 / np.sqrt(n)


def test_where_rows_land_is_uniform_over_keys():
    """Row 3 of 16 over 8,000 keys: a chi-squared test of its place, 15 degrees of freedom."""
    keys = jax.random.split(jax.random.key(1), 8_000)
    places = np.asarray(jax.vmap(lambda key: permute(key, jnp.uint32([3]), 16)[0])(keys))
    counts = np.bincount(places, minlength=16)
    assert ((counts - 500) ** 2 / 500).sum() < 37.7  # p = .001


def test_an_epoch_visits_every_row_once_and_the_next_in_another_order():
    n, batch = 1000, 100
    epochs = [np.concatenate([batch_rows(0, jnp.int32(e * 10 + i), batch, n) for i in range(10)]) for e in range(2)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(n))
    assert not np.array_equal(*epochs)
    assert not np.array_equal(epochs[0][:100], batch_rows(1, jnp.int32(0), batch, n)), "another seed, another order"


def test_large_data_is_shuffled_in_buffers_of_blocks(monkeypatch):
    """With small buffers: each row at most once an epoch, nearly all seen, few blocks touched at a time."""
    monkeypatch.setattr(order, "BUFFER", 512)
    monkeypatch.setattr(order, "BLOCK", 16)
    n, batch = 2_000, 64
    per_epoch = order._usable(n) // batch
    batch_at = jax.jit(lambda step: batch_rows(0, step, batch, n))
    seen_in_epochs = []
    for epoch in range(3):
        seen = np.concatenate([batch_at(jnp.int32(epoch * per_epoch + i)) for i in range(per_epoch)])
        assert len(np.unique(seen)) == len(seen) >= 0.95 * n and seen.min() >= 0 and seen.max() < n
        seen_in_epochs.append(seen)
        buffer = seen[: 7 * batch]  # within the first buffer of the epoch: at most its blocks, each cut by the rotation
        assert len(np.unique(buffer // 16)) <= 2 * 512 // 16
        shuffled = np.abs(np.diff(buffer.astype(float))).mean()
        assert shuffled > 300, "rows of different blocks are interleaved"
    assert len(np.unique(np.concatenate(seen_in_epochs))) == n, "what one epoch leaves out, another has"


def test_streamed_and_resident_batches_are_the_same(monkeypatch):
    monkeypatch.setattr(order, "BUFFER", 512)
    monkeypatch.setattr(order, "BLOCK", 16)
    rng = np.random.default_rng(0)
    data = rows(rng.normal(size=(2_000, 5)), rng.normal(size=(300, 5)), "centre", "test")
    resident, streamed = Feed(data, 7, 64, 1_000), Feed(data, 7, 64, 1_000, resident_bytes=0)
    assert resident.steps == streamed.steps
    for step, then in ((0, 50), (50, 90), (17, 40)):  # prefetched, prefetched, and not the one announced
        a, b = (feed.block(step, then).batches(jnp.int32(step)) for feed in (resident, streamed))
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a[1], resident.block(step + 1).batches(jnp.int32(step + 1))[0])
    np.testing.assert_array_equal(resident.candidates(3, 100), streamed.candidates(3, 100))


def test_examples_are_normalised_and_held_out_ones_all_come_once():
    data = Digits(normalize="unit-mean-norm").load()
    feed = Feed(data, 0, 100, 100)
    x = np.concatenate([np.asarray(x.T) for x in feed.held_out()])
    np.testing.assert_allclose(x, data.held_out * data.normalization.scale, rtol=1e-6)
    assert np.linalg.norm(data.examples(data.train), axis=1).mean() == pytest.approx(1, rel=1e-5)
    some = [x.shape[1] for x in feed.held_out(250)]
    assert some == [250]
    centred = Digits().load()
    np.testing.assert_allclose(centred.examples(centred.train).mean(0), 0, atol=1e-6)


def test_sampled_data_is_fresh_every_step_and_the_same_for_the_same_seed():
    data = Superposition(d_in=8, n_features=16).load()
    feed = Feed(data, 3, 32, 100)
    block = feed.block(0).batches(jnp.int32(0))
    assert block.shape == (feed.steps, 8, 32) and not np.array_equal(block[0], block[1])
    np.testing.assert_array_equal(block[2], Feed(data, 3, 32, 100).block(2).batches(jnp.int32(2))[0])
    assert not np.array_equal(block[0], Feed(data, 4, 32, 100).block(0).batches(jnp.int32(0))[0])
    held_out = list(feed.held_out(64))
    assert len(held_out) == 1 and held_out[0].shape == (8, 64)
    other = Feed(data, 3, 64, 100).held_out(64)
    np.testing.assert_array_equal(held_out[0], next(other), "held-out examples are the same at every batch size")


def test_candidates_are_distinct_rows():
    data = Digits(n_held_out=1600).load()  # 197 rows
    x = np.asarray(Feed(data, 0, 50, 100).candidates(5, 8_192)).transpose(0, 2, 1).reshape(-1, 64)
    assert x.shape == (150, 64) and len(np.unique(x, axis=0)) == 150


def test_a_last_batch_that_does_not_fill_is_left_out_of_its_epoch():
    epoch = np.concatenate([batch_rows(0, jnp.int32(i), 300, 1000) for i in range(3)])
    assert len(np.unique(epoch)) == 900


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(UserError, match="batch_size: got 1401, allowed: at most the 1400"):
        Feed(Digits().load(), 0, 1401, 100)


class Noisy(Rows):
    """A third kind of examples: rows with fresh noise in every batch, whose generating directions are known."""

    features = np.eye(64, dtype=np.float32)
    frequencies = np.full(64, 0.1, np.float32)

    def blocks(self, draw, put, resident_bytes):
        below = super().blocks(draw, put, resident_bytes)
        return lambda step: NoisyBlock(below(step))


@struct.dataclass
class NoisyBlock:
    below: object

    def batches(self, step):
        x = self.below.batches(step)
        return x + 0.01 * jax.random.normal(jax.random.fold_in(jax.random.key(0), step), x.shape)


@sae.definition
class NoisyDigits(Digits):
    def load(self):
        return Noisy(**vars(super().load()))


def test_a_kind_of_examples_of_ones_own_trains_and_is_asked_for_its_features(tmp_path):
    assert isinstance(NoisyDigits().load(), sae.Examples) and not isinstance(np.eye(3), sae.Examples)
    streamed, resident = (Feed(NoisyDigits().load(), 0, 64, 200, resident_bytes=n) for n in (0, 2**31))
    a, b = (feed.block(20).batches(jnp.int32(20)) for feed in (streamed, resident))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - Feed(Digits().load(), 0, 64, 200).block(20).batches(jnp.int32(20))).max() > 0
    base = sae.Experiment(name="noisy", data=NoisyDigits(), d_sae=16, batch_size=64, n_steps=20)
    results = sae.run(base, out=tmp_path / "noisy")
    assert {"eval/mmcs", "eval/fvu"} <= set(results.members)

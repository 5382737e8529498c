"""The order of examples: which rows make up the batch of a step.

Every epoch visits the rows in a new random order, without replacement; the few rows that do not fill a last batch
are left out. A row's place is *computed* by a keyed permutation of integers and not looked up in a shuffled list.
So any step can be replayed at no cost, inside the compiled program or on the host, for data in memory or on disk,
with the same result.

Data above `BUFFER` rows is shuffled in two stages, so that a reader of files touches a bounded part at a time. Blocks
of `BLOCK` consecutive rows are gathered into buffers in random order, and rows are shuffled within a buffer. An epoch
leaves out the rows beyond whole buffers (below 1 %); a random rotation decides in each epoch which ones.
"""

import math

import jax
import jax.numpy as jnp

from sae.core.types import Array, Key

# Batches, candidates and held-out examples draw from one data_seed; these numbers keep their random streams apart.
TRAIN, CANDIDATES, HELD_OUT = 0, 1, 2

BUFFER = 2**18
BLOCK = 2**10


def batch_rows(seed: int, step: Array, batch_size: int, n: int) -> Array:
    """[batch_size] int32 rows of a step's batch, each in 0..n-1. Needs batch_size <= n < 2**31."""
    two_stages = n > BUFFER and batch_size <= _usable(n)
    usable = _usable(n) if two_stages else n
    steps_per_epoch = usable // batch_size
    epoch, i = step // steps_per_epoch, step % steps_per_epoch
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), TRAIN), epoch)
    place = (i * batch_size + jnp.arange(batch_size)).astype(jnp.uint32)
    if not two_stages:
        return permute(key, place, n).astype(jnp.int32)

    within_key, block_key, rotation_key = jax.random.split(key, 3)
    buffer = usable // math.ceil(n / BUFFER)
    which, within = place // buffer, place % buffer
    within = permute(within_key, within, buffer, salt=which)
    block = permute(block_key, (which * buffer + within) // BLOCK, usable // BLOCK)
    rotation = jax.random.randint(rotation_key, (), 0, n)
    row = (block * BLOCK + within % BLOCK).astype(jnp.int32)
    to_end = n - rotation
    return jnp.where(row < to_end, row + rotation, row - to_end)  # (row + rotation) % n without overflow


def permute(key: Key, x: Array, n: int, salt: Array | int = 0) -> Array:
    """A random permutation of 0..n-1, evaluated at the places x (uint32, any shape). Key and salt decide it.

    It is a Feistel network over pairs (x // b, x % b), with b about sqrt(n). Each round adds a hash of one half to
    the other; that can be undone, so the whole is one-to-one on 0..ab-1. A value outside 0..n-1 is permuted again
    until it is inside, which keeps it one-to-one (Black & Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    a = max(1, math.isqrt(n))
    b = -(-n // a)
    keys = [k ^ _mix(jnp.uint32(salt)) for k in jax.random.bits(key, (8,))]

    def rounds(x: Array) -> Array:
        left, right = x // b, x % b
        for k in range(0, 8, 2):
            left = (left + _mix(right ^ keys[k]) % a) % a
            right = (right + _mix(left ^ keys[k + 1]) % b) % b
        return left * b + right

    walk = lambda y: jnp.where(y >= n, rounds(y), y)
    return jax.lax.while_loop(lambda y: jnp.any(y >= n), walk, rounds(x))


def _usable(n: int) -> int:
    """Number of rows in an epoch of whole buffers, each of whole blocks."""
    buffers = math.ceil(n / BUFFER)
    return (n // BLOCK // buffers) * BLOCK * buffers


def _mix(x: Array) -> Array:
    """Spread 32 bits: the finaliser of MurmurHash3."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)

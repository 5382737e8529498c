"""Does one latent stand for a whole output? (Founding question, claim S2.)

tau_1 is how much of an output its best latent explains alone. Where it is near 1, the latent that wins is a picture:
is it one of the training images, and of one class?
"""

import functools

import jax
import jax.numpy as jnp

from sae.analysis.members import over_examples
from sae.model import Sae, unit_rows
from sae.types import Array, Key


@jax.jit
def tau_1(sae: Sae, x: Array) -> tuple[Array, Array]:
    """max over active j of cos²(x̂ - b_dec, W_dec_j) of each example of x [n, d_in] -> (tau_1 [n], that j [n]).

    0 where no latent is active. 1 where one is alone.
    """
    W = unit_rows(sae.W_dec[...])

    def of(rows):
        latents = sae.encode(rows)
        output = unit_rows(sae.decode(latents) - sae.b_dec[...])
        cosines = jnp.matmul(output, W.T, precision="highest")
        squares = jnp.where(latents != 0, cosines**2, 0)
        return jnp.max(squares, axis=1), jnp.argmax(squares, axis=1)

    return over_examples(of, x)


@jax.jit
def nearest_cosine(sae: Sae, train: Array) -> Array:
    """max over training images x of cos(W_dec_j, x - b_dec), [d_sae]: what a latent adds to b_dec, beside an image.

    Both are without b_dec: two images share most of what they have in common with the mean image.
    """
    images = unit_rows(train - sae.b_dec[...])
    best = lambda rows: jnp.max(jnp.matmul(rows, images.T, precision="highest"), axis=1)
    return over_examples(best, unit_rows(sae.W_dec[...]), at_once=64)


def purity(winner: Array, counts: Array, labels: Array, d_sae: int, n_classes: int) -> Array:
    """sum_j max_c n_jc / sum_jc n_jc, n_jc the examples of class c that latent j wins, []: purity of a clustering.

    winner [n], labels [n] in 0..n_classes-1; counts [n] bool says which examples count. NaN if none does. A latent
    that wins once is pure by necessity: compare with shuffled labels (Manning, Raghavan & Schütze 2008, section 16.3).
    """
    table = jnp.zeros((d_sae, n_classes)).at[winner, labels].add(counts)
    return jnp.sum(jnp.max(table, axis=1)) / jnp.sum(table)


@functools.partial(jax.jit, static_argnames="n_classes")
def one_latent(
    sae: Sae, x: Array, labels: Array, train: Array, key: Key, least: float = 0.9, n_classes: int = 10
) -> dict[str, Array]:
    """Of examples x [n, d_in] with labels [n] (see `Digits.labels`), numbers [] each.

    `tau_1`: its mean. `share`: P(tau_1 >= least). Of the examples with tau_1 >= least, and the latents that win one:
    `winners`, how many latents; `nearest_cosine`, their mean `nearest_cosine` with train [n_train, d_in]; `purity`, of
    the examples' classes; `purity_chance`, the same with labels shuffled, mean of 16. The last three are NaN where
    there are none.
    """
    tau, winner = tau_1(sae, x)
    d_sae, wins = sae.W_dec[...].shape[0], tau >= least
    won = jnp.zeros(d_sae).at[winner].max(wins)
    shuffled = jax.lax.map(lambda k: jax.random.permutation(k, labels), jax.random.split(key, 16))
    return {
        "tau_1": jnp.mean(tau),
        "share": jnp.mean(wins),
        "winners": jnp.sum(won),
        "nearest_cosine": jnp.sum(won * nearest_cosine(sae, train)) / jnp.sum(won),
        "purity": purity(winner, wins, labels, d_sae, n_classes),
        "purity_chance": jnp.mean(
            jax.lax.map(lambda shuffle: purity(winner, wins, shuffle, d_sae, n_classes), shuffled)
        ),
    }

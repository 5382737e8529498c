"""Does one latent stand for a whole output? (Founding question, claim S2.)

tau_1 is the share of an output that its best latent explains alone. Where it is near 1, the winning latent is a picture
of the whole output. Is that picture a training image, and are its examples of one class?
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import pandas as pd

from sae.analysis import controls, members
from sae.analysis.ask import Data, by_cohort
from sae.analysis.members import over_examples
from sae.core.model import Sae, normalized, unit_rows
from sae.core.types import Array, Key, UserError
from sae.store.results import Results


@jax.jit
def tau_1(sae: Sae, x: Array) -> tuple[Array, Array]:
    """Examples x [n, d_in] -> (tau_1 [n] = max over active latents j of cos²(x̂ - b_dec, W_dec_j), that j [n]).

    0 where no latent is active, 1 where only one is.
    """
    sae, x = normalized(sae, x)
    W = unit_rows(sae.W_dec[...])

    def best(rows: Array) -> tuple[Array, Array]:
        latents = sae.encode(rows)
        output = unit_rows(sae.decode(latents) - sae.b_dec[...])
        cosines = jnp.matmul(output, W.T, precision="highest")
        squares = jnp.where(latents != 0, cosines**2, 0)
        return jnp.max(squares, axis=1), jnp.argmax(squares, axis=1)

    return over_examples(best, x)


@jax.jit
def nearest_cosine(sae: Sae, train: Array) -> Array:
    """max over training images x of cos(W_dec_j, x - b_dec), [d_sae]: how near each latent is to a training image.

    b_dec is subtracted because two images share most of what they have in common with the mean image.
    """
    sae, train = normalized(sae, train)
    images = unit_rows(train - sae.b_dec[...])
    best = lambda rows: jnp.max(jnp.matmul(rows, images.T, precision="highest"), axis=1)
    return over_examples(best, unit_rows(sae.W_dec[...]), at_once=64)


def purity(winner: Array, counts: Array, labels: Array, d_sae: int, n_classes: int) -> Array:
    """The purity of a clustering, sum_j max_c n_jc / sum_jc n_jc, [], n_jc the examples of class c that latent j wins.

    winner [n]: the latent that wins each example; labels [n] in 0..n_classes-1; counts [n] bool: which examples count.
    NaN if none does. A latent that wins once is pure by necessity, so compare with shuffled labels (Manning, Raghavan &
    Schütze 2008, section 16.3).
    """
    table = jnp.zeros((d_sae, n_classes)).at[winner, labels].add(counts)
    return jnp.sum(jnp.max(table, axis=1)) / jnp.sum(table)


@functools.partial(jax.jit, static_argnames="n_classes")
def one_latent(
    sae: Sae, x: Array, labels: Array, train: Array, key: Key, least: float = 0.9, n_classes: int = 10
) -> dict[str, Array]:
    """Numbers [] that say whether one latent stands for a whole output, for examples x [n, d_in] with labels [n].

    | name | definition |
    |---|---|
    | `tau_1` | mean over examples |
    | `share` | share of examples with tau_1 >= `least`; the rows below are about these examples |
    | `winners` | number of latents that win one of them |
    | `nearest_cosine` | mean over winners of `nearest_cosine` with train [n_train, d_in] |
    | `purity` | purity of the examples' labels |
    | `purity_chance` | the same with the labels of these examples shuffled, mean of 16 |

    The last three are NaN if there are no such examples. `Digits.labels` gives labels.
    """
    tau, winner = tau_1(sae, x)
    d_sae, wins = sae.W_dec[...].shape[0], tau >= least
    won = jnp.zeros(d_sae).at[winner].max(wins)

    def chance(key: Key) -> Array:
        """The purity with the labels of the examples that are won shuffled among them."""
        in_order = jnp.argsort(~wins, stable=True)
        at_random = jnp.argsort(jnp.where(wins, jax.random.uniform(key, wins.shape), jnp.inf))
        shuffled = labels.at[in_order].set(labels[at_random])
        return purity(winner, wins, shuffled, d_sae, n_classes)

    return {
        "tau_1": jnp.mean(tau),
        "share": jnp.mean(wins),
        "winners": jnp.sum(won),
        "nearest_cosine": jnp.sum(won * nearest_cosine(sae, train)) / jnp.sum(won),
        "purity": purity(winner, wins, labels, d_sae, n_classes),
        "purity_chance": jnp.mean(jax.lax.map(chance, jax.random.split(key, 16))),
    }


@dataclasses.dataclass(frozen=True)
class OneLatent:
    """Whether one latent stands for a whole output, on data with labels: `Sweep(..., measures=[OneLatent()])`.

    Each member has two controls with as many latents: PCA (with at most d_in components), and k-means, the limit of one
    latent per example, whose tau_1 is 1.
    """

    least: float = 0.9
    """The least tau_1 at which one latent stands for an output."""
    seed: int = 0
    """Seed of shuffled labels and of k-means."""

    columns: ClassVar[dict[str, str]] = {
        "analysis/tau_1": "the largest cos² of an output less b_dec with an active latent's direction, mean",
        "analysis/one_latent_share": "share of held-out examples whose tau_1 is at least `least`, .9 by default",
        "analysis/winners": "latents that stand for at least one such example",
        "analysis/nearest_cosine": "mean cosine of such a latent's direction with its nearest training image",
        "analysis/purity": "share of such examples that are of their latent's most frequent class",
        "analysis/purity_chance": "the same with the labels of these examples shuffled",
        "analysis/one_latent_share_pca": "one_latent_share of PCA with as many components, d_in at most",
        "analysis/nearest_cosine_k_means": "nearest_cosine of k-means with as many centroids",
        "analysis/purity_k_means": "purity of k-means with as many centroids",
        "analysis/purity_chance_k_means": "the same with labels shuffled",
    }

    def __call__(self, results: Results) -> pd.DataFrame:
        """The results of a run -> a row per member. Raises UserError for data without labels."""

        def ask(saes: Sae, data: Data, rows: pd.DataFrame) -> dict[str, Array]:
            if (load_labels := getattr(data.source, "labels", None)) is None:
                raise UserError(
                    f"OneLatent: got {type(data.source).__name__}, allowed: data with labels, such as Digits"
                )
            labels = jnp.asarray(load_labels()[1])
            n_classes, d_sae = int(labels.max()) + 1, int(rows["d_sae"].iloc[0])
            shared = (data.held_out, labels, data.train, jax.random.key(self.seed), self.least)
            ask_control = lambda control: {
                name: jnp.broadcast_to(value, len(rows))
                for name, value in one_latent(control, *shared, n_classes=n_classes).items()
            }
            pca = ask_control(controls.pca(data.train, min(d_sae, data.train.shape[1])))
            nearest = ask_control(controls.k_means(data.train, min(d_sae, len(data.train)), self.seed))
            found = members.each(one_latent, saes, *shared, n_classes=n_classes)
            named = {"share": "one_latent_share"}
            return (
                {f"analysis/{named.get(name, name)}": value for name, value in found.items()}
                | {"analysis/one_latent_share_pca": pca["share"]}
                | {f"analysis/{n}_k_means": nearest[n] for n in ("nearest_cosine", "purity", "purity_chance")}
            )

        return by_cohort(results, ask)

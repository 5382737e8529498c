"""What the latents know about a text: probes on few of them, for labels that are certain.

    Sweep(..., measures=[Probing()])
    probing.by_task(sae.load("runs/x"), member=3)  # a row per task, in a notebook

A probe on k latents is a logistic regression on the k latents with the largest difference of class means (Gurnee et
al. 2023, arXiv 2305.01610; SAEBench; sae-probes). See `sae/lm/labels.py` for the tasks, `sae/lm/probes.py` for the fit.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from sae.analysis import members
from sae.analysis.ask import Data, by_cohort
from sae.core import console, model
from sae.core.model import Sae, decoder_norms, matmul
from sae.core.types import Array, UserError
from sae.data.activations import Activations
from sae.data.harvested import Harvested
from sae.data.rows import Rows
from sae.lm import labels, probes
from sae.lm.labels import Labels
from sae.lm.probes import Problems
from sae.store.results import Results

KS = (1, 2, 5, 16)
NAMES = (*map(str, KS), "all")


@dataclasses.dataclass(frozen=True)
class Splits:
    """The problems of a measure: every task that has enough rows, under every division of the documents."""

    tasks: tuple[str, ...]
    left_out: dict[str, int]  # tasks that have too few rows, and the fewest rows that one answer has in a half
    problems: Problems  # [len(tasks) · n_splits, n], the divisions of one task beside each other
    n_splits: int


def divide(made: Labels, n_splits: int, least: int, seed: int) -> Splits:
    """Draw `n_splits` divisions of the documents into two halves, to fit on and to test on.

    Documents of one corpus and kind are shared out as equally as their number lets them; a single one falls to either.
    A task is left out if in any half fewer than `least` rows have one of its answers. It is left out as well if another
    task has the same answers, or all the opposite ones. Raises UserError if no task is left.
    """
    rng = np.random.default_rng(seed)
    halves = np.stack([half_of_documents(made, rng) for _ in range(n_splits)])  # [splits, n] bool
    kept, left_out, seen = [], {}, set()
    for name, values in zip(labels.TASKS, made.values, strict=True):
        both = [half for first in halves for half in (first, ~first)]
        fewest = min(int(np.sum(values[half] == answer)) for half in both for answer in (labels.NO, labels.YES))
        turned = np.where(values == labels.UNKNOWN, values, labels.YES - values).astype(np.int8)
        if fewest < least:
            left_out[name] = fewest
        elif values.tobytes() not in seen:
            kept.append(name)
            seen |= {values.tobytes(), turned.tobytes()}
    if not kept:
        raise UserError(f"Probing: no task has {least} rows of each answer in each half; harvest more, or set least")
    values = np.repeat(np.stack([made[name] for name in kept]), n_splits, axis=0)
    y, asked = np.where(values == labels.YES, 1, -1), values != labels.UNKNOWN
    first = np.tile(halves, (len(kept), 1))
    train, test = probes.balanced(y, asked & first), probes.balanced(y, asked & ~first)
    return Splits(tuple(kept), left_out, Problems(*(jnp.asarray(a, jnp.float32) for a in (y, train, test))), n_splits)


def half_of_documents(made: Labels, rng: np.random.Generator) -> np.ndarray:
    """[n] bool: the rows of a random half of the documents."""
    chosen: list[int] = []
    for stratum in np.unique(made.strata):
        documents = rng.permutation(np.unique(made.documents[made.strata == stratum]))
        more = rng.integers(2)  # where their number is odd, either half has one more
        chosen += documents[: (len(documents) + more) // 2].tolist()
    return np.isin(made.documents, chosen)


def accuracies(F: Array, problems: Problems) -> Array:
    """[len(NAMES), p] the accuracy on test rows of probes on 1, 2, 5, 16 and all columns of F [n, d]."""
    d = F.shape[1]
    best = probes.best_columns(F, problems, min(max(KS), d))
    scores, _ = probes.few(F, best, problems, KS)
    every, _ = probes.all_columns(F, problems)
    return probes.accuracy(jnp.concatenate([scores, every[None]]), problems)


def latents(sae: Sae, x: Array) -> Array:
    """[n, d_sae] the latents of normalized examples x [n, d_in], each times the norm of its decoder row.

    That is what a latent adds to a reconstruction. It does not depend on how a method shares a number between the two.
    """
    return members.over_examples(sae.encode, x) * decoder_norms(sae)


def of_member(sae: Sae, x: Array, problems: Problems) -> dict[str, Array]:
    """The `accuracies` of a member's latents, and its L0 on these examples x [n, d_in]."""
    F = latents(sae, x)
    return {"accuracy": accuracies(F, problems), "l0": jnp.mean(jnp.sum(F != 0, axis=1))}


@functools.partial(jax.jit, static_argnames="d_sae")
def at_random(x: Array, problems: Problems, l0: Array | float, key: Array, d_sae: int) -> Array:
    """The `accuracies` of a dictionary of d_sae random directions, uniform on the sphere, for examples x [n, d_in].

    A latent is the projection of x - ⟨x⟩ on its direction where that is above one threshold, and 0 elsewhere. The
    threshold makes `l0` latents active per example. So it has the shape and the L0 of a trained one, and has seen
    nothing but the mean.
    """
    directions = model.unit_rows(jax.random.normal(key, (d_sae, x.shape[1])))
    z = matmul(x - jnp.mean(x, axis=0), directions.T)

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        many = jnp.mean(jnp.sum(z > middle, axis=1)) > l0
        return jnp.where(many, middle, low), jnp.where(many, high, middle)

    threshold, _ = jax.lax.fori_loop(0, 30, halve, (jnp.min(z) - 1, jnp.max(z)))
    return accuracies(jnp.where(z > threshold, z, 0.0), problems)


_dense = jax.jit(accuracies)


@jax.jit
def by_chance(F: Array, problems: Problems, key: Array) -> Array:
    """[p] the accuracy of a probe on the best 16 columns of F [n, d] for answers shuffled among the training rows."""
    order = jnp.argsort(jax.random.uniform(key, problems.y.shape) - 2.0 * (problems.train > 0), axis=1)
    rows = jnp.argsort(~(problems.train > 0), axis=1, stable=True)  # training rows first, as in `order`
    place = jnp.arange(len(rows))[:, None]
    shuffle = lambda values: jnp.zeros_like(values).at[place, rows].set(values[place, order])
    shuffled = Problems(shuffle(problems.y), shuffle(problems.train), problems.test)
    best = probes.best_columns(F, shuffled, min(max(KS), F.shape[1]))
    return probes.accuracy(probes.few(F, best, shuffled, (max(KS),))[0][0], problems)


@dataclasses.dataclass(frozen=True)
class Probing:
    """How well probes on k latents read certain labels of tokens, beside what else they could read them from.

    An accuracy is balanced: the mean of the shares of yes and of no that are right, so that chance is 1/2. Every number
    is a mean over tasks, and over `splits` divisions of the held-out documents into a half to fit on and a half to test
    on. What ends in `_noise` is the standard deviation, over these divisions, of the mean over tasks of one of them:
    how far a number moves when nothing but the seed of the measure changes (reseed noise; Chanin 2026, arXiv
    2605.18229). Members are compared on the same rows and divisions.

    Latents are multiplied by the norms of their decoder rows. Probes have an L2 penalty of .01 on standardized columns.
    """

    n: int = 8_192
    """Held-out rows, chosen at random; all where there are fewer."""
    splits: int = 5
    """Divisions of the documents."""
    least: int = 50
    """Rows of each answer that a task needs in each half; tasks with fewer are left out."""
    seed: int = 0
    """Seed of rows, divisions, random directions and shuffled labels."""

    @property
    def columns(self) -> Mapping[str, str]:
        """The columns."""
        made = {}
        for k in NAMES:
            what = "all latents" if k == "all" else "the best latent" if k == "1" else f"the best {k} latents"
            columns = what.replace("latents", "dimensions").replace("latent", "dimension")
            made[f"analysis/probe_{k}"] = f"accuracy of a probe on {what}, mean over tasks; chance is 1/2"
            made[f"analysis/probe_{k}_noise"] = f"reseed noise of probe_{k}: its deviation over divisions of documents"
            made[f"analysis/probe_{k}_random"] = f"probe_{k} of random directions, as many and as often active"
            made[f"analysis/probe_{k}_dense"] = f"accuracy of a probe on {columns} of the activations themselves"
        made["analysis/probe_dense_noise"] = "reseed noise of probe_all_dense"
        made["analysis/probe_chance"] = "accuracy of a probe on 16 dimensions whose training labels were shuffled"
        made["analysis/probe_tasks"] = "tasks that have enough rows"
        return made

    def __call__(self, results: Results) -> pd.DataFrame:
        """The results of a run -> a row per member. Raises UserError for data that are not `Activations`."""
        known: dict[tuple, Any] = {}

        def ask(saes: Sae, data: Data, rows: pd.DataFrame) -> dict[str, Any]:
            d_sae, d_in = saes.W_enc[...].shape[1:]
            source = data.source, data.data_seed, d_in
            if source not in known:
                known[source] = _asked_of(self, data, d_in)
            x, splits, shared = known[source]
            found = jax.device_get(members.each(of_member, saes, x, splits.problems))
            columns: dict[str, list[float]] = {name: [] for name in self.columns}
            for accuracy, l0 in zip(found["accuracy"], found["l0"], strict=True):
                numbers = dict(shared)
                wanted = *source, d_sae, _two_digits(float(l0))
                if wanted not in known:
                    key = jax.random.fold_in(jax.random.key(self.seed), 1)
                    known[wanted] = np.asarray(at_random(x, splits.problems, wanted[-1], key, d_sae=d_sae))
                for i, k in enumerate(NAMES):
                    numbers[f"analysis/probe_{k}"], numbers[f"analysis/probe_{k}_noise"] = summary(accuracy[i], splits)
                    numbers[f"analysis/probe_{k}_random"], _ = summary(known[wanted][i], splits)
                for name, value in numbers.items():
                    columns[name].append(value)
            return {name: np.array(values) for name, values in columns.items()}

        return by_cohort(results, ask, of_inputs=True)


def _asked_of(measure: Probing, data: Data, d_in: int) -> tuple[Array, Splits, dict[str, float]]:
    """The rows and the problems of a source of data, and the numbers that all members share."""
    x, splits = problems_of(measure, data, d_in)
    if splits.left_out:
        few = ", ".join(f"{name} {n}" for name, n in splits.left_out.items())
        console.say(f"Probing: asks {len(splits.tasks)} tasks; left out, for fewer rows than {measure.least}: {few}")
    dense = np.asarray(_dense(x, splits.problems))
    shared = {f"analysis/probe_{k}_dense": summary(dense[i], splits)[0] for i, k in enumerate(NAMES)}
    chance = np.asarray(by_chance(x, splits.problems, jax.random.key(measure.seed)))
    shared["analysis/probe_dense_noise"] = summary(dense[-1], splits)[1]
    shared["analysis/probe_chance"] = summary(chance, splits)[0]
    shared["analysis/probe_tasks"] = float(len(splits.tasks))
    return x, splits, shared


def problems_of(measure: Probing, data: Data, d_in: int) -> tuple[Array, Splits]:
    """Held-out examples [n, d_in] of what is encoded, normalized, and the problems on them.

    Raises UserError for data that are not `Activations`.
    """
    folder, places, x = held_out_rows("Probing", data, d_in, measure.n, measure.seed)
    made = labels.labels(folder, folder.part("held-out")).of(places)
    return x, divide(made, measure.splits, measure.least, measure.seed)


def held_out_rows(
    name: str, data: Data, d_in: int, n: int, seed: int, among: Callable[[Harvested], np.ndarray] | None = None
) -> tuple[Harvested, np.ndarray, Array]:
    """A harvest, the places [n] of random held-out rows of it, in order, and these as examples [n, d_in].

    `among` gives [n_rows] bool: the rows to choose from; None for all.
    Raises UserError, beginning with the measure's name, for data that are not `Activations`.
    """
    source, rows = data.source, data.rows
    if not isinstance(source, Activations) or not isinstance(rows, Rows):
        raise UserError(f"{name}: got data of {type(source).__name__}, allowed: Activations, from `sae harvest`")
    folder = source.harvested()
    there = np.arange(len(rows.held_out)) if among is None else np.flatnonzero(among(folder))
    places = np.sort(np.random.default_rng(seed).permutation(there)[:n])
    return folder, places, jnp.asarray(rows.examples(np.asarray(rows.held_out[places]))[:, :d_in])


def summary(accuracy: np.ndarray, splits: Splits) -> tuple[float, float]:
    """(mean, reseed noise) of accuracies [p]. The noise is NaN for a single division."""
    of_split = np.asarray(accuracy, np.float64).reshape(-1, splits.n_splits).mean(axis=0)
    return float(of_split.mean()), float(of_split.std(ddof=1)) if len(of_split) > 1 else math.nan


def by_task(results: Results, member: int, measure: Probing | None = None) -> pd.DataFrame:
    """The accuracies of one member's latents for every task, means over divisions: columns 1, 2, 5, 16 and all.

    A last column, dense, has a probe on all dimensions of the activations. Raises UserError as `Probing` does.
    """
    measure = Probing() if measure is None else measure
    sae = model.on_examples(results.sae(member))
    seed = results.definition["members"][member]["data_seed"]
    x, splits = problems_of(measure, Data(results.source(member), seed, lambda: results.data(member)), sae.d_in)
    found = members.each(of_member, members.stack([sae]), x, splits.problems)["accuracy"][0]
    found = np.concatenate([np.asarray(found), np.asarray(_dense(x, splits.problems))[-1:]])
    means = found.reshape(len(found), len(splits.tasks), -1).mean(axis=2)
    return pd.DataFrame(means.T, index=pd.Index(splits.tasks, name="task"), columns=[*NAMES, "dense"])


def _two_digits(value: float) -> float:
    """The number with two significant digits, so that members of about the same L0 share a random dictionary."""
    return float(f"{value:.2g}")

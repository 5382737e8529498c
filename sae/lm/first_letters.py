"""Do latents of words absorb the first letter? (Chanin et al. 2024, "A is for Absorption", arXiv 2409.14507.)

    Sweep(..., measures=[FirstLetterAbsorption()])

A latent that fires on words with the letter t may be silent on "tea", because a latent of that word writes the letter
as well. A probe on the activations still says t. `sae/analysis/absorption.py` asks this of synthetic data, where
features are known.
"""

import dataclasses
import string
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from sae.analysis import members
from sae.analysis.ask import Data, by_cohort
from sae.core.model import Sae, matmul, unit_rows
from sae.core.types import Array, UserError
from sae.data.harvested import Harvested
from sae.lm import labels, probes
from sae.lm.probes import Problems
from sae.lm.probing import half_of_documents, held_out_rows, latents
from sae.store.results import Results

MOST = 5  # main latents of a letter
GAIN = 0.03  # in F1, for which a further latent counts as a main one: SAEBench's threshold of feature splitting
COSINE = 0.025  # least cosine of an absorbing latent's decoder row with the probe, as in SAEBench
SHARE = 0.4  # least share of the activation's projection on the probe that it writes, as in SAEBench


def letters(folder: Harvested) -> np.ndarray:
    """[n_rows] int8: the letter, 0 to 25, that the word begins with which a held-out row's token begins; else -1.

    Capitals count as small letters. Words that begin with a letter beyond a to z have none.
    """
    part = folder.part("held-out")
    first = [piece.lstrip()[:1].lower() for piece in folder.pieces]
    of_token = np.array([string.ascii_lowercase.find(one.decode("latin-1")) if one else -1 for one in first], np.int8)
    found = of_token[part.ids[part.context, part.position]]
    return np.where(labels.labels(folder, part)["word_start"] == labels.YES, found, -1).astype(np.int8)


def main_latents(F: Array, problems: Problems) -> tuple[Array, Array]:
    """The main latents of each letter: ([p, MOST] columns of F [n, d_sae], [p] how many of them are main ones).

    The columns have the largest mean on words with the letter less that on other words, in training. The first is a
    main latent. A further one is while a probe on all up to it has an F1 that is higher by `GAIN` than without it.
    """
    gap = matmul(problems.y * problems.train, F)
    best = jax.lax.top_k(gap, MOST)[1]
    scores, _ = probes.few(F, best, problems, tuple(range(1, MOST + 1)))
    says, is_one = scores > 0, problems.y > 0
    total = lambda rows: jnp.sum(problems.train * rows, axis=-1)
    f1 = 2 * total(says & is_one) / jnp.maximum(total(says) + total(is_one), 1e-12)  # [MOST, p]
    gains = jnp.cumprod(f1[1:] - f1[:-1] >= GAIN, axis=0)
    return best, 1 + jnp.sum(gains, axis=0)


def of_member(sae: Sae, x: Array, problems: Problems, scores: Array, directions: Array) -> dict[str, Array]:
    """Counts of a member on examples x [n, d_in], for letters with probes: scores [p, n] and directions [p, d_in].

    Gives, [p] each: `present`, the test rows with the letter of which the probe says so; `missed`, those on which no
    main latent is active; `absorbed`, those of them on which an absorbing latent is; and `main`, the main latents.
    """
    F, rows = latents(sae, x), unit_rows(sae.W_dec[...])
    best, n_main = main_latents(F, problems)
    probe = unit_rows(directions)
    present = (scores > 0) & (problems.y > 0) & (problems.test > 0)
    along = matmul(probe, (x - jnp.mean(x, axis=0)).T)  # [p, n]

    def of_letter(_: None, one: tuple) -> tuple[None, tuple[Array, Array]]:
        chosen, many, direction, present, along = one
        fires = jnp.any((F[:, chosen] != 0) & (jnp.arange(MOST) < many), axis=1)
        cosines = matmul(rows, direction)  # [d_sae]
        main = jnp.zeros(len(cosines), bool).at[chosen].max(jnp.arange(MOST) < many)
        written = jnp.max(jnp.where(~main & (cosines >= COSINE), F * cosines, 0.0), axis=1)
        missed = present & ~fires
        absorbed = missed & (written > 0) & (written >= SHARE * along)
        return None, (jnp.sum(missed), jnp.sum(absorbed))

    _, (missed, absorbed) = jax.lax.scan(of_letter, None, (best, n_main, probe, present, along))
    return {"present": jnp.sum(present, axis=1), "missed": missed, "absorbed": absorbed, "main": n_main}


_probe = jax.jit(probes.all_columns)


@dataclasses.dataclass(frozen=True)
class FirstLetterAbsorption:
    """How often the latents of a first letter are silent though the letter is there, and another latent writes it.

    Rows are held-out positions whose token begins a word, and a letter's are those whose word begins with it. A probe
    on the activations tells a letter's rows from all others, fitted on half of the documents. On the other half, each
    of the letter's rows of which the probe says so is looked at:

    - *missed*: none of the letter's main latents is active (see `main_latents`);
    - *absorbed*: missed, and a latent that is not a main one has a decoder row with a cosine of at least .025 with the
      probe, and writes at least .4 of the projection of the activation, less the mean, on the probe.

    Shares are means over letters, and over `splits` divisions of the documents; `_noise` is their standard deviation
    over divisions (see `Probing`). What differs from SAEBench: words stand in running text, not in prompts that ask for
    their letter; they are tokens that begin a word, not whole words; main latents are those with the largest difference
    of class means, at most 5; what an absorbing latent does is measured by what it writes along the probe, not by
    ablation; there is no fraction of an absorption.
    """

    n: int = 8_192
    """Held-out rows that begin words, chosen at random; all where there are fewer."""
    splits: int = 3
    """Divisions of the documents."""
    least: int = 30
    """Rows that a letter needs in each half; letters with fewer are left out."""
    seed: int = 0
    """Seed of rows and divisions."""

    columns: ClassVar[dict[str, str]] = {
        "analysis/letters_absorbed": "where a probe says which letter a word begins with, share in which the letter's "
        "main latents are silent and another latent writes it; mean over letters",
        "analysis/letters_absorbed_noise": "reseed noise of letters_absorbed: deviation over divisions of documents",
        "analysis/letters_missed": "the same without regard to what writes it: the main latents are silent",
        "analysis/letters_missed_noise": "reseed noise of letters_missed",
        "analysis/letters_main": "main latents of a letter, mean over letters; above 1 it is split",
        "analysis/letters_probe": "accuracy of the probe on activations, balanced, mean over letters",
        "analysis/letters_asked": "letters that have enough rows",
    }

    def __call__(self, results: Results) -> pd.DataFrame:
        """The results of a run -> a row per member. Raises UserError for data that are not `Activations`."""
        known: dict[tuple, Any] = {}

        def ask(saes: Sae, data: Data, rows: pd.DataFrame) -> dict[str, Any]:
            source = data.source, data.data_seed, saes.d_in
            if source not in known:
                known[source] = self._asked(data, saes.d_in)
            x, problems, scores, directions = known[source]
            found = jax.device_get(members.each(of_member, saes, x, problems, scores, directions))
            by_split = lambda values: np.asarray(values, float).reshape(len(values), -1, self.splits)
            present = np.where(found["present"] > 0, found["present"], np.nan)  # a probe may say nothing of a letter
            share = lambda name: np.nanmean(by_split(found[name] / present), axis=1)
            columns = {"main": by_split(found["main"]).mean((1, 2))}
            for name in ("absorbed", "missed"):
                columns[name] = share(name).mean(axis=1)
                columns[f"{name}_noise"] = _deviation(share(name))
            columns["probe"] = np.mean(np.asarray(probes.accuracy(scores, problems)))
            columns["asked"] = len(scores) / self.splits
            n = len(found["main"])
            return {f"analysis/letters_{name}": np.broadcast_to(value, n) for name, value in columns.items()}

        return by_cohort(results, ask, of_inputs=True)

    def _asked(self, data: Data, d_in: int) -> tuple[Array, Problems, Array, Array]:
        """Examples [n, d_in], the problems [letters · splits] and the probes' scores and directions."""
        name = type(self).__name__
        folder, places, x = held_out_rows(name, data, d_in, self.n, self.seed, lambda folder: letters(folder) >= 0)
        of_row, made = letters(folder)[places], labels.labels(folder, folder.part("held-out")).of(places)
        rng = np.random.default_rng(self.seed)
        halves = [half_of_documents(made, rng) for _ in range(self.splits)]
        fewest = lambda letter: min(int(np.sum((of_row == letter) & half)) for one in halves for half in (one, ~one))
        asked = [letter for letter in range(26) if fewest(letter) >= self.least]
        if not asked:
            raise UserError(f"{name}: no letter begins {self.least} words in each half; harvest more, or set least")
        y = np.stack([np.where(of_row == letter, 1, -1) for letter in asked for _ in halves])
        first = np.tile(np.array(halves, bool), (len(asked), 1))
        made_up = (y, probes.balanced(y, first), probes.balanced(y, ~first))
        problems = Problems(*(jnp.asarray(a, jnp.float32) for a in made_up))
        return x, problems, *_probe(x, problems)


def _deviation(of_split: np.ndarray) -> np.ndarray:
    """[members, splits] -> the standard deviation over splits; NaN for a single one."""
    return of_split.std(axis=1, ddof=1) if of_split.shape[1] > 1 else np.full(len(of_split), np.nan)

"""Do dictionaries agree? The latents of two autoencoders matched one to one, over seeds, widths and methods.

Sweep(..., measures=[Agreement()])
agreement.matrix(sae.load("runs/agreement"), ["activation", "d_sae"])  # each kind of member beside each other
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from sae.core.text import nearest
from sae.core.types import UserError
from sae.store.results import Results

DRAWS = 8  # pairs of random dictionaries that a floor is the mean of


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How far members agree that differ in the seed alone. Paulo & Belrose 2025, arXiv 2501.16615.

    The MCC of two dictionaries matches their latents one to one for the largest sum of absolute cosines of decoder
    rows, and is the mean over the pairs; that of a dictionary with itself is 1. A member's agreement is the mean of its
    MCC with all members of other seeds that are otherwise the same. Random dictionaries agree too, and more the more
    latents they have for their width, which is what the floor says.
    """

    columns: ClassVar[dict[str, str]] = {
        "analysis/agreement": "MCC with members of other seeds: absolute cosine of decoder rows, matched one to one "
        "for the largest sum; mean over the pairs and over the members",
        "analysis/agreement_chance": f"agreement of random dictionaries of the same shape, mean of {DRAWS} pairs",
        "analysis/frequency_correlation": "Spearman's correlation over true features, of how often one is active with "
        "the largest absolute cosine that a latent has with it",
    }

    def __call__(self, results: Results) -> pd.DataFrame:
        """The results of a run -> a row per member; NaN where no member differs in the seed alone, or it has diverged.

        The correlation is NaN for data whose features are not known, or are equally frequent. Raises UserError if
        weights cannot be read, or if no two members agree in all but the seed.
        """
        flats = results.definition["members"]
        finished = results.members.query("status == 'finished'")["member"].tolist()
        alike = _alike(flats, finished)
        if not any(len(group) > 1 for group in alike):
            raise UserError("Agreement: no two members differ in the seed alone; allowed: a sweep over several seeds")
        table = pd.DataFrame(np.nan, index=pd.Index(finished, name="member"), columns=list(self.columns))
        for group in alike:
            rows = {i: np.asarray(results.sae(i).W_dec[...]) for i in group}
            found = {pair: mcc(rows[pair[0]], rows[pair[1]]) for pair in itertools.combinations(group, 2)}
            chance = mcc_chance(len(rows[group[0]]), len(rows[group[0]]), rows[group[0]].shape[1])
            for i in group:
                of_member = [value for pair, value in found.items() if i in pair]
                correlation = follows_frequency(rows[i], results.data(i))
                mean = float(np.mean(of_member)) if of_member else np.nan
                table.loc[i] = [mean, chance if of_member else np.nan, correlation]
        return table


def matrix(results: Results, group: Sequence[str], most: int | None = None) -> pd.DataFrame:
    """The mean MCC between members of every two groups, [group, group]: a member is never compared with itself.

    `group` names hyper-parameters; a group is one combination of their values, of whose members the first `most` are
    compared, or all. Dictionaries of other widths are matched as far as the smaller one goes. Members of one group on
    the diagonal differ in the seed or in what `group` leaves out. NaN for a group of one member with itself. Raises
    UserError for a name that members do not have, and for data of several widths.
    """
    groups = _groups(results, group, most)
    rows = {i: np.asarray(results.sae(i).W_dec[...]) for members in groups.values() for i in members}
    if len({W.shape[1] for W in rows.values()}) > 1:
        raise UserError("agreement: got members of several d_in, allowed: one")
    found = pd.DataFrame(np.nan, index=pd.Index(groups), columns=pd.Index(groups))
    for a, b in itertools.combinations_with_replacement(range(len(groups)), 2):
        first, second = (list(groups.values())[place] for place in (a, b))
        pairs = {tuple(sorted((i, j))) for i in first for j in second if i != j}
        if pairs:
            found.iat[a, b] = found.iat[b, a] = np.mean([mcc(rows[i], rows[j]) for i, j in pairs])
    return found


def matrix_chance(results: Results, group: Sequence[str]) -> pd.DataFrame:
    """The MCC of random dictionaries, [group, group]: the floors of `matrix`. Raises UserError as `matrix` does.

    Where a group holds several widths, it is the mean over them.
    """
    groups = _groups(results, group, None)
    widths = results.members.set_index("member")["d_sae"]
    of_group = {key: sorted(set(widths[members])) for key, members in groups.items()}
    d_in = results.sae(next(iter(groups.values()))[0]).W_dec[...].shape[1]
    known: dict[tuple[int, int], float] = {}

    def floor(n: int, m: int) -> float:
        pair = (min(n, m), max(n, m))
        if pair not in known:
            known[pair] = mcc_chance(*pair, d_in)
        return known[pair]

    mean = lambda a, b: float(np.mean([floor(int(n), int(m)) for n in of_group[a] for m in of_group[b]]))
    return pd.DataFrame([[mean(a, b) for b in groups] for a in groups], pd.Index(groups), pd.Index(groups))


def _groups(results: Results, group: Sequence[str], most: int | None) -> dict[Any, list[int]]:
    """{values of these hyper-parameters: the members that have them}. Raises UserError where members have none."""
    members = results.members.query("status == 'finished'")
    if members.empty:
        raise UserError("agreement: got no member that has not diverged")
    for name in group:
        if name not in members:
            raise UserError(f"agreement: members have no '{name}'; {nearest(name, list(members))}")
    return {key: part["member"].tolist()[:most] for key, part in members.groupby(list(group), dropna=False)}


def mcc(a: np.ndarray, b: np.ndarray) -> float:
    """The mean absolute cosine of two dictionaries a [n, d_in] and b [m, d_in], matched one to one."""
    sizes = _cosines(a, b)
    return float(sizes[linear_sum_assignment(sizes, maximize=True)].mean())


def mcc_chance(n: int, m: int, d_in: int, draws: int = DRAWS) -> float:
    """The MCC of random dictionaries [n, d_in] and [m, d_in], mean over fixed draws."""
    keys = jax.random.split(jax.random.key(0), draws)
    pair = lambda key: (jax.random.normal(jax.random.fold_in(key, i), (size, d_in)) for i, size in enumerate((n, m)))
    return float(np.mean([mcc(*map(np.asarray, pair(key))) for key in keys]))


def _alike(flats: Sequence[Mapping[str, Any]], finished: Sequence[int]) -> list[list[int]]:
    """The finished members in groups that differ in the seed alone."""
    key = lambda flat: tuple(f"{name}={value!r}" for name, value in flat.items() if name not in ("name", "seed"))
    groups: dict[tuple, list[int]] = {}
    for i in finished:
        groups.setdefault(key(flats[i]), []).append(i)
    return list(groups.values())


def follows_frequency(W_dec: np.ndarray, data: Any) -> float:
    """Spearman's correlation of how often the features of `data` are active with how near a decoder row lies to each.

    Near is the largest absolute cosine with a row of W_dec [d_sae, d_in]. NaN where features are not known, or all are
    equally frequent.
    """
    features, frequencies = (getattr(data, name, None) for name in ("features", "frequencies"))
    if features is None or frequencies is None or np.ptp(frequencies) == 0:
        return np.nan
    scale = 1.0 if data.normalization is None else np.asarray(data.normalization.scale)
    best = _cosines(features * scale, W_dec).max(axis=1)
    return float(pd.Series(frequencies).corr(pd.Series(best), method="spearman"))


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[n, m] absolute cosines of the rows of a [n, d_in] and b [m, d_in]; 0 for a row of zeros."""
    units = lambda rows: rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    return np.abs(units(np.float64(a)) @ units(np.float64(b)).T)

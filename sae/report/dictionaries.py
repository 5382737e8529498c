"""What the latents of some members have become: their decoder rows, firing rates and strongest held-out examples.

Only this part of the report reads weights and data again. Members of one cohort are looked at together, on the device.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from sae.core.model import Sae, on_examples, unit_rows
from sae.core.normalization import Normalization
from sae.core.types import Array, UserError
from sae.data.feed import Feed
from sae.data.source import Examples
from sae.engine import cohort as cohorts
from sae.engine import programs
from sae.engine.loading import load
from sae.report import images
from sae.report.data import hyper, label, lines, number
from sae.store.results import Results
from sae.study.figures import Dictionaries
from sae.study.sweep import Sweep

EXAMPLES = 20_000  # at most so many held-out examples are looked through
TOP = 4  # examples shown for each latent
MEMBERS = 8  # at most so many members are shown
FEATURES = 200  # at most so many true features are listed


@dataclasses.dataclass(frozen=True)
class Dictionary:
    """Some latents of one member. The rows of the arrays are in the order of `latents`."""

    row: int  # the member's row in the members table
    member: str
    name: str  # `member`, and what sets it apart
    latents: np.ndarray  # [n], the most active first
    rates: np.ndarray  # [n], firing rates; NaN where the run kept none
    directions: np.ndarray  # [n, d_out], rows of the decoder
    image_shape: tuple[int, ...] | None
    strongest: np.ndarray  # [n, TOP], numbers of held-out examples; -1 for none
    values: np.ndarray  # [n, TOP], the latent's values on these examples
    inputs: dict[int, np.ndarray]  # number -> the example [d_in], in the source's own units
    outputs: dict[int, np.ndarray]  # number -> its reconstruction [d_out], in the source's own units
    features: pd.DataFrame | None  # known true features: feature, frequency, latent, cosine, chance


def choose(members: pd.DataFrame, figure: Dictionaries) -> list[int]:
    """The rows of the members shown: in each arm and group, the member whose metric is closest to `figure.near`."""
    # a member without a penalty is an end of every arm, and stands for none
    sets = [line.members[line.members[line.along] != 0] for line in lines(members, figure.along, figure.group)]
    names = [name for name in figure.group if name in members]
    sets = sets or ([group for _, group in members.groupby(names, dropna=False)] if names else [members])
    distances = [(some[figure.metric] - figure.near).abs().dropna() for some in sets]
    rows = list(dict.fromkeys(int(distance.idxmin()) for distance in distances if len(distance)))
    return rows if len(rows) <= MEMBERS else [rows[i] for i in np.linspace(0, len(rows) - 1, MEMBERS).astype(int)]


def rule(figure: Dictionaries) -> str:
    """A sentence that says which members are shown."""
    each = " and ".join([*(["arm"] if len(figure.along) > 1 else []), *map(label, figure.group)])
    metric = f"{label(figure.metric)} is closest to {figure.near:g}"
    one = f"One member for each {each}: the one" if each else "The member"
    return f"{one} whose {metric}. At most {MEMBERS} are shown."


def look(
    results: Results, members: pd.DataFrame, rows: Sequence[int], figure: Dictionaries, sweep: Sweep | None = None
) -> list[Dictionary]:
    """The dictionaries of some members of a run, given by their rows in its members table.

    The data come from `sweep` where it is given, else from the source that the run's definition describes. Raises
    UserError where data or weights cannot be read, and whatever a user's own source raises.
    """
    found: list[Dictionary] = []
    for index, in_cohort in members.loc[list(rows)].groupby("cohort"):
        if not results.cohorts[index].has_weights:
            raise UserError("it has no weights, as it was pulled from W&B")
        first = results.definition["cohorts"][index][0]
        flat = results.definition["members"][first]
        source = sweep.members[first].data if sweep else results.source(first)
        loaded = {}
        results.check_data(first, source, loaded)
        data = loaded.get(source) or load(source)
        found += _look(results, data, flat, results.cohorts[index].firing_rates(), in_cohort, hyper(members), figure)
    return sorted(found, key=lambda d: list(rows).index(d.row))


def _look(
    results: Results,
    data: Examples,
    flat: Mapping[str, Any],
    rates: Mapping[int, np.ndarray],
    members: pd.DataFrame,
    names: Sequence[str],
    figure: Dictionaries,
) -> list[Dictionary]:
    """The dictionaries of members of one cohort. flat: one of them, flattened; names: what sets members apart."""
    numbers = [int(n) for n in members["number"]]
    saes = cohorts.stack([on_examples(results.sae(n)) for n in numbers])
    d_in, d_out = saes.d_in, saes.d_out
    normalization = data.normalization or Normalization.none(data.d_in)
    seen, made = normalization.part(0, d_in), normalization.part(data.d_in - d_out, data.d_in)
    n = min(flat["d_sae"], figure.latents)
    active = np.stack([rates.get(m, np.full(flat["d_sae"], np.nan)) for m in numbers])
    order = images.most_active_first(active)
    if n < flat["d_sae"]:  # evenly through the order, so that rare and dead latents are shown too
        order = order[:, np.linspace(0, flat["d_sae"] - 1, n).astype(int)]
    values, strongest, inputs = _strongest(saes, jnp.asarray(order), data, flat)
    inputs = inputs[:, :d_in]

    def one(i: int, row: int) -> Dictionary:
        sae = cohorts.unstack(saes, i)
        shown = np.unique(strongest[i][strongest[i] >= 0])
        # one reconstruction per place, not per example: all members then have one shape and one compiled program
        places = strongest[i].ravel()
        outputs = dict(zip(places.tolist(), np.asarray(_reconstruct(sae, jnp.asarray(inputs[places]))), strict=True))
        W_dec = np.asarray(sae.W_dec[...])
        return Dictionary(
            row=row,
            member=f"member {members.at[row, 'member']}",
            name=", ".join([f"member {members.at[row, 'member']}", *_words(members.loc[row], names)]),
            latents=order[i],
            rates=active[i][order[i]],
            directions=W_dec[order[i]],
            image_shape=data.image_shape,
            strongest=strongest[i],
            values=values[i],
            inputs=dict(zip(shown.tolist(), seen.undo(inputs[shown]), strict=True)),
            outputs={at: made.undo(outputs[at]) for at in shown.tolist()},
            features=_features(data, W_dec) if data.features is not None else None,
        )

    return [one(i, int(row)) for i, row in enumerate(members.index)]


@jax.jit
def _reconstruct(sae: Sae, x: Array) -> Array:
    return sae(x)


def _words(member: pd.Series, names: Sequence[str]) -> list[str]:
    """The hyper-parameters that set a member apart, and its main numbers."""
    shown = [*names, *(f"eval/{name}" for name in ("fvu", "l0", "mmcs") if f"eval/{name}" in member)]
    return [f"{label(name)} {number(member[name])}" for name in shown if name != "run" and pd.notna(member[name])]


def _strongest(
    saes: Sae, latents: Array, data: Examples, flat: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values and numbers of each latent's strongest examples, [member, n, TOP] each, and all examples [N, d_in]."""
    best = jnp.zeros((*latents.shape, TOP)), jnp.full((*latents.shape, TOP), -1)  # a value of 0: not active
    n = min(flat.get("n_eval") or EXAMPLES, EXAMPLES)
    feed, batches, start = Feed(data, flat["data_seed"], 1, 1, resident_bytes=0), [], 0
    try:
        for x in feed.held_out(n):
            best = programs.top_examples(saes, latents, best, x, start)
            batches.append(np.asarray(x).T)
            start += x.shape[1]
    finally:
        feed.close()
    values, strongest = jax.device_get(best)
    return values, np.where(values > 0, strongest, -1), np.concatenate(batches)


def _features(data: Examples, W_dec: np.ndarray) -> pd.DataFrame:
    """A row per true feature, the best found first: the closest latent, its cosine, and that of a random dictionary."""
    # a seed that no source uses: Superposition draws its features in the same way
    random = np.random.default_rng((0, 1)).standard_normal(W_dec.shape).astype(np.float32)
    cosines, chance = (data.features @ np.asarray(unit_rows(jnp.asarray(W))).T for W in (W_dec, random))
    table = pd.DataFrame(
        {
            "feature": np.arange(len(cosines)),
            "frequency": np.asarray(data.frequencies),
            "latent": cosines.argmax(axis=1),
            "cosine": cosines.max(axis=1),
            "chance": chance.max(axis=1),
        }
    )
    return table.sort_values("cosine", ascending=False, ignore_index=True)

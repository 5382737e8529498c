"""What latents have become: decoder rows, how often they are active, and on which held-out examples most.

Only this needs the weights and the data again. Members of one cohort are looked at together, on the device.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from sae.core.model import unit_rows
from sae.data.feed import Feed
from sae.data.source import Examples
from sae.engine import cohort as cohorts
from sae.engine import programs
from sae.report.data import hyper, label, lines, number
from sae.store.results import Results
from sae.study.figures import Dictionaries
from sae.study.sweep import Sweep

EXAMPLES = 20_000  # most held-out examples that are looked through
TOP = 4  # examples shown of a latent
MEMBERS = 8  # most members shown
FEATURES = 200  # most true features listed


@dataclasses.dataclass(frozen=True)
class Dictionary:
    """Some latents of one member; rows of the arrays are in the order of `latents`."""

    row: int  # of the members table
    member: str
    name: str  # with what sets it apart
    latents: np.ndarray  # [n]
    rates: np.ndarray  # [n]
    directions: np.ndarray  # [n, d_in], rows of the decoder
    image_shape: tuple[int, ...] | None
    strongest: np.ndarray  # [n, TOP], numbers of held-out examples; -1 for none
    values: np.ndarray  # [n, TOP], of the latent there
    inputs: dict[int, np.ndarray]  # [d_in] of those examples, as the source has them
    outputs: dict[int, np.ndarray]  # their reconstructions
    features: pd.DataFrame | None  # where they are known: feature, frequency, latent, cosine, chance


def choose(members: pd.DataFrame, figure: Dictionaries) -> list[int]:
    """Rows of the members that are shown: of each arm and group the one whose metric is closest to what is asked."""
    # without a penalty a member is an end of every arm, and stands for none
    of_lines = [line.members[line.members[line.along] != 0] for line in lines(members, figure.along, figure.group)]
    of_lines = of_lines or [of for _, of in members.groupby([n for n in figure.group if n in members], dropna=False)]
    distances = [(of[figure.metric] - figure.near).abs().dropna() for of in of_lines]
    rows = list(dict.fromkeys(int(distance.idxmin()) for distance in distances if len(distance)))
    return rows if len(rows) <= MEMBERS else [rows[i] for i in np.linspace(0, len(rows) - 1, MEMBERS).astype(int)]


def rule(figure: Dictionaries) -> str:
    """Which members are shown, in a sentence."""
    of = " and ".join([*(["arm"] if len(figure.along) > 1 else []), *map(label, figure.group)])
    return f"Of each {of} the member whose {label(figure.metric)} is closest to {figure.near:g} ({MEMBERS} at most)."


def look(
    results: Results, members: pd.DataFrame, rows: Sequence[int], figure: Dictionaries, sweep: Sweep | None = None
) -> list[Dictionary]:
    """The dictionaries of some members of a run, rows of its members table.

    The source of data is the sweep's where it is at hand, else it is made anew from the run's definition. Raises
    UserError where data or weights cannot be read, and whatever a source of the user's own raises.
    """
    found: list[Dictionary] = []
    for index, of_cohort in members.loc[list(rows)].groupby("cohort"):
        first = results.definition["cohorts"][index][0]
        flat = results.definition["members"][first]
        data = (sweep.members[first].data if sweep else results.source(first)).load()
        found += _look(results, data, flat, results.cohorts[index].firing_rates(), of_cohort, hyper(members), figure)
    return sorted(found, key=lambda d: list(rows).index(d.row))


def _look(results, data, flat, rates, members, names, figure) -> list[Dictionary]:
    numbers = [int(n) for n in members["number"]]
    saes = cohorts.stack([results.sae(n) for n in numbers])
    n = min(flat["d_sae"], figure.latents)
    active = np.stack([rates.get(m, np.full(flat["d_sae"], np.nan)) for m in numbers])
    order = np.argsort(-np.nan_to_num(active), axis=1, kind="stable")
    if n < flat["d_sae"]:  # evenly through the order, so that the rare and the dead are there too
        order = order[:, np.linspace(0, flat["d_sae"] - 1, n).astype(int)]
    values, strongest, inputs = _strongest(saes, jnp.asarray(order), data, flat)

    def one(i: int, row: int) -> Dictionary:
        sae = cohorts.unstack(saes, i)
        shown = np.unique(strongest[i][strongest[i] >= 0])
        # every place rather than every example, so that members have one shape and one program
        outputs = dict(
            zip(strongest[i].ravel().tolist(), np.asarray(_reconstruct(sae, inputs[strongest[i].ravel()])), strict=True)
        )
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
            inputs=dict(zip(shown.tolist(), data.raw(inputs[shown]), strict=True)),
            outputs={at: data.raw(outputs[at]) for at in shown.tolist()},
            features=_features(data, W_dec) if data.features is not None else None,
        )

    return [one(i, int(row)) for i, row in enumerate(members.index)]


@jax.jit
def _reconstruct(sae, x):
    return sae(x)


def _words(member: pd.Series, names: Sequence[str]) -> list[str]:
    """What sets a member apart, and its main numbers."""
    shown = [*names, *(f"eval/{name}" for name in ("fvu", "l0", "mmcs") if f"eval/{name}" in member)]
    return [f"{label(name)} {number(member[name])}" for name in shown if name != "run" and pd.notna(member[name])]


def _strongest(saes, latents: jax.Array, data: Examples, flat: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values and numbers of each latent's strongest examples [member, n, TOP], and all examples [N, d_in]."""
    best = jnp.zeros((*latents.shape, TOP)), jnp.full((*latents.shape, TOP), -1)  # 0 is not active
    n = min(flat.get("n_eval") or EXAMPLES, EXAMPLES)
    feed, batches, start = Feed(data, flat["data_seed"], 1, 1, resident_bytes=0), [], 0
    try:
        for x, weight in feed.held_out(n):
            best = programs.top_examples(saes, latents, best, x, weight, start)
            batches.append(np.asarray(x).T)
            start += x.shape[1]
    finally:
        feed.close()
    values, strongest = jax.device_get(best)
    return values, np.where(values > 0, strongest, -1), np.concatenate(batches)


def _features(data: Examples, W_dec: np.ndarray) -> pd.DataFrame:
    """A row per true feature, the best found first: the latent that is closest, its cosine, and a random one's."""
    # no source's own seed: Superposition draws its features in the same way
    random = np.random.default_rng((0, 1)).standard_normal(W_dec.shape).astype(np.float32)
    cosines, chance = (data.features @ np.asarray(unit_rows(W)).T for W in (W_dec, random))
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


def tiles(rows: np.ndarray, image_shape: Sequence[int], low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Rows [n, d_in] as images [n, height, width(, 3)] of uint8; low and high [n] are black and white."""
    span = np.maximum(high - low, 1e-12)[:, None]
    pixels = np.clip((rows - low[:, None]) / span, 0, 1).reshape(-1, *image_shape)
    if len(image_shape) == 3 and image_shape[2] != 3:
        pixels = pixels.mean(axis=-1)
    return (255 * pixels).round().astype(np.uint8)


def directions_as_tiles(dictionary: Dictionary) -> np.ndarray:
    """Decoder rows as images, each scaled by its own largest absolute value; grey is 0."""
    largest = np.abs(dictionary.directions).max(axis=1)
    return tiles(dictionary.directions, dictionary.image_shape, -largest, largest)


def sheet(images: np.ndarray, columns: int, empty: int = 0) -> np.ndarray:
    """Images [n, height, width(, 3)] side by side, in rows of so many; what is left over is `empty`."""
    n_rows = math.ceil(len(images) / columns)
    padded = np.full((n_rows * columns, *images.shape[1:]), empty, np.uint8)
    padded[: len(images)] = images
    grid = padded.reshape(n_rows, columns, *images.shape[1:]).swapaxes(1, 2)
    return grid.reshape(n_rows * images.shape[1], columns * images.shape[2], *images.shape[3:])

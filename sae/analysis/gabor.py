"""Are the decoder rows Gabor-like: localised, oriented, bandpass, and near a Gabor function? (P6.)

    scores = gabor.scores(one.W_dec[...], (12, 12))
    pandas.DataFrame(scores)  # a row per latent
    gabor.summary(scores, live)

A high r2 alone is no evidence: a pure grating has one too. "Gabor-like", not "V1-like".
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from sae.analysis import controls, gabor_fit
from sae.analysis.ask import by_cohort
from sae.core.types import Array, UserError

R2, ENERGY, BOX, SIGMA, RESULTANT, DC, OCTAVES = 0.7, 0.9, 0.5, 1 / 3, 0.5, 0.05, (0.5, 2.5)


def scores(W_dec: Array, image_shape: tuple[int, ...]) -> dict[str, Array]:
    """Of rows [..., d_in], stacked members or not, that are grey images: numbers and verdicts, [...] each.

    The Gabor function is fitted to the row less its mean, at norm 1: its parameters and `r2` are those of
    `gabor_fit.fit`. With n the shorter side of the image:

    | name | definition |
    |---|---|
    | `box` | area of the smallest upright box that holds 90 % of the row's energy, of the image's |
    | `resultant` | abs(sum_k P_k exp(2 i angle_k)) / sum_k P_k of the power spectrum: 1 is one orientation |
    | `dc` | (sum_i w_i)² / (d_in sum_i w_i²), w the row with its mean: its share of power at frequency 0 |
    | `octaves` | half-power bandwidth of the fitted function, along its wave; infinite for a lowpass |
    | `localised` | sigma_x and sigma_y <= n / 3, and `box` <= 0.5 |
    | `oriented` | `resultant` >= 0.5 |
    | `bandpass` | `dc` < 0.05, and `octaves` in [0.5, 2.5] |
    | `gabor_like` | all three, and `r2` >= 0.7 |

    Raises UserError where rows are not grey images.
    """
    if len(image_shape) != 2 or image_shape[0] * image_shape[1] != W_dec.shape[-1]:
        raise UserError(
            f"gabor: got rows of {W_dec.shape[-1]} and image_shape {image_shape}; "
            "allowed: the (height, width) of grey images"
        )
    rows = jnp.reshape(W_dec, (-1, W_dec.shape[-1]))
    centred = rows - jnp.mean(rows, axis=1, keepdims=True)
    unit = centred / jnp.maximum(jnp.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    found = gabor_fit.fit(unit, image_shape)
    found |= _of_rows(rows, unit, image_shape)
    found["octaves"] = half_power_octaves(found["sigma_x"], found["frequency"], found["phase"])
    widest = jnp.maximum(found["sigma_x"], found["sigma_y"])
    found["localised"] = (widest <= SIGMA * min(image_shape)) & (found["box"] <= BOX)
    found["oriented"] = found["resultant"] >= RESULTANT
    found["bandpass"] = (found["dc"] < DC) & (found["octaves"] >= OCTAVES[0]) & (found["octaves"] <= OCTAVES[1])
    found["gabor_like"] = found["localised"] & found["oriented"] & found["bandpass"] & (found["r2"] >= R2)
    return {name: value.reshape(W_dec.shape[:-1]) for name, value in found.items()}


def summary(scores: dict[str, Array], live: Array, bins: int = 6) -> dict[str, Array]:
    """Of the rows that are live, a mask [..., rows]: numbers [...] each.

    `share`: of the live rows, those that are Gabor-like. `localised`, `oriented`, `bandpass`, `fitted` (r2 >= 0.7):
    the same for one criterion alone. `median_r2`: of the live rows. `least_orientation`: of the Gabor-like rows, the
    share in the emptiest of `bins` equal bins of theta, of 30 degrees by default.
    """
    share = lambda rows: jnp.sum(rows & live, axis=-1) / jnp.sum(live, axis=-1)
    passing = scores["gabor_like"] & live
    bin_of = jnp.minimum(jnp.floor(scores["theta"] / jnp.pi * bins), bins - 1)
    counts = jnp.stack([jnp.sum(passing & (bin_of == i), axis=-1) for i in range(bins)])
    return {
        "share": share(scores["gabor_like"]),
        **{name: share(scores[name]) for name in ("localised", "oriented", "bandpass")},
        "fitted": share(scores["r2"] >= R2),
        "median_r2": jnp.nanmedian(jnp.where(live, scores["r2"], jnp.nan), axis=-1),
        "least_orientation": jnp.min(counts, axis=0) / jnp.sum(passing, axis=-1),
    }


@jax.jit
def half_power_octaves(sigma: Array, frequency: Array, phase: Array) -> Array:
    """log2 of the upper over the lower frequency at which the power of a Gabor function falls to half its peak, [n].

    Along its wave: of exp(-u² / 2 sigma²) cos(2 pi f u + phase), whose power at frequency nu is, but for a factor,
    E₋² + E₊² + 2 E₋ E₊ cos(2 phase), E∓ = exp(-2 pi² sigma² (nu ∓ f)²). Where f is well above 1 / sigma that is
    log2((f + w) / (f - w)), w = sqrt(ln 2) / (2 pi sigma); where it is not, the phase decides whether the function
    is a lowpass, with no lower frequency: infinite.
    """

    def one(sigma, f, phase):
        nu = jnp.linspace(0, f + 0.5 / sigma, 1024)
        below, above = (jnp.exp(-2 * (jnp.pi * sigma * (nu - sign * f)) ** 2) for sign in (1, -1))
        power = below**2 + above**2 + 2 * below * above * jnp.cos(2 * phase)
        peak = jnp.argmax(power)
        level, i = power[peak] / 2, jnp.arange(len(nu))
        low = jnp.max(jnp.where((i < peak) & (power < level), i, -1))  # the last point under half before the peak
        high = jnp.min(jnp.where((i > peak) & (power < level), i, len(nu) - 1))  # and the first after it
        at = lambda i: nu[i] + (nu[i + 1] - nu[i]) * (level - power[i]) / (power[i + 1] - power[i])
        return jnp.where(low >= 0, jnp.log2(at(high - 1) / at(jnp.maximum(low, 0))), jnp.inf)

    return jax.vmap(one)(sigma, frequency, phase)


@functools.partial(jax.jit, static_argnames="shape")
def _of_rows(rows: Array, unit: Array, shape: tuple[int, int]) -> dict[str, Array]:
    """`box`, `resultant`, `dc` of rows [n, d_in], given also less their mean, at norm 1."""

    def one(args):
        row, image = args
        return {
            "box": smallest_box((image**2).reshape(shape)),
            "resultant": _resultant(image.reshape(shape)),
            "dc": jnp.sum(row) ** 2 / jnp.maximum(len(row) * jnp.sum(row**2), 1e-30),
        }

    return jax.lax.map(one, (rows, unit), batch_size=64)


def smallest_box(energy: Array) -> Array:
    """Area of the smallest upright box that holds 90 % of an energy [height, width], as a share of the image, []."""
    height, width = energy.shape
    total = jnp.pad(jnp.cumsum(jnp.cumsum(energy, axis=0), axis=1), ((1, 0), (1, 0)))  # [height + 1, width + 1]
    rows = total[None, :, :] - total[:, None, :]  # [top, bottom, width + 1]
    inside = rows[:, :, None, :] - rows[:, :, :, None]  # [top, bottom, left, right]
    tall = jnp.arange(height + 1) - jnp.arange(height + 1)[:, None]
    wide = jnp.arange(width + 1) - jnp.arange(width + 1)[:, None]
    area = tall[:, :, None, None] * wide
    # an upside-down box turned over both ways has a positive sum too
    whole = (inside >= ENERGY * total[-1, -1] - 1e-6) & (tall > 0)[:, :, None, None] & (wide > 0)
    return jnp.min(jnp.where(whole, area, height * width)) / (height * width)


def _resultant(image: Array) -> Array:
    side = 4 * max(image.shape)
    power = jnp.abs(jnp.fft.fft2(image, (side, side))) ** 2
    fy, fx = jnp.meshgrid(jnp.fft.fftfreq(side), jnp.fft.fftfreq(side), indexing="ij")
    angle = jnp.arctan2(fy, fx)
    parts = jnp.stack([jnp.sum(power * jnp.cos(2 * angle)), jnp.sum(power * jnp.sin(2 * angle))])
    return jnp.linalg.norm(parts) / jnp.maximum(jnp.sum(power), 1e-30)


@dataclasses.dataclass(frozen=True)
class GaborLike:
    """How many of each member's live rows are Gabor-like, beside two controls: `Sweep(..., measures=[GaborLike()])`.

    Live is what some held-out example activates. A row takes 10 to 30 ms on 2 CPU cores: 40 members of 288 rows some
    minutes.
    """

    n_random: int = 576
    """Rows of Gaussian numbers, drawn for each seed: one control. The other is all principal components of the
    training data, which no seed changes."""

    columns: ClassVar = {
        "analysis/gabor_share": "share of live rows that are localised, oriented, bandpass and fitted with r2 >= .7",
        "analysis/gabor_localised": "share of live rows that are localised",
        "analysis/gabor_oriented": "share of live rows that are oriented",
        "analysis/gabor_bandpass": "share of live rows that are bandpass",
        "analysis/gabor_fitted": "share of live rows that a Gabor function fits with r2 >= .7",
        "analysis/gabor_median_r2": "median r2 of the fits of live rows",
        "analysis/gabor_least_orientation": "share of the Gabor-like rows in the emptiest bin of 30 degrees",
        "analysis/gabor_share_pca": "gabor_share of the principal components of the training data",
        "analysis/gabor_share_random": "gabor_share of random rows, drawn with the member's seed",
    }

    def __call__(self, results) -> pd.DataFrame:
        """The results of a run -> rows by member. Raises UserError where data cannot be read or are not grey images."""

        @functools.cache
        def share_of(data, seed=None):
            """Of the principal components of the data, or of random rows."""
            if seed is None:
                rows = controls.pca(data.train, data.rows.d_in).W_dec[...]
            else:
                random = np.random.default_rng(seed).standard_normal((self.n_random, data.rows.d_in))
                rows = jnp.asarray(random, jnp.float32)
            return float(summary(scores(rows, data.rows.image_shape), jnp.ones(len(rows), bool))["share"])

        def ask(saes, data, rows):
            shape = getattr(data.rows, "image_shape", None)
            if shape is None or len(shape) != 2:
                raise UserError(f"GaborLike: got {type(data.source).__name__}, allowed: data of grey images")
            rates = results.cohorts[int(rows["cohort"].iloc[0])].firing_rates()
            live = jnp.asarray(np.stack([rates[int(member)] > 0 for member in rows["member"]]))
            found = summary(scores(saes.W_dec[...], shape), live)
            return {f"analysis/gabor_{name}": value for name, value in found.items()} | {
                "analysis/gabor_share_pca": np.full(len(rows), share_of(data)),
                "analysis/gabor_share_random": np.array([share_of(data, int(seed)) for seed in rows["seed"]]),
            }

        return by_cohort(results, ask)

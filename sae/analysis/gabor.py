"""Are the decoder rows Gabor-like: localised, oriented, bandpass, and near a Gabor function? (Claim P6.)

    scores = gabor.scores(one.W_dec[...], (12, 12))
    pandas.DataFrame(scores)  # a row per latent
    gabor.summary(scores, live)

A high r2 alone is no evidence: a pure grating has one too. Rows are called "Gabor-like", not "V1-like".
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from sae.analysis import controls, gabor_fit
from sae.analysis.ask import Data, by_cohort
from sae.core.model import Sae
from sae.core.types import Array, UserError
from sae.store.results import Results

R2, ENERGY, BOX, SIGMA, RESULTANT, DC, OCTAVES = 0.7, 0.9, 0.5, 1 / 3, 0.5, 0.05, (0.5, 2.5)
R2_SMALL = 0.65  # asked of the few rows of a small dictionary, with `localised` alone


def scores(W_dec: Array, image_shape: tuple[int, ...] | None) -> dict[str, Array]:
    """Numbers and verdicts on decoder rows [..., d_in] that are grey images, [...] each; members may be stacked.

    A Gabor function is fitted to each row, less its mean and scaled to norm 1; `gabor_fit.fit` names its parameters and
    `r2`. n is the shorter side of the image.

    | name | definition |
    |---|---|
    | `box` | area of the smallest upright box that holds 90 % of the row's energy, as a share of the image's area |
    | `resultant` | abs(sum_k P_k exp(2 i angle_k)) / sum_k P_k of the power spectrum: 1 is one orientation |
    | `dc` | (sum_i w_i)² / (d_in sum_i w_i²), w the row with its mean: the share of power at frequency 0 |
    | `octaves` | half-power bandwidth of the fitted function, along its wave; infinite for a lowpass |
    | `localised` | sigma_x and sigma_y <= n / 3, and `box` <= 0.5 |
    | `oriented` | `resultant` >= 0.5 |
    | `bandpass` | `dc` < 0.05, and `octaves` in [0.5, 2.5] |
    | `gabor_like` | all three, and `r2` >= 0.7 |

    Raises UserError if rows are not grey images.
    """
    if image_shape is None or len(image_shape) != 2 or image_shape[0] * image_shape[1] != W_dec.shape[-1]:
        raise UserError(
            f"gabor: got rows of {W_dec.shape[-1]} and image_shape {image_shape}; "
            "allowed: the (height, width) of grey images"
        )
    rows = jnp.reshape(W_dec, (-1, W_dec.shape[-1]))
    centred = rows - jnp.mean(rows, axis=1, keepdims=True)
    unit = centred / jnp.maximum(jnp.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    found = gabor_fit.fit(unit, image_shape)
    found |= _criteria(rows, unit, image_shape)
    found["octaves"] = half_power_octaves(found["sigma_x"], found["frequency"], found["phase"])
    widest = jnp.maximum(found["sigma_x"], found["sigma_y"])
    found["localised"] = (widest <= SIGMA * min(image_shape)) & (found["box"] <= BOX)
    found["oriented"] = found["resultant"] >= RESULTANT
    found["bandpass"] = (found["dc"] < DC) & (found["octaves"] >= OCTAVES[0]) & (found["octaves"] <= OCTAVES[1])
    found["gabor_like"] = found["localised"] & found["oriented"] & found["bandpass"] & (found["r2"] >= R2)
    return {name: value.reshape(W_dec.shape[:-1]) for name, value in found.items()}


def summary(scores: dict[str, Array], live: Array, bins: int = 6) -> dict[str, Array]:
    """Numbers [...] that sum up the scores of live rows. live: a mask [..., rows].

    | name | definition |
    |---|---|
    | `share` | share of live rows that are Gabor-like |
    | `localised`, `oriented`, `bandpass`, `fitted` | the same for one criterion alone; `fitted` is r2 >= 0.7 |
    | `localised_fit` | share of live rows that are localised and fitted with r2 >= 0.65 |
    | `median_r2` | median r2 of live rows |
    | `least_orientation` | share of the Gabor-like rows in the emptiest of `bins` equal bins of theta, 30° by default |
    """
    share = lambda rows: jnp.sum(rows & live, axis=-1) / jnp.sum(live, axis=-1)
    passing = scores["gabor_like"] & live
    bin_of = jnp.minimum(jnp.floor(scores["theta"] / jnp.pi * bins), bins - 1)
    counts = jnp.stack([jnp.sum(passing & (bin_of == i), axis=-1) for i in range(bins)])
    return {
        "share": share(scores["gabor_like"]),
        **{name: share(scores[name]) for name in ("localised", "oriented", "bandpass")},
        "fitted": share(scores["r2"] >= R2),
        "localised_fit": share(scores["localised"] & (scores["r2"] >= R2_SMALL)),
        "median_r2": jnp.nanmedian(jnp.where(live, scores["r2"], jnp.nan), axis=-1),
        "least_orientation": jnp.min(counts, axis=0) / jnp.sum(passing, axis=-1),
    }


@jax.jit
def half_power_octaves(sigma: Array, frequency: Array, phase: Array) -> Array:
    """The half-power bandwidth of Gabor functions in octaves, [n].

    It is log2 of the upper over the lower frequency at which the power falls to half its peak, along the wave
    exp(-u² / 2 sigma²) cos(2 pi f u + phase). The power at frequency nu is, up to a factor,
    E₋² + E₊² + 2 E₋ E₊ cos(2 phase), E∓ = exp(-2 pi² sigma² (nu ∓ f)²). If f is well above 1 / sigma, the bandwidth is
    log2((f + w) / (f - w)), w = sqrt(ln 2) / (2 pi sigma). If not, the phase decides whether the function is a lowpass,
    which has no lower frequency: then the bandwidth is infinite.
    """

    def one(sigma: Array, f: Array, phase: Array) -> Array:
        nu = jnp.linspace(0, f + 0.5 / sigma, 1024)
        below, above = (jnp.exp(-2 * (jnp.pi * sigma * (nu - sign * f)) ** 2) for sign in (1, -1))
        power = below**2 + above**2 + 2 * below * above * jnp.cos(2 * phase)
        peak = jnp.argmax(power)
        level, i = power[peak] / 2, jnp.arange(len(nu))
        low = jnp.max(jnp.where((i < peak) & (power < level), i, -1))  # last point below half before the peak
        high = jnp.min(jnp.where((i > peak) & (power < level), i, len(nu) - 1))  # first one after it
        at = lambda i: nu[i] + (nu[i + 1] - nu[i]) * (level - power[i]) / (power[i + 1] - power[i])
        return jnp.where(low >= 0, jnp.log2(at(high - 1) / at(jnp.maximum(low, 0))), jnp.inf)

    return jax.vmap(one)(sigma, frequency, phase)


@functools.partial(jax.jit, static_argnames="shape")
def _criteria(rows: Array, unit: Array, shape: tuple[int, int]) -> dict[str, Array]:
    """`box`, `resultant` and `dc` of rows [n, d_in]. unit: the rows less their means, scaled to norm 1."""

    def one(args: tuple[Array, Array]) -> dict[str, Array]:
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
    # a box that is upside down both ways has a positive sum too, hence the conditions on its sides
    whole = (inside >= ENERGY * total[-1, -1] - 1e-6) & (tall > 0)[:, :, None, None] & (wide > 0)
    return jnp.min(jnp.where(whole, area, height * width)) / (height * width)


def _resultant(image: Array) -> Array:
    """How much of the power spectrum of an image [height, width] has one orientation, []."""
    side = 4 * max(image.shape)
    power = jnp.abs(jnp.fft.fft2(image, (side, side))) ** 2
    fy, fx = jnp.meshgrid(jnp.fft.fftfreq(side), jnp.fft.fftfreq(side), indexing="ij")
    angle = jnp.arctan2(fy, fx)
    parts = jnp.stack([jnp.sum(power * jnp.cos(2 * angle)), jnp.sum(power * jnp.sin(2 * angle))])
    return jnp.linalg.norm(parts) / jnp.maximum(jnp.sum(power), 1e-30)


@dataclasses.dataclass(frozen=True)
class GaborLike:
    """How many of each member's live rows are Gabor-like, beside two controls: `Sweep(..., measures=[GaborLike()])`.

    A row is live if some held-out example activates its latent. One control is random rows, drawn for each seed; the
    other is all principal components of the training data. A row takes 10 to 30 ms on 2 CPU cores; 40 members of 288
    rows take some minutes.
    """

    n_random: int = 576
    """Number of random rows, of Gaussian numbers."""

    columns: ClassVar[dict[str, str]] = {
        "analysis/gabor_share": "share of live rows that are localised, oriented, bandpass and fitted with r2 >= .7",
        "analysis/gabor_localised": "share of live rows that are localised",
        "analysis/gabor_oriented": "share of live rows that are oriented",
        "analysis/gabor_bandpass": "share of live rows that are bandpass",
        "analysis/gabor_fitted": "share of live rows that a Gabor function fits with r2 >= .7",
        "analysis/gabor_localised_fit": "share of live rows that are localised and fitted with r2 >= .65",
        "analysis/gabor_median_r2": "median r2 of the fits of live rows",
        "analysis/gabor_least_orientation": "share of the Gabor-like rows in the emptiest bin of 30 degrees",
        "analysis/gabor_share_pca": "gabor_share of the principal components of the training data",
        "analysis/gabor_share_random": "gabor_share of random rows, drawn with the member's seed",
    }

    def __call__(self, results: Results) -> pd.DataFrame:
        """The results of a run -> a row per member. Raises UserError if data cannot be read or are not grey images."""

        shape_of = lambda data: data.rows.image_shape

        @functools.cache
        def share_of(data: Data, seed: int | None = None) -> float:
            """The share of Gabor-like rows among the principal components of the data, or among random rows."""
            if seed is None:
                rows = controls.pca(data.train, data.rows.d_in).W_dec[...]
            else:
                random = np.random.default_rng(seed).standard_normal((self.n_random, data.rows.d_in))
                rows = jnp.asarray(random, jnp.float32)
            return float(summary(scores(rows, shape_of(data)), jnp.ones(len(rows), bool))["share"])

        def ask(saes: Sae, data: Data, rows: pd.DataFrame) -> dict[str, Any]:
            shape = shape_of(data)
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

"""Does an autoencoder remove noise, blobs and aberrant pixels? (Founding question, claim S1.)

A corruption changes clean examples; an autoencoder that was trained on clean examples only sees the corrupted ones.

    scale = denoising.scale_of(train)
    corrupted, mask = denoising.AberrantPixel()(key, x, scale, (8, 8))
    denoising.delta_psnr(one, corrupted, x).mean()
    denoising.auroc(denoising.residual(one, corrupted), mask)

Every function takes a trained autoencoder or a control (see `controls`); `members.each` maps the functions of one
autoencoder over stacked ones.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from flax import struct
from numpy.typing import ArrayLike
from sklearn.metrics import roc_auc_score

from sae.analysis import controls, members
from sae.analysis.ask import Data, by_cohort
from sae.core.model import Sae
from sae.core.types import Array, Key, UserError, definition, leaf, static
from sae.store.results import Results


@struct.dataclass
class Scale:
    """The scale of corruptions: the data's `std` []; `low` and `high`, [] or [d_in], the values of pepper and salt."""

    std: Array
    low: Array
    high: Array


def scale_of(train: np.ndarray, tail: float = 0.001) -> Scale:
    """The scale of training examples [n, d_in].

    `std` = sqrt(mean (x - x̄)²) over all pixels, x̄ [d_in] the mean example. `low` and `high` are the `tail` and
    1 - `tail` quantiles of all pixels, because the extremes of whitened pixels are outliers.
    """
    train = np.asarray(train)
    low, high = np.quantile(train, (tail, 1 - tail))
    std = np.sqrt(np.mean(np.var(train, axis=0, dtype=np.float64)))
    return Scale(*(jnp.asarray(value, jnp.float32) for value in (std, low, high)))


@definition
class Gaussian:
    """Gaussian noise, x + sigma std n with n ~ N(0, I): every pixel is corrupted."""

    sigma: float = leaf(0.3, min=0)
    """Standard deviation of the noise, in units of the data's standard deviation."""

    @functools.partial(jax.jit, static_argnames="image_shape")
    def __call__(self, key: Key, x: Array, scale: Scale, image_shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Examples x [n, d_in] -> (corrupted [n, d_in], mask [n, d_in] of the pixels that changed)."""
        return _changed(x, x + self.sigma * scale.std * jax.random.normal(key, x.shape))


@definition
class SaltAndPepper:
    """Salt and pepper: each pixel, with probability `share`, becomes the scale's `high` or `low`, equally likely."""

    share: float = leaf(0.05, min=0, max=1)
    """Expected share of the pixels hit. Some examples have none."""

    @functools.partial(jax.jit, static_argnames="image_shape")
    def __call__(self, key: Key, x: Array, scale: Scale, image_shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Examples x [n, d_in] -> (corrupted [n, d_in], mask [n, d_in] of the pixels that changed)."""
        hit_key, salt_key = jax.random.split(key)
        salt = jnp.where(jax.random.bernoulli(salt_key, 0.5, x.shape), scale.high, scale.low)
        return _changed(x, jnp.where(jax.random.bernoulli(hit_key, self.share, x.shape), salt, x))


@definition
class Blob:
    """A blob: one square of `size` x `size` pixels, wholly inside the image, becomes the scale's `high` or `low`.

    It becomes the value that is farther from the square's mean, so that a blob always shows.
    """

    size: int = static(2, min=1)
    """Side of the square, in pixels."""

    @functools.partial(jax.jit, static_argnames="image_shape")
    def __call__(self, key: Key, x: Array, scale: Scale, image_shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Examples x [n, d_in] -> (corrupted [n, d_in], mask [n, d_in] of the pixels that changed)."""
        height, width, *channels = image_shape
        n, down, across = len(x), height - self.size + 1, width - self.size + 1
        top, left = jnp.divmod(jax.random.randint(key, (n,), 0, down * across), across)
        inside = lambda start, length: (
            (jnp.arange(length) >= start[:, None]) & (jnp.arange(length) < start[:, None] + self.size)
        )
        square = inside(top, height)[:, :, None] & inside(left, width)[:, None, :]
        square = jnp.repeat(square.reshape(n, -1), channels[0] if channels else 1, axis=1)
        middle = (scale.low + scale.high) / 2
        below = jnp.sum(jnp.where(square, x - middle, 0), axis=1, keepdims=True) < 0
        return _changed(x, jnp.where(square, jnp.where(below, scale.high, scale.low), x))


@definition
class AberrantPixel:
    """An aberrant pixel: a blob of one pixel."""

    @functools.partial(jax.jit, static_argnames="image_shape")
    def __call__(self, key: Key, x: Array, scale: Scale, image_shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Examples x [n, d_in] -> (corrupted [n, d_in], mask [n, d_in] of the pixels that changed)."""
        return Blob(size=1)(key, x, scale, image_shape)


Corruption = Gaussian | SaltAndPepper | Blob | AberrantPixel


def _changed(x: Array, corrupted: Array) -> tuple[Array, Array]:
    return corrupted, corrupted != x


def psnr(a: Array, x: Array, peak: Array | float) -> Array:
    """Peak signal-to-noise ratio of each example, 10 log10(peak² / mean_i (a_i - x_i)²) dB: [n, d_in] -> [n].

    peak: the range of the data, `scale.high - scale.low`. It cancels in a difference of two ratios.
    """
    return 10 * jnp.log10(peak**2 / jnp.mean((a - x) ** 2, axis=-1))


@jax.jit
def delta_psnr(sae: Sae, corrupted: Array, clean: Array) -> Array:
    """The gain of each example in dB, PSNR(x̂(x̃), x) - PSNR(x̃, x) = 10 log10(‖x̃ - x‖² / ‖x̂(x̃) - x‖²), [n].

    Above 0, the output is nearer to the clean example than the input was. NaN where the corruption changed nothing.
    """

    def part(corrupted: Array, clean: Array) -> Array:
        before = jnp.sum((corrupted - clean) ** 2, axis=1)
        after = jnp.sum((sae(corrupted) - clean) ** 2, axis=1)
        return jnp.where(before > 0, 10 * jnp.log10(before / after), jnp.nan)

    return members.over_examples(part, corrupted, clean)


@jax.jit
def mean_delta_psnr(sae: Sae, corrupted: Array, clean: Array) -> Array:
    """The mean of `delta_psnr` over the examples that the corruption changed, [] dB."""
    return jnp.nanmean(delta_psnr(sae, corrupted, clean))


@jax.jit
def noise_curve(sae: Sae, key: Key, clean: Array, sigmas: Array, scale: Scale) -> Array:
    """`mean_delta_psnr` under Gaussian noise of each sigma, [n_sigmas] dB. All sigmas scale the same draws."""
    d_in = clean.shape[1]

    def at(sigma: Array) -> Array:
        noise = Gaussian(sigma=sigma)  # ty: ignore[invalid-argument-type]  (a leaf may be traced)
        return mean_delta_psnr(sae, noise(key, clean, scale, (d_in,))[0], clean)

    return jax.lax.map(at, jnp.asarray(sigmas))


def crossover(sigmas: ArrayLike, gains: ArrayLike) -> np.ndarray:
    """sigma*, the noise level from which on filtering pays: gains [..., n_sigmas] dB at rising sigmas -> [...].

    It is where the gains last rise from below 0 to 0 or above, interpolated in log sigma. NaN where they never do:
    filtering pays already at the smallest sigma, or not even at the largest.
    """
    gains, logs = np.asarray(gains, float), np.log(np.asarray(sigmas, float))
    up = (gains[..., :-1] < 0) & (gains[..., 1:] >= 0)
    last = up.shape[-1] - 1 - np.argmax(up[..., ::-1], axis=-1)
    low, high = (np.take_along_axis(gains, (last + shift)[..., None], -1)[..., 0] for shift in (0, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        log = logs[last] + (logs[last + 1] - logs[last]) * -low / (high - low)
    return np.where(up.any(-1) & (gains[..., -1] >= 0), np.exp(log), np.nan)


@jax.jit
def residual(sae: Sae, corrupted: Array) -> Array:
    """The residual of every pixel, abs(x̃ - x̂(x̃)), [n, d_in]: large where the autoencoder rejects what it sees."""
    return members.over_examples(lambda rows: jnp.abs(rows - sae(rows)), corrupted)


def auroc(residuals: ArrayLike, mask: ArrayLike) -> np.ndarray:
    """Area under the ROC curve of residuals [..., n, d_in] as a detector of the pixels in mask [n, d_in] -> [...].

    It is the probability that a corrupted pixel, of any example, has a larger residual than an intact one; 1/2 for a
    blind detector. NaN where all pixels are corrupted (Gaussian noise), or none.
    """
    values, corrupted = np.asarray(residuals), np.asarray(mask).reshape(-1)
    if corrupted.all() or not corrupted.any():
        return np.full(values.shape[:-2], np.nan)
    flat = values.reshape(-1, corrupted.size)
    return np.array([roc_auc_score(corrupted, one) for one in flat]).reshape(values.shape[:-2])


def best(saes: Sae, corrupted: Array, clean: Array) -> int:
    """The place of the autoencoder or control, among stacked ones, that has the highest `mean_delta_psnr`.

    Choose on validation examples and measure on others. The choice may be a rank of `controls.pca_of_each_rank`, the
    width of a blur, or the coefficient of a sweep.
    """
    return int(np.argmax(members.each(mean_delta_psnr, saes, corrupted, clean)))


CORRUPTIONS: dict[str, Corruption] = {
    **{f"gaussian_{sigma}": Gaussian(sigma=sigma) for sigma in (0.1, 0.2, 0.3, 0.5)},
    "salt_and_pepper": SaltAndPepper(),
    "blob": Blob(),
    "pixel": AberrantPixel(),
}
LOCAL = ("salt_and_pepper", "blob", "pixel")  # corruptions that leave pixels intact, so that hit pixels can be detected
BLURS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)  # pixels
SIGMAS = tuple(float(sigma) for sigma in np.geomspace(0.02, 2.0, 21))


@dataclasses.dataclass(frozen=True)
class Denoising:
    """What members trained on clean images remove from corrupted ones: `Sweep(..., measures=[Denoising()])`.

    Held-out images are split in two halves. Gains on the first half, the validation images, choose a coefficient, a
    PCA's rank or a blur's width; gains on the second half, the test images, are reported. Both halves come from the
    same held-out photographs.
    """

    n: int = 4_096
    """Number of held-out images, the first ones, both halves together."""
    seed: int = 0
    """Seed of the corruptions."""

    @property
    def columns(self) -> dict[str, str]:
        """The columns and their meanings: for each corruption the gains of members and controls, and the AUROC."""
        gain = "PSNR gained from a corrupted image to its reconstruction, dB, mean"
        found = {}
        for name in CORRUPTIONS:
            found[f"analysis/gain_{name}"] = f"{gain} over test images"
            found[f"analysis/gain_{name}_validation"] = f"{gain} over validation images"
            found[f"analysis/gain_{name}_pca"] = f"{gain}, by PCA of the rank that is best on validation images"
            found[f"analysis/rank_{name}_pca"] = "the rank of that PCA"
            found[f"analysis/gain_{name}_blur"] = f"{gain}, by the Gaussian blur that is best on validation images"
            found[f"analysis/gain_{name}_mean"] = f"{gain}, by the mean training image, whatever is seen"
        for name in LOCAL:
            found[f"analysis/auroc_{name}"] = "AUROC of abs(x - x_hat) of a corrupted image's pixels for those hit"
            found[f"analysis/auroc_{name}_mean"] = "the same by the mean training image"
        found["analysis/crossover"] = "sigma*: the Gaussian noise, in units of the data's, from which filtering pays"
        return found

    def __call__(self, results: Results) -> pd.DataFrame:
        """The results of a run -> a row per member.

        Raises UserError if the data are not images, or if data or weights cannot be read.
        """
        known: dict[Data, _Shared] = {}

        def ask(saes: Sae, data: Data, rows: pd.DataFrame) -> dict[str, Any]:
            if (shape := data.rows.image_shape) is None:
                raise UserError(f"Denoising: got {type(data.source).__name__}, allowed: data of images")
            if data not in known:
                known[data] = self._controls(data, shape)
            shared, found = known[data], {}
            for name, (seen, mask) in shared.corrupted.items():
                for half, suffix in ((0, "_validation"), (1, "")):
                    gain = members.each(mean_delta_psnr, saes, seen[half], shared.halves[half])
                    found[f"analysis/gain_{name}{suffix}"] = gain
                if name in LOCAL:
                    found[f"analysis/auroc_{name}"] = auroc(members.each(residual, saes, seen[1]), mask)
            key = jax.random.key(self.seed)
            gains = members.each(noise_curve, saes, key, shared.halves[1], jnp.array(SIGMAS), shared.scale)
            found["analysis/crossover"] = crossover(SIGMAS, gains)
            return found | {name: np.full(len(rows), value) for name, value in shared.controls.items()}

        return by_cohort(results, ask)

    def _controls(self, data: Data, shape: tuple[int, ...]) -> "_Shared":
        """Corrupt the data and measure the controls on them."""
        x = jnp.asarray(data.held_out[: self.n])
        halves = x[: len(x) // 2], x[len(x) // 2 :]
        scale, pca = scale_of(data.train), controls.pca_of_each_rank(data.train)
        blurs = members.stack([controls.blur(shape, sigma) for sigma in BLURS])
        cases: dict[str, tuple[list[Array], Array]] = {}
        found: dict[str, float] = {}
        for i, (name, corruption) in enumerate(CORRUPTIONS.items()):
            keys = jax.random.split(jax.random.fold_in(jax.random.key(self.seed), i))
            corrupted = [corruption(k, x, scale, shape) for k, x in zip(keys, halves, strict=True)]
            seen, mask = [images for images, _ in corrupted], corrupted[1][1]
            for kind, control in (("pca", pca), ("blur", blurs)):
                chosen = best(control, seen[0], halves[0])
                gains = members.each(mean_delta_psnr, control, seen[1], halves[1])
                found[f"analysis/gain_{name}_{kind}"] = float(gains[chosen])
                if kind == "pca":  # rank 0 is the mean image
                    found |= {f"analysis/rank_{name}_pca": chosen, f"analysis/gain_{name}_mean": float(gains[0])}
            if name in LOCAL:
                mean = controls.pca(data.train, 0)
                found[f"analysis/auroc_{name}_mean"] = float(auroc(residual(mean, seen[1]), mask))
            cases[name] = seen, mask
        return _Shared(cases, found, scale, halves)


class _Shared(NamedTuple):
    """What all members on the same data share."""

    corrupted: dict[str, tuple[list[Array], Array]]  # corruption: (both halves corrupted, mask of the test half)
    controls: dict[str, float]  # the controls' columns
    scale: Scale
    halves: tuple[Array, Array]  # validation and test images

"""Metrics of one member: sums that add inside the compiled loop, and the numbers made of them after it.

`METRICS` defines every metric. Each is a function of sums over a stated window of N examples. `eval/...`: all held-out
examples. `train/...`: the training examples of one chunk; `mse`, `fvu` and `dead` count all of them, the other metrics
the first sixteenth of every batch (see `probe`). `OF_A_STEP` defines what is logged of one step.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sae.core.model import unit_rows
from sae.core.normalization import split
from sae.core.types import Array, Key

PROBE_SHARE, PROBE_LEAST = 16, 64  # one example in so many of a training batch, but no fewer than these
RELATIVE = 0.01  # l0_relative counts latents above this share of the example's largest
HISTOGRAM_EDGES = np.linspace(-6.0, 0.0, 25)  # of log10 firing rate


@dataclasses.dataclass(frozen=True)
class Metric:
    """What a metric is. In formulas x is an example, x̂ its reconstruction, f its latents, ⟨·⟩ a mean over examples."""

    meaning: str
    formula: str = ""

    @property
    def caption(self) -> str:
        """Meaning and formula in a line."""
        return f"{self.meaning} ({self.formula})" if self.formula else self.meaning


METRICS = {
    "mse": Metric("squared error of an example, summed over d_in; mean over examples", "⟨‖x − x̂‖²⟩"),
    "fvu": Metric("fraction of variance unexplained; 0 is a perfect reconstruction", "Σ‖x − x̂‖² / Σ‖x − ⟨x⟩‖²"),
    "fvu_1": Metric("fvu of a crosscoder's first source alone; fvu_2 is that of the second, and so on"),
    "r2_median": Metric(
        "R² of an input dimension, median over dimensions; unlike fvu, a few of large variance do not decide it",
        "medianⱼ 1 − Σ(xⱼ − x̂ⱼ)² / Σ(xⱼ − ⟨xⱼ⟩)²",
    ),
    "l0": Metric("mean active units: latents that are not 0, per example", "⟨#{i: fᵢ ≠ 0}⟩"),
    "l0_relative": Metric("latents above 1 % of the example's largest, per example", "⟨#{i: |fᵢ| > .01 max |f|}⟩"),
    "n_eff": Metric("effective number of active units, per example", "⟨(Σ|fᵢ|)² / Σfᵢ²⟩"),
    "l1": Metric("sum of absolute latents, per example", "⟨Σ|fᵢ|⟩"),
    "cosine": Metric("cosine of an example and its reconstruction; mean over examples", "⟨x·x̂ / (‖x‖ ‖x̂‖)⟩"),
    "shrinkage": Metric("γ of Rajamanoharan et al. (2024); below 1, reconstructions are too short", "Σ‖x̂‖² / Σ x·x̂"),
    "dead": Metric(
        "latents active on none of the held-out examples (`eval/`), or of the last `dead_after` examples (`train/`)"
    ),
    "dead_fraction": Metric("share of latents that are dead", "dead / d_sae"),
    "examples": Metric("number of held-out examples"),
    "norm_max_ratio": Metric("largest norm of a raw row of the data, in units of the median norm of training rows"),
    "firing_rate_q10": Metric("share of examples on which a latent is active: the 10 % quantile over latents"),
    "firing_rate_q50": Metric("share of examples on which a latent is active: the median over latents"),
    "firing_rate_q90": Metric("share of examples on which a latent is active: the 90 % quantile over latents"),
    "mmcs": Metric(
        "mean max cosine similarity: the best cosine of a decoder row with a true feature, mean over features"
    ),
    "mmcs_weighted": Metric("mmcs, each feature weighted by its frequency"),
    "mmcs_reverse": Metric("the best cosine of a true feature with a decoder row, mean over latents"),
    "mmcs_chance": Metric("mmcs of random dictionaries of the same shape"),
    "mmcs_weighted_chance": Metric("mmcs_weighted of random dictionaries of the same shape"),
    "mmcs_reverse_chance": Metric("mmcs_reverse of random dictionaries of the same shape"),
}
"""Every metric of an evaluated member; those named mmcs exist only where the true features are known,
`norm_max_ratio` only where the data are rows, `fvu_1` only where a row has several sources.

The only place where metrics are described: captions, tables of the report and docs/definitions.md take their words from
here. A ratio over an example is 0 where its denominator is 0.
"""
MOST_SOURCES = 99
EVALUATED = (*METRICS, *(f"fvu_{i}" for i in range(2, MOST_SOURCES + 1)))

OF_A_STEP = {
    "loss": Metric("loss of the batch: the sum of its terms", "reconstruction + penalty + auxiliary + activation_cost"),
    "reconstruction": Metric("error of the reconstruction, as the experiment's `reconstruction` defines it"),
    "penalty": Metric("penalty, times the factor of the control and of its warm-up"),
    "auxiliary": Metric("auxiliary cost, where the experiment has one"),
    "activation_cost": Metric("cost that the activation itself adds, where it has one"),
    "grad_norm": Metric("norm of the loss's gradient over all parameters, as the constraint leaves it", "‖∇‖₂"),
    "lr": Metric("learning rate"),
}
"""What the log shows of the last step of every chunk (`train/` only): its whole batch, with weights after the update.
It is no sum over the chunk, so that the other steps do not pay for it.
"""


def metric(name: str) -> Metric | None:
    """What a number is, by its name without a window; None where it is none of these tables."""
    source = name.removeprefix("fvu_")
    return METRICS["fvu_1"] if source != name and source.isdecimal() else METRICS.get(name) or OF_A_STEP.get(name)


@struct.dataclass
class Moments:
    """Sums over the examples of a window, shared by every member as they depend on the examples alone."""

    n: Array  # [], their number
    total: Array  # [d_out], sum of x - pivot
    squares: Array  # [d_out], sum of (x - pivot)²

    @classmethod
    def zero(cls, d_out: int) -> "Moments":
        """The moments of no examples."""
        return cls(n=jnp.zeros((), jnp.int32), total=jnp.zeros(d_out), squares=jnp.zeros(d_out))

    def variation(self) -> Array:
        """The variation sum_b (x_b - x̄)², [d_out], x̄ the window's mean. A pivot near x̄ keeps it exact in float32."""
        return self.squares - self.total**2 / jnp.maximum(self.n, 1)


@struct.dataclass
class Sums:
    """Sums of one member over a window of examples, all of shape [] but `squared_error` and `fired`."""

    n: Array
    squared_error: Array  # [d_out]
    active: Array
    absolute: Array
    active_relative: Array
    effective: Array
    cosine: Array
    x_dot_x_hat: Array
    x_hat_squared: Array
    fired: Array  # [d_sae], on how many examples each latent was active

    @classmethod
    def zero(cls, d_out: int, d_sae: int) -> "Sums":
        """The sums of no examples."""
        nothing = jnp.zeros(())
        return cls(nothing, jnp.zeros(d_out), *[nothing] * 7, fired=jnp.zeros(d_sae, jnp.int32))


def moments(x: Array, pivot: Array) -> Moments:
    """The moments of examples x [d_out, batch], those that are reconstructed."""
    deviation = x - pivot[:, None]
    return Moments(
        n=jnp.full((), x.shape[1], jnp.int32), total=jnp.sum(deviation, axis=1), squares=jnp.sum(deviation**2, axis=1)
    )


def sums(latents: Array, x_hat: Array, x: Array) -> Sums:
    """The sums of one pass: latents [d_sae, batch], reconstructions x_hat of x [d_out, batch]."""
    size = jnp.abs(latents)
    largest, total, squares = jnp.max(size, axis=0), jnp.sum(size, axis=0), jnp.sum(latents * latents, axis=0)
    fired = jnp.sum(jnp.where(latents != 0, 1.0, 0.0), axis=1)
    dot, x_hat_squared = jnp.sum(x * x_hat, axis=0), jnp.sum(x_hat * x_hat, axis=0)
    norms = jnp.sqrt(jnp.sum(x * x, axis=0)) * jnp.sqrt(x_hat_squared)
    return Sums(
        n=jnp.full((), x.shape[1], jnp.float32),
        squared_error=jnp.sum((x_hat - x) ** 2, axis=1),
        active=jnp.sum(fired),
        active_relative=jnp.sum(jnp.sum(jnp.where(size > RELATIVE * largest, 1.0, 0.0), axis=0)),
        effective=jnp.sum(_ratio(total * total, squares)),
        absolute=jnp.sum(total),
        cosine=jnp.sum(_ratio(dot, norms)),
        x_dot_x_hat=jnp.sum(dot),
        x_hat_squared=jnp.sum(x_hat_squared),
        fired=fired.astype(jnp.int32),
    )


def probe(latents: Array, x_hat: Array, x: Array) -> Sums:
    """The sums of a training batch: `squared_error` over all its examples, the others over its first sixteenth.

    The sixteenth is at least 64 examples. On a CPU, the passes over all latents that these metrics need would cost a
    third of a step.
    """
    n = max(PROBE_LEAST, x.shape[1] // PROBE_SHARE)
    first = lambda columns: columns[:, :n]
    some = sums(first(latents), first(x_hat), first(x))
    # without the barrier XLA merges the two sums into one and writes its terms to memory first
    rows = jax.lax.optimization_barrier(jnp.sum((x_hat - x) ** 2, axis=1))
    return dataclasses.replace(some, squared_error=rows)


def finish(s: Sums, m: Moments, parts: Sequence[int] = ()) -> dict[str, Array]:
    """Sums over a window -> its metrics, without `dead`, whose window is longer.

    `fvu` is NaN if all examples are equal. parts: widths of the sources side by side in an example.
    """
    n, rates = jnp.maximum(s.n, 1), s.fired / jnp.maximum(s.n, 1)
    by_dimension = m.variation()
    error, variation = jnp.sum(s.squared_error), jnp.sum(by_dimension)
    varies = by_dimension > 1e-12 * variation  # a constant dimension has no R²
    per_source = {}
    if len(parts) > 1:
        both = zip(split(s.squared_error, parts), split(by_dimension, parts), strict=True)
        unexplained = [jnp.where(jnp.sum(v) > 0, jnp.sum(e) / jnp.sum(v), jnp.nan) for e, v in both]
        per_source = {f"fvu_{i}": value for i, value in enumerate(unexplained, 1)}
    r2 = 1 - s.squared_error / jnp.where(varies, by_dimension, 1)
    q10, q50, q90 = jnp.quantile(rates, jnp.array([0.1, 0.5, 0.9]))
    return {
        "mse": error / jnp.maximum(m.n, 1),
        "fvu": jnp.where(variation > 0, error / variation, jnp.nan),
        **per_source,
        "r2_median": jnp.nanmedian(jnp.where(varies, r2, jnp.nan)),
        "l0": s.active / n,
        "l0_relative": s.active_relative / n,
        "n_eff": s.effective / n,
        "l1": s.absolute / n,
        "cosine": s.cosine / n,
        "shrinkage": _ratio(s.x_hat_squared, s.x_dot_x_hat),
        "firing_rate_q10": q10,
        "firing_rate_q50": q50,
        "firing_rate_q90": q90,
    }


def dead(silent: Array) -> dict[str, Array]:
    """silent [d_sae] bool -> the number and the fraction of dead latents."""
    return {"dead": jnp.sum(silent, dtype=jnp.int32), "dead_fraction": jnp.mean(silent, dtype=jnp.float32)}


def firing_rate_histogram(rates: np.ndarray) -> np.ndarray:
    """rates [d_sae] -> counts [bins] of latents over log10 firing rate; those that never fired are in the first bin."""
    low, high = HISTOGRAM_EDGES[[0, -1]]
    return np.histogram(np.clip(np.log10(np.maximum(rates, 1e-30)), low, high), bins=HISTOGRAM_EDGES)[0]


def mmcs(features: Array, frequencies: Array, W_dec: Array) -> dict[str, Array]:
    """Mean max cosine similarity of decoder rows with the true features, in both directions (Sharkey et al. 2022).

    features [n_features, d_in], unit rows; frequencies [n_features]; W_dec [d_sae, d_in]. `mmcs`, the mean over
    features g of max_j cos(g, W_dec_j), says how well the features are found; `mmcs_weighted` weights features by
    frequency. `mmcs_reverse`, the mean over latents j of max_g cos(g, W_dec_j), says how well the latents are
    explained. Cosines keep their sign.
    """
    cosines = features @ unit_rows(W_dec).T
    best = jnp.max(cosines, axis=1)
    return {
        "mmcs": jnp.mean(best),
        "mmcs_weighted": jnp.sum(best * frequencies) / jnp.sum(frequencies),
        "mmcs_reverse": jnp.mean(jnp.max(cosines, axis=0)),
    }


def mmcs_chance(key: Key, features: Array, frequencies: Array, d_sae: int, draws: int = 16) -> dict[str, Array]:
    """The floor that chance gives: `mmcs` of random dictionaries of the same shape, averaged. It grows with d_sae."""
    random = lambda k: mmcs(features, frequencies, jax.random.normal(k, (d_sae, features.shape[1])))
    floors = jax.lax.map(random, jax.random.split(key, draws))
    return {f"{name}_chance": jnp.mean(values) for name, values in floors.items()}


def _ratio(a: Array, b: Array) -> Array:
    """a / b, or 0 where b is 0."""
    return jnp.where(b == 0, 0.0, a / jnp.where(b == 0, 1.0, b))

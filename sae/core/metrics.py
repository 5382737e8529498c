"""Metrics of one member: sums that add inside the compiled loop, and the numbers made of them after it.

Every number is a function of sums over a stated window of N examples. `eval/...`: the held-out examples, all of
them. `train/...`: the examples of a chunk; `mse`, `fvu` and `dead` count all of them, the other numbers the first
sixteenth of every batch (see `probe`). With e = x - x_hat, f the latents, b an example of the window:

| name | definition |
|---|---|
| `mse` | (1/N) sum_b ‖e_b‖²: sum over `d_in`, mean over examples |
| `fvu` | sum_b ‖e_b‖² / sum_b ‖x_b - x̄‖², x̄ the window's mean: fraction of variance unexplained |
| `l0` | (1/N) sum_b #{i: f_bi != 0}: mean active units |
| `l0_relative` | (1/N) sum_b #{i: abs f_bi > 1 % of max_j abs f_bj} |
| `n_eff` | (1/N) sum_b (sum_i abs f_bi)² / sum_i f_bi², 0 for an all-zero example |
| `l1` | (1/N) sum_b sum_i abs f_bi |
| `cosine` | (1/N) sum_b x_b·x̂_b / (‖x_b‖ ‖x̂_b‖), 0 where either is 0 |
| `shrinkage` | γ = sum_b ‖x̂_b‖² / sum_b x_b·x̂_b; below 1, reconstructions are too short (Rajamanoharan et al. 2024) |
| `dead` | latents not active on any of the last `dead_after` examples (train), on any of the N held-out ones (eval) |
| `dead_fraction` | `dead / d_sae` |
| `firing_rate_q10` `_q50` `_q90` | quantiles over latents of the fraction of examples on which a latent is active |
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sae.core.model import unit_rows
from sae.core.types import Array, Key

PROBE_SHARE, PROBE_LEAST = 16, 64  # one example in so many of a training batch, but no fewer than these
RELATIVE = 0.01  # what share of the example's largest latent counts for l0_relative
MEANINGS = {
    "mse": "squared error per example, summed over d_in",
    "fvu": "fraction of variance unexplained, Σ‖x − x̂‖² / Σ‖x − x̄‖²; 0 is a perfect reconstruction",
    "l0": "mean active units: latents that are not 0, per example",
    "l0_relative": "latents above 1 % of the example's largest, per example",
    "n_eff": "effective number of active units, (Σ|f|)² / Σf², mean over examples",
    "l1": "Σ|f|, mean over examples",
    "cosine": "cosine of an example and its reconstruction, mean over examples",
    "shrinkage": "γ = Σ‖x̂‖² / Σ x·x̂; below 1, reconstructions are too short",
    "dead": "latents that no example activates",
    "dead_fraction": "share of latents that no example activates",
    "examples": "examples it was measured on",
    "firing_rate_q10": "share of examples on which a latent is active: the 10 % quantile over latents",
    "firing_rate_q50": "share of examples on which a latent is active: the median over latents",
    "firing_rate_q90": "share of examples on which a latent is active: the 90 % quantile over latents",
    "mmcs": "mean max cosine similarity: the best cosine of a decoder row with a true feature, mean over features",
    "mmcs_weighted": "mmcs, features weighted by their frequency",
    "mmcs_reverse": "the best cosine of a true feature with a decoder row, mean over latents",
    "mmcs_chance": "mmcs of random dictionaries of the same shape",
    "mmcs_weighted_chance": "mmcs_weighted of random dictionaries of the same shape",
    "mmcs_reverse_chance": "mmcs_reverse of random dictionaries of the same shape",
}  # of what evaluation can give, in a line for a caption; the last six where the true features are known
EVALUATED = tuple(MEANINGS)
HISTOGRAM_EDGES = np.linspace(-6.0, 0.0, 25)  # of log10 firing rate


@struct.dataclass
class Moments:
    """Of the examples alone, so shared by every member: n [], sum of x - pivot [d_in], sum of ‖x - pivot‖² []."""

    n: Array
    total: Array
    squares: Array

    @classmethod
    def zero(cls, d_in: int) -> "Moments":
        """Of no examples."""
        return cls(n=jnp.zeros((), jnp.int32), total=jnp.zeros(d_in), squares=jnp.zeros(()))

    def variation(self) -> Array:
        """sum_b ‖x_b - x̄‖². A pivot near x̄ keeps the difference exact in float32."""
        return self.squares - jnp.sum(self.total**2) / jnp.maximum(self.n, 1)


@struct.dataclass
class Sums:
    """Of one member over a window of examples. All [] but `fired [d_sae]`, how often each latent was active."""

    n: Array
    squared_error: Array
    active: Array
    absolute: Array
    active_relative: Array
    effective: Array
    cosine: Array
    x_dot_x_hat: Array
    x_hat_squared: Array
    fired: Array

    @classmethod
    def zero(cls, d_sae: int) -> "Sums":
        """Of no examples."""
        return cls(*[jnp.zeros(())] * 9, fired=jnp.zeros(d_sae, jnp.int32))


def moments(x: Array, pivot: Array, weight: Array) -> Moments:
    """Of examples x [d_in, batch]; weight [batch] is 1 for an example that counts, 0 for padding."""
    deviation = (x - pivot[:, None]) * weight
    return Moments(
        n=jnp.sum(weight).astype(jnp.int32), total=jnp.sum(deviation, axis=1), squares=jnp.sum(deviation * deviation)
    )


def sums(latents: Array, x_hat: Array, x: Array, weight: Array | None = None) -> Sums:
    """The sums of one pass: latents [d_sae, batch], reconstructions x_hat of x [d_in, batch].

    weight [batch] as in `moments`; None where all examples count.
    """
    f = latents
    one = jnp.ones(x.shape[1]) if weight is None else weight
    count = lambda values: jnp.sum(values * one)  # over examples [batch]

    size = jnp.abs(f)
    largest, total, squares = jnp.max(size, axis=0), jnp.sum(size, axis=0), jnp.sum(f * f, axis=0)
    fired = jnp.sum(jnp.where(f != 0, one, 0.0), axis=1)
    dot, x_hat_squared = jnp.sum(x * x_hat, axis=0), jnp.sum(x_hat * x_hat, axis=0)
    norms = jnp.sqrt(jnp.sum(x * x, axis=0)) * jnp.sqrt(x_hat_squared)
    return Sums(
        n=jnp.sum(one),
        squared_error=count(jnp.sum((x_hat - x) ** 2, axis=0)),
        active=jnp.sum(fired),
        active_relative=count(jnp.sum(jnp.where(size > RELATIVE * largest, 1.0, 0.0), axis=0)),
        effective=count(_ratio(total * total, squares)),
        absolute=count(total),
        cosine=count(_ratio(dot, norms)),
        x_dot_x_hat=count(dot),
        x_hat_squared=count(x_hat_squared),
        fired=fired.astype(jnp.int32),
    )


def probe(latents: Array, x_hat: Array, x: Array) -> Sums:
    """`sums` of a training batch: squared_error of all its examples, the rest of its first sixteenth (64 at the least).

    A sum over latents is a pass over all of them, and on a CPU a pass for each metric costs a third of a step.
    """
    n = max(PROBE_LEAST, x.shape[1] // PROBE_SHARE)
    first = lambda columns: columns[:, :n]
    some = sums(first(latents), first(x_hat), first(x))
    # without the barrier XLA merges the two sums into one, whose terms it writes to memory first
    rows = jax.lax.optimization_barrier(jnp.sum((x_hat - x) ** 2, axis=1))
    return dataclasses.replace(some, squared_error=jnp.sum(rows))


def finish(s: Sums, m: Moments) -> dict[str, Array]:
    """Sums over a window -> its numbers, but for `dead`, whose window is longer. `fvu` of equal examples is NaN."""
    n = jnp.maximum(s.n, 1)
    rates, variation = s.fired / n, m.variation()
    q10, q50, q90 = jnp.quantile(rates, jnp.array([0.1, 0.5, 0.9]))
    return {
        "mse": s.squared_error / jnp.maximum(m.n, 1),
        "fvu": jnp.where(variation > 0, s.squared_error / variation, jnp.nan),
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
    """silent [d_sae] bool -> their number and fraction."""
    return {"dead": jnp.sum(silent, dtype=jnp.int32), "dead_fraction": jnp.mean(silent, dtype=jnp.float32)}


def firing_rate_histogram(rates: np.ndarray) -> np.ndarray:
    """rates [d_sae] -> counts [bins] over log10 firing rate; what never fired is in the first bin."""
    low, high = HISTOGRAM_EDGES[[0, -1]]
    return np.histogram(np.clip(np.log10(np.maximum(rates, 1e-30)), low, high), bins=HISTOGRAM_EDGES)[0]


def mmcs(features: Array, frequencies: Array, W_dec: Array) -> dict[str, Array]:
    """Mean max cosine similarity with the true features (Sharkey et al. 2022), both ways.

    features [n_features, d_in] unit rows, W_dec [d_sae, d_in]. `mmcs` = mean over features g of
    max_j cos(g, W_dec_j): how well the features are found; `mmcs_weighted` weights them by frequency;
    `mmcs_reverse` = mean over latents j of max_g cos(g, W_dec_j): how well the latents are explained. Signed.
    """
    cosines = features @ unit_rows(W_dec).T
    best = jnp.max(cosines, axis=1)
    return {
        "mmcs": jnp.mean(best),
        "mmcs_weighted": jnp.sum(best * frequencies) / jnp.sum(frequencies),
        "mmcs_reverse": jnp.mean(jnp.max(cosines, axis=0)),
    }


def mmcs_chance(key: Key, features: Array, frequencies: Array, d_sae: int, draws: int = 16) -> dict[str, Array]:
    """The floor: `mmcs` of random dictionaries of the same shape, a mean over `draws`. It grows with d_sae."""
    random = lambda k: mmcs(features, frequencies, jax.random.normal(k, (d_sae, features.shape[1])))
    floors = jax.lax.map(random, jax.random.split(key, draws))
    return {f"{name}_chance": jnp.mean(values) for name, values in floors.items()}


def _ratio(a: Array, b: Array) -> Array:
    """a / b, and 0 where b is 0."""
    return jnp.where(b == 0, 0.0, a / jnp.where(b == 0, 1.0, b))

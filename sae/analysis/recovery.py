"""How alike are two dictionaries, and how much does L1 shrink what it recovers? (P2 f, P5 A.)"""

import jax
import jax.numpy as jnp

from sae import metrics
from sae.analysis.members import over_examples
from sae.model import Sae, unit_rows
from sae.types import Array, Key


@jax.jit
def mmcs(a: Array, b: Array, key: Key) -> dict[str, Array]:
    """Mean max cosine similarity of two dictionaries a [n, d_in], b [m, d_in], both ways, and its floors, [] each.

    `mmcs` = mean_i max_j cos(a_i, b_j): how well a is found in b, as with a dictionary and one twice as large (Sharkey
    et al. 2022). `mmcs_reverse` = mean_j max_i cos(a_i, b_j). `..._chance`: with a random dictionary in b's place, a
    mean of 16; it grows with m. Signed, as `eval/mmcs`.
    """
    a, alike = unit_rows(a), jnp.ones(len(a))
    found = metrics.mmcs(a, alike, b) | metrics.mmcs_chance(key, a, alike, len(b))
    return {name: value for name, value in found.items() if "weighted" not in name}


def shrinkage(l1: Array, low: float = 0.5, high: float = 1.5) -> Array:
    """gamma = E[â²] / E[a â] for â = max(0, a - λ/2), a ~ U[low, high], λ = l1, of any shape.

    What an L1 penalty λ Σ f beside ‖x - x̂‖² makes of orthonormal features: each has its own one-dimensional problem
    min_f (a - f)² + λ f. gamma is the `eval/shrinkage` of such data, whatever the features' frequency, since sums over
    features and examples are in both parts. With t = λ/2, s = max(low, t):
    ((high - t)³ - (s - t)³) / 3 over (high³ - s³) / 3 - t (high² - s²) / 2. NaN for t >= high, where nothing is left.
    """
    t = jnp.asarray(l1, jnp.float32) / 2
    s = jnp.maximum(low, t)
    squares = ((high - t) ** 3 - (s - t) ** 3) / 3
    products = (high**3 - s**3) / 3 - t * (high**2 - s**2) / 2
    return jnp.where(t < high, squares / products, jnp.nan)


@jax.jit
def shift(sae: Sae, x: Array, features: Array, above: float = 1e-3) -> Array:
    """The mean of a - â over the active features of examples x [n, d_in], []: λ/2 in the closed form.

    features [n_features, d_in] orthonormal rows; a = features·x, â = features·x̂; a feature is active where a > above.
    """
    along = lambda rows: jnp.matmul(rows, features.T, precision="highest")

    def of(rows):
        a = along(rows)
        active = a > above
        return jnp.sum(jnp.where(active, a - along(sae(rows)), 0), axis=1), jnp.sum(active, axis=1)

    differences, active = over_examples(of, x)
    return jnp.sum(differences) / jnp.sum(active)

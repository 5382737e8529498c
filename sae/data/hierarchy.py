"""Features with parents and children, orthogonal to each other: the data in which features are absorbed."""

import jax
import jax.numpy as jnp
import numpy as np

from sae.core.types import Array, Key, UserError, definition, static
from sae.data.sampler import Sampler, orthonormal
from sae.data.source import Source


@definition
class Hierarchy(Source):
    """Sums of orthogonal features that are active or not, some of them only where their parent is.

    The kind of data on which features are absorbed: Chanin et al. 2024 (arXiv 2409.14507), Bussmann et al. 2025
    (arXiv 2503.17547). x = sum_i active_i norm_i feature_i [d_in], with orthonormal features and
    norm_i = 1 + `norm_deviation` · N(0, 1), drawn once.

    Features have this order: parents; the children of the first parent, of the second, ...; features that are
    independent of all others. The children of a parent exclude each other: given the parent, each is active with
    probability `child_frequency`, and none with what is left of 1.

    Without `nested`, children need no parent. They keep their frequencies and still exclude their siblings: a draw of
    its own, as frequent as the parent, takes the parent's place.
    """

    d_in: int = static(20, min=1)
    """Width of an example."""
    n_parents: int = static(3, min=1)
    """Number of parents."""
    n_children: int = static(3, min=1)
    """Number of children of each parent."""
    n_independent: int = static(8, min=0)
    """Number of features without parent or children."""
    parent_frequency: float = static(0.15, min=0, max=1)
    """Probability that a parent is active."""
    child_frequency: float = static(0.2, min=0, max=1)
    """Probability that a child is active, given its parent."""
    independent_frequency: float = static(0.05, min=0, max=1)
    """Probability that an independent feature is active."""
    norm_deviation: float = static(0.05, min=0)
    """Standard deviation of the features' norms, whose mean is 1."""
    child_magnitude: float = static(1.0, min=0)
    """What the norms of children are multiplied by."""
    nested: bool = static(True)
    """Whether a child needs its parent."""
    feature_seed: int = static(0, min=0)
    """Seed of the features and of their norms."""
    n_held_out: int = static(16_384, min=1)
    """Number of held-out examples."""

    @property
    def n_features(self) -> int:
        """Number of features of all kinds."""
        return self.n_parents * (1 + self.n_children) + self.n_independent

    @property
    def parents(self) -> np.ndarray:
        """[n_parents * n_children] the parent of each child; child i is feature `n_parents` + i."""
        return np.repeat(np.arange(self.n_parents), self.n_children)

    def fingerprint(self) -> dict[str, str]:
        """{}: the definition says everything."""
        return {}

    def load(self) -> Sampler:
        """The sampler. Raises UserError for more features than dimensions, or children more frequent than parents."""
        if self.n_features > self.d_in:
            raise UserError(
                f"Hierarchy: {self.n_features} orthogonal features do not fit into d_in {self.d_in}; "
                f"allowed: d_in of at least {self.n_features}"
            )
        if self.n_children * self.child_frequency > 1:
            raise UserError(
                f"Hierarchy: {self.n_children} children that exclude each other have child_frequency "
                f"{self.child_frequency:g}; allowed: at most {1 / self.n_children:g}"
            )
        rng = np.random.default_rng(self.feature_seed)
        features = orthonormal(rng, self.d_in)[: self.n_features]
        norms = 1 + self.norm_deviation * rng.standard_normal(self.n_features)
        n_family = self.n_parents * (1 + self.n_children)
        norms[self.n_parents : n_family] *= self.child_magnitude
        directions = (norms[:, None] * features).astype(np.float32)
        child = self.parent_frequency * self.child_frequency
        counts = (self.n_parents, self.n_parents * self.n_children, self.n_independent)
        frequencies = np.repeat([self.parent_frequency, child, self.independent_frequency], counts).astype(np.float32)

        def active(key: Key, n: int) -> Array:
            """[n, n_features] bool."""
            parent_key, own_key, child_key, independent_key = jax.random.split(key, 4)
            parents = jax.random.bernoulli(parent_key, self.parent_frequency, (n, self.n_parents))
            needed = parents
            if not self.nested:
                needed = jax.random.bernoulli(own_key, self.parent_frequency, (n, self.n_parents))
            # one draw per family says which child it is: the i-th for u in [i, i + 1) child_frequency
            u = jax.random.uniform(child_key, (n, self.n_parents, 1))
            edges = self.child_frequency * jnp.arange(self.n_children + 1)
            children = needed[:, :, None] & (edges[:-1] <= u) & (u < edges[1:])
            independent = jax.random.bernoulli(independent_key, self.independent_frequency, (n, self.n_independent))
            return jnp.concatenate([parents, children.reshape(n, -1), independent], axis=1)

        def labelled(key: Key, n: int) -> tuple[Array, Array]:
            firing = active(key, n).astype(jnp.float32)
            return jnp.matmul(firing, directions, precision="highest"), firing * norms.astype(np.float32)

        parents = np.full(self.n_features, -1)
        parents[self.n_parents : n_family] = self.parents
        return Sampler(
            d_in=self.d_in,
            sample=lambda key, n: labelled(key, n)[0],
            labelled=labelled,
            parents=parents,
            features=features,
            frequencies=frequencies,
            mean=frequencies @ directions,
            n_held_out=self.n_held_out,
        )

"""Revival: remedies for dead latents, applied between steps."""

import jax
import jax.numpy as jnp
import optax

from sae.core.model import Sae, at, base, divided, forward, replace, select, unit_rows
from sae.core.types import Array, Key, definition, leaf, static
from sae.methods.contract import Revival


@definition
class Never(Revival):
    """Dead latents stay dead."""


@definition
class Resample(Revival):
    """Dead latents start again on badly reconstructed examples. Bricken et al. 2023, Appendix "Neuron Resampling".

    After step `every`, `2 every`, ..., `times * every`: candidates are drawn from the training data; for each
    dead latent one is chosen with probability proportional to its squared loss (without replacement, where
    there are enough). The decoder row becomes its direction `(x - b_dec) / ‖x - b_dec‖`; the encoder row the
    same direction times `encoder_scale` times the mean norm of the alive encoder rows; the encoder bias 0;
    the activation's own parameters their initial values; the optimizer's moments of all these 0. "Dead" is
    `dead_after` of the experiment. A transcoder's decoder row is the direction of `y - b_dec - W_skip x`, what latents
    have to add, and its encoder row that of x.
    """

    every: int = static(1_000, min=1)
    """Steps between two resamplings."""
    times: int = static(4, min=1)
    """How many there are. Bricken et al. stop half-way through training, so that the last ones can settle."""
    n_candidates: int = static(8_192, min=1)
    """Training examples to choose from, in whole batches, at most the data (Bricken et al.: 819,200)."""
    encoder_scale: float = leaf(0.2, min=0)
    """Norm of a new encoder row, relative to the alive ones."""

    def candidates(self) -> int:
        """`n_candidates`."""
        return self.n_candidates

    def steps(self) -> tuple[int, ...]:
        """The steps after which latents are revived."""
        return tuple(self.every * (i + 1) for i in range(self.times))

    def __call__(
        self, key: Key, sae: Sae, opt_state: optax.OptState, dead: Array, candidates: Array
    ) -> tuple[Sae, optax.OptState]:
        """Revive. dead [d_sae] bool, candidates [n_batches, d_row, batch] -> (sae, opt_state)."""
        lost = lambda out: jnp.sum((out.y - out.x_hat) ** 2, axis=0)
        losses = jax.lax.map(lambda rows: lost(forward(sae, rows)), candidates).reshape(-1)
        n, d_sae = losses.size, dead.size
        # the scale cancels in the probabilities, but squares of raw losses can leave float32's range
        weights = (losses / jnp.maximum(jnp.max(losses), 1e-30)) ** 2 + 1e-12
        chosen = jax.random.choice(key, n, (d_sae,), replace=n < d_sae, p=weights / jnp.sum(weights))
        # draws without replacement come in order, the likely ones first: the dead take the first of them
        draw = jnp.where(dead, jnp.cumsum(dead) - 1, 0)
        rows = candidates.transpose(0, 2, 1).reshape(n, -1)[chosen[draw]]  # [d_sae, d_row]
        x, y = divided(sae, rows.T)
        directions = unit_rows((y - base(at(sae, x))).T)
        seen = directions if y is x else unit_rows(x.T)

        norms = jnp.linalg.norm(sae.W_enc[...], axis=1)
        alive_norm = jnp.sum(jnp.where(dead, 0.0, norms)) / jnp.maximum(jnp.sum(~dead), 1)
        # with no latent alive there is no norm to follow: unit rows, as at the start
        alive_norm = jnp.where(jnp.any(~dead), alive_norm, 1.0)

        fresh = replace(
            sae,
            W_dec=directions,
            W_enc=self.encoder_scale * alive_norm * seen,
            b_enc=jnp.zeros(d_sae),
            own=sae.activation.init(d_sae),
        )
        zero = lambda moments: jax.tree.map(jnp.zeros_like, moments)
        forget = lambda node: select(dead, zero(node), node) if isinstance(node, Sae) else node
        opt_state = jax.tree.map(forget, opt_state, is_leaf=lambda node: isinstance(node, Sae))
        return select(dead, fresh, sae), opt_state

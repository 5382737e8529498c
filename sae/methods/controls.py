"""Controls: the factor that multiplies the penalty while it trains."""

import jax.numpy as jnp

from sae.core.model import Pass
from sae.core.types import Array, definition, leaf
from sae.methods.contract import Control, State

MOST = 20.0  # of the logarithm of the factor, either way


@definition
class AsWritten(Control):
    """The factor is 1: the penalty is what its coefficients say."""


@definition
class TargetL0(Control):
    """The penalty grows while more than `l0` latents are active and shrinks while fewer are, so that L0 is chosen.

    With e_t = log(L0 of batch t / `l0`), clipped to [-1, 1], the logarithm of the factor is
    `Σ rate · e + Σ Σ rate²/16 · e + damping · ē`. The first sum brings L0 to its target. The double sum keeps it there
    while training itself moves it (a decaying learning rate, an annealed exponent); it counts only |e| < 1/2. The
    running mean ē damps swings. It is a PID controller on the logarithm; its gains were tuned by hand.
    """

    l0: float = leaf(32.0, min=1e-2, arm=True)
    """The mean active units to reach, on training batches."""
    rate: float = leaf(0.01, min=0)
    """How fast the factor follows, per step. An activation with trained thresholds needs a smaller one."""
    damping: float = leaf(1.0, min=0)
    """Weight of the running mean."""
    smoothing: float = leaf(0.9, min=0, max=1)
    """Decay rate of the running mean."""

    def init(self) -> State:
        """A factor of 1."""
        return {"log_factor": jnp.zeros(()), "trend": jnp.zeros(()), "mean": jnp.zeros(())}

    def factor(self, state: State) -> Array:
        """The factor, [], within exp(±20)."""
        return jnp.exp(jnp.clip(state["log_factor"] + self.damping * state["mean"], -MOST, MOST))

    def settle(self, state: State, out: Pass) -> State:
        """One step closer to the target."""
        l0 = jnp.sum(jnp.sum(out.latents != 0, axis=0)) / out.batch
        error = jnp.clip(jnp.log(jnp.maximum(l0, 1e-2) / self.l0), -1.0, 1.0)
        # far from the target the error says nothing of a drift
        trend = state["trend"] + jnp.where(jnp.abs(error) < 0.5, self.rate**2 / 16 * error, 0.0)
        log_factor = jnp.clip(state["log_factor"] + self.rate * error + trend, -MOST, MOST)
        mean = self.smoothing * state["mean"] + (1 - self.smoothing) * error
        return {"log_factor": log_factor, "trend": trend, "mean": mean}

    def numbers(self, state: State) -> dict[str, Array]:
        """The factor."""
        return {"penalty_factor": self.factor(state)}

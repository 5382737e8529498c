"""Controls: the factor that multiplies the penalty while it trains."""

from typing import Any

import jax.numpy as jnp

from sae.core.definitions import kind
from sae.core.model import Pass
from sae.core.types import Array, definition, leaf
from sae.methods.contract import Control, State

MOST = 20.0  # of the logarithm of the factor, either way
START = 0.01  # the first factor: a coefficient that is too large would silence latents before the control can act
LEAST_L0 = 1e-2  # a smaller L0 counts as this
SMOOTHING = 0.5  # decay rate of L0's running mean: more would delay the control and make it swing
BAND = 1 / 3  # of the logarithm of L0 over its goal: beyond it, the factor's integral moves no faster
LAG = 0.05  # the same: above it, the activation's own parameters are too slow
STEADY = 3.0  # least factor of their learning rate: thresholds answer sooner, and L0 overshoots less
LEAST_HORIZON = 40  # steps, about the memory of Adam's first moment and of L0's running mean together
FORCE = 0.999  # decay rate of the mean square of the factor: that of Adam's second moment


@definition
class AsWritten(Control):
    """The factor is 1: the penalty is what its coefficients say."""


@definition
class TargetL0(Control):
    """L0 falls to `l0` along a curve and stays there: the factor of the penalty rises while L0 is too high.

    With s the share of the training after the penalty's warm-up, the goal g falls from the first L0 to `l0`:
    `log g = log l0 + max(0, 1 - s / arrival)² log(first / l0)`. With r = log of the running mean of L0 / g (decay .5),
    the factor is a PI controller's:

        factor = exp(i) + max(exp(i), f) · clip(gain · r, -1, 3)    i += clip(3 r, -1, 1) / (horizon · n_steps)

    The factor begins at 1/100. f is the root mean square of the last thousand factors: Adam divides by the size of the
    gradients of so many steps, so after a large factor only a large one moves anything. The factor can be negative for
    some steps then. While L0 lags over 5 % behind the goal, the learning rate of the activation's own parameters
    also rises, up to `fastest` times; else it falls back to 3 times. Adam moves a threshold by at most about one
    learning rate a step, whatever the penalty.
    """

    l0: float = leaf(32.0, min=1e-2, arm=True)
    """The mean active units to reach, on training batches."""
    arrival: float = leaf(0.2, min=0, max=1)
    """Share of the training after the penalty's warm-up over which the goal falls to `l0`."""
    gain: float = leaf(3.0, min=0)
    """How much the factor follows the error at once. More makes L0 swing."""
    horizon: float = leaf(0.02, min=0, max=1)
    """Share of training in which the factor can change e-fold to stay, at least 40 steps."""
    fastest: float = leaf(30.0, min=1)
    """Most that the learning rate of the activation's own parameters is multiplied by; 1 leaves it alone."""

    def tied_to_length(self) -> str | None:
        """The goal and the speed follow shares of the run."""
        return f"L0 falls to its target over a share of the run, arrival = {self.arrival:g}"

    def check(self, experiment: Any) -> str | None:
        """There are so many latents, and a penalty to multiply."""
        return _unreachable(self.l0, experiment)

    def init(self) -> State:
        """The first factor, and L0 at its goal."""
        zero, start = jnp.zeros(()), jnp.full((), START)
        followed = {"log_rate": zero, "first": zero, "begun": zero, "ratio": jnp.ones(())}
        return {"log_factor": jnp.log(start), "force": start**2, **followed}

    def factor(self, state: State) -> Array:
        """The factor, []."""
        lasting = jnp.exp(state["log_factor"])
        scale = jnp.maximum(lasting, jnp.sqrt(state["force"]))
        return lasting + scale * jnp.clip(self.gain * jnp.log(state["ratio"]), -1.0, 3.0)

    def own_rate(self, state: State) -> Array:
        """3 while L0 keeps up with the goal, else up to `fastest`, []."""
        return jnp.exp(state["log_rate"])

    def settle(self, state: State, out: Pass) -> State:
        """One step closer to the goal. Until the warm-up ends, only the L0 from which the goal falls is noted."""
        waits = (out.warmed < 1) | (out.step == 0)
        log_l0 = jnp.log(batch_l0(out))
        first = jnp.where(waits, log_l0, state["first"])
        begun = jnp.where(waits, jnp.float32(out.step), state["begun"])
        share = (out.step - begun) / jnp.maximum(self.arrival * (out.n_steps - begun), 1.0)
        goal = jnp.log(self.l0) + jnp.maximum(1 - share, 0.0) ** 2 * (first - jnp.log(self.l0))
        # a mean of L0 and not of its logarithm, whose mean is lower where batches are small
        ratio = jnp.where(waits, 1.0, SMOOTHING * state["ratio"] + (1 - SMOOTHING) * jnp.exp(log_l0 - goal))
        error, steps = jnp.log(ratio), jnp.maximum(self.horizon * out.n_steps, LEAST_HORIZON)
        log_rate = state["log_rate"] + jnp.where(error > LAG, 1.0, -1.0) / steps
        return {
            "log_factor": jnp.clip(state["log_factor"] + jnp.clip(error / BAND, -1.0, 1.0) / steps, -MOST, MOST),
            "log_rate": jnp.clip(log_rate, jnp.log(STEADY), jnp.log(self.fastest)),
            "first": first,
            "begun": begun,
            "ratio": ratio,
            "force": FORCE * state["force"] + (1 - FORCE) * self.factor(state) ** 2,
        }

    def numbers(self, state: State) -> dict[str, Array]:
        """The factor, and that of the learning rate of the activation's own parameters."""
        return {"penalty_factor": self.factor(state), "own_rate": self.own_rate(state)}


@definition
class SaeLensTargetL0(Control):
    """The controller with which SAELens' authors trained L1 and JumpReLU on SynthSAEBench, from the paper's code.

    Chanin & Garriga-Alonso 2026, arXiv 2602.14687. With L̄ the running mean of L0 (decay .99) and r that of its
    changes (decay .95),

        factor *= 1 + rate · (.01 if r (L̄ - l0) < 0 else 1) · tanh(10 (L̄ - l0) / l0),  within [.01, 100]

    It begins when the penalty's warm-up has ended. It is made for 200,000 steps: the factor needs 3,300 to grow e-fold.
    """

    l0: float = leaf(32.0, min=1e-2, arm=True)
    """The mean active units to reach, on training batches."""
    rate: float = leaf(3e-4, min=0, max=1)
    """Most by which the factor changes in a step."""

    def check(self, experiment: Any) -> str | None:
        """There are so many latents, and a penalty to multiply."""
        return _unreachable(self.l0, experiment)

    def init(self) -> State:
        """A factor of 1."""
        return {"factor": jnp.ones(()), "mean": jnp.zeros(()), "change": jnp.zeros(())}

    def factor(self, state: State) -> Array:
        """The factor, []."""
        return state["factor"]

    def settle(self, state: State, out: Pass) -> State:
        """One step, in which the factor moves little where L0 already approaches its target."""
        l0 = batch_l0(out)
        before = jnp.where(out.step == 0, l0, state["mean"])
        mean = 0.99 * before + 0.01 * l0
        change = 0.95 * state["change"] + 0.05 * (mean - before)
        error = mean - self.l0
        gain = self.rate * jnp.where(error * change < 0, 0.01, 1.0) * jnp.where(out.warmed < 1, 0.0, 1.0)
        factor = state["factor"] * (1 + gain * jnp.tanh(10 * error / self.l0))
        return {"factor": jnp.clip(factor, 0.01, 100.0), "mean": mean, "change": change}

    def numbers(self, state: State) -> dict[str, Array]:
        """The factor."""
        return {"penalty_factor": state["factor"]}


def _unreachable(l0: float, experiment: Any) -> str | None:
    if l0 > experiment.d_sae:
        return f"l0: got {l0:g}, allowed: at most d_sae = {experiment.d_sae}"
    coefficients = experiment.penalty.coefficients()
    if coefficients and not any(coefficients.values()):
        some, penalty = " or ".join(coefficients), kind(experiment.penalty)
        return f"l0: got {l0:g} beside a penalty of 0, which no factor changes; allowed: {penalty} with {some} above 0"
    return None


def batch_l0(out: Pass) -> Array:
    """Active latents per example of a batch, [], never 0."""
    return jnp.maximum(jnp.sum(jnp.sum(out.latents != 0, axis=0)) / out.batch, LEAST_L0)

"""The contract of a method: the nine kinds of choice that an experiment makes, and what each may look at.

    loss = reconstruction + control · penalty + auxiliary + the activation's own cost

A choice is a small frozen dataclass made with `sae.definition` and derived from one of the classes below. A class in
a user's definition file or notebook is as good as the project's own: its leaves can be swept, it is measured, saved,
resumed and loaded back. `check` tries a choice on a tiny batch before training begins.

Everything is written for one member and feature-major (see `core/model.py`). Terms of the loss are pure functions of a
`Pass`. State that follows training belongs to activations (their own parameters), controls and averages: each has an
initial state, and `settle` gives the state after an update.
"""

from typing import Any

import jax.numpy as jnp
import optax

from sae.core.definitions import Choice
from sae.core.model import Pass, Sae, Shapes
from sae.core.types import Array, Key, definition, leaf
from sae.methods.schedules import coefficient

State = dict[str, Array]  # numbers by name


class Task(Choice):
    """What is reconstructed, and from what."""

    def shapes(self, parts: tuple[int, ...]) -> Shapes:
        """The widths of what stands side by side in a row -> the shapes. Raises UserError where it cannot use them."""
        raise NotImplementedError


class Activation(Choice):
    """Pre-activations to latents."""

    def init(self, d_sae: int) -> dict[str, Array]:
        """The parameters that it brings, [d_sae, ...] or [], by name: `sae.own` at step 0 and of a revived latent."""
        return {}

    def __call__(self, sae: Sae, pre_acts: Array) -> Array:
        """pre_acts [d_sae, batch] -> latents [d_sae, batch]. Outside training, each example stands alone."""
        raise NotImplementedError

    def training(self, sae: Sae, pre_acts: Array) -> tuple[Array, Array]:
        """pre_acts [d_sae, batch] -> (latents, what a penalty charges), both [d_sae, batch], while training."""
        latents = self(sae, pre_acts)
        return latents, latents

    def active(self, sae: Sae, pre_acts: Array) -> Array:
        """1 where a latent is active, else 0, [d_sae, batch]. This one has no gradient; `L0` needs one that has."""
        return jnp.where(self(sae, pre_acts) != 0, 1.0, 0.0)

    def cost(self, out: Pass) -> Array | float:
        """The cost that it adds to the loss, a mean over the batch, []."""
        return 0.0

    def settle(self, own: dict[str, Array], out: Pass) -> dict[str, Array]:
        """Its own parameters after an update of the optimizer -> as they are kept. `out.sae` has those before it."""
        return own


class Reconstruction(Choice):
    """Latents to reconstructions, and their error. It decodes, so that a loss of many decodes can share them.

    Decode with `model.decode`, or add to `model.base`: they know of a transcoder's skip connection.
    """

    def __call__(self, sae: Sae, latents: Array, y: Array, step: Array | int) -> tuple[Array, Array]:
        """latents [d_sae, batch], y [d_out, batch] -> (cost [], a mean over the batch; x_hat [d_out, batch])."""
        raise NotImplementedError


@definition
class Penalty(Choice):
    """The cost of the latents, for which a control may set the factor."""

    warmup_steps: int = leaf(0, min=0)
    """Steps over which the penalty rises in equal parts; 0 for none."""
    anneal_steps: int = leaf(0, min=0)
    """Final steps over which the penalty moves in equal parts to `anneal_to` times itself; 0 for none."""
    anneal_to: float = leaf(0.0, min=0)
    """What multiplies the penalty at the last step, where `anneal_steps` is not 0."""

    def cost(self, out: Pass) -> Array:
        """The cost of a pass, a mean over the batch, []."""
        raise NotImplementedError

    def __call__(self, out: Pass) -> Array:
        """The cost at this step of the warm-up and the annealing, []."""
        share = coefficient(out.step, out.n_steps, self.warmup_steps, self.anneal_steps, self.anneal_to)
        return self.cost(out) * share

    def tied_to_length(self) -> str | None:
        """The annealing ends with the run."""
        return f"anneal_steps = {self.anneal_steps}, which end with the run" if self.anneal_steps else None


class Control(Choice):
    """The factor of the penalty, which may follow training, and the speed of the activation's own parameters."""

    def init(self) -> State:
        """The state before the first step."""
        return {}

    def factor(self, state: State) -> Array | float:
        """The factor of the penalty, []."""
        return 1.0

    def own_rate(self, state: State) -> Array | float:
        """The factor of the learning rate of the activation's own parameters, []."""
        return 1.0

    def settle(self, state: State, out: Pass) -> State:
        """The state after a step. It need not follow what L0 does in the penalty's warm-up, while `out.warmed` < 1."""
        return state

    def numbers(self, state: State) -> dict[str, Array]:
        """What the log shows of it, [] each, by name: "penalty_factor" is column `train/penalty_factor`.

        Beside it, the log shows the coefficients that a factor makes of the penalty's arms: `l1` as `train/penalty_l1`.
        """
        return {}


class Auxiliary(Choice):
    """A further cost, which may depend on which latents are dead."""

    def cost(self, out: Pass) -> Array | float:
        """The cost of a pass, a mean over the batch, []."""
        raise NotImplementedError


class Constraint(Choice):
    """What the parameters keep to after every step."""

    def gradient(self, sae: Sae, gradient: Sae) -> Sae:
        """The gradient that the optimizer gets. `sae` holds the parameters alone, as does the result."""
        return gradient

    def project(self, sae: Sae) -> Sae:
        """The parameters after a step -> as they are kept."""
        return sae


class Revival(Choice):
    """A remedy for dead latents, between steps."""

    def candidates(self) -> int:
        """The number of training examples that it asks for each time."""
        return 0

    def steps(self) -> tuple[int, ...]:
        """The steps after which latents are revived."""
        return ()

    def __call__(
        self, key: Key, sae: Sae, opt_state: optax.OptState, dead: Array, candidates: Array
    ) -> tuple[Sae, optax.OptState]:
        """dead [d_sae] bool, candidates [n_batches, d_row, batch] -> (sae, opt_state)."""
        raise NotImplementedError


class Average(Choice):
    """The weights that are evaluated and kept: the last, or a mean over training."""

    def init(self, sae: Sae) -> Any:
        """The state before the first step, a pytree. `sae` holds the parameters alone."""
        return ()

    def settle(self, state: Any, sae: Sae) -> Any:
        """The state after a step that ended at these parameters."""
        return state

    def revive(self, state: Any, dead: Array, sae: Sae) -> Any:
        """The state after latents dead [d_sae] bool started again with these parameters."""
        return state

    def weights(self, state: Any, sae: Sae) -> Sae:
        """The parameters to evaluate and keep. They are projected as after a step."""
        return sae


class Optimizer(Choice):
    """The update rule."""

    def transform(self, n_steps: int) -> optax.GradientTransformation:
        """The Optax chain. It is built inside the vmapped function, so its numbers may be tracers."""
        raise NotImplementedError

    def numbers(self, step: Array | int, n_steps: int) -> dict[str, Array]:
        """What the log shows of it at a step, [] each, by name: "lr" is column `train/lr`."""
        return {}

"""The contract of a method: the eleven kinds of choice that an experiment makes, and what each may look at.

    loss = reconstruction + control · penalty + auxiliary + the activation's own cost

A choice is a small frozen dataclass made with `sae.definition` and derived from one of the classes below. A class in
a user's definition file or notebook is as good as the project's own: its leaves can be swept, it is measured, saved,
resumed and loaded back. `check` tries a choice on a tiny batch before training begins.

Everything is written for one member and feature-major (see `core/model.py`). Terms of the loss are pure functions of a
`Pass`. State that follows training belongs to activations (their own parameters), controls and averages: each has an
initial state, and `settle` gives the state after an update. A constraint remembers what it holds.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax.numpy as jnp
import optax

from sae.core import model
from sae.core.definitions import Choice, fields, kind
from sae.core.model import Pass, Sae, Shapes, replace, within_cosine
from sae.core.types import Array, Key, definition, leaf, static
from sae.methods.schedules import coefficient

State = dict[str, Array]  # numbers by name
FROZEN = {"encoder": "W_enc", "decoder": "W_dec"}


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

    def pre_acts(self, sae: Sae, x: Array, origin: Array | None = None) -> Array:
        """x [d_in, batch] -> pre-activations [d_sae, batch]. For `origin` see `sae.core.model.pre_acts`."""
        return model.pre_acts(sae, x, origin)

    def __call__(self, sae: Sae, pre_acts: Array) -> Array:
        """pre_acts [d_sae, batch] -> latents [d_sae, batch]. Outside training, each example stands alone.

        What is encoded is `sae.x`, [d_in, batch].
        """
        raise NotImplementedError

    def training(self, sae: Sae, pre_acts: Array) -> tuple[Array, Array]:
        """pre_acts [d_sae, batch] -> (latents, what a penalty charges), both [d_sae, batch], while training."""
        latents = self(sae, pre_acts)
        return latents, latents

    def few(self, sae: Sae, pre_acts: Array) -> tuple[Array, Callable[[Array], Array]] | None:
        """The latents that may be active while training, where no example has more than k: (which latents, [k, batch],
        none twice in a column; a function from their pre-activations to their values, [k, batch] both). Else None.

        A wide autoencoder then trains by k rows of its weights per example (see `core/sparse.py`). It does so in place
        of `training`, so a penalty charges the latents.
        """
        return None

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

    def coefficients(self) -> dict[str, Any]:
        """The numbers to which the cost is proportional, by name: the arms, unless a penalty says otherwise."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.metadata.get("arm")}

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

        Beside it, the log shows what a factor makes of the penalty's coefficients: `l1` as `train/penalty_l1`.
        """
        return {}


class Auxiliary(Choice):
    """A further cost, which may depend on which latents are dead."""

    def cost(self, out: Pass) -> Array | float:
        """The cost of a pass, a mean over the batch, []."""
        raise NotImplementedError


class Initialization(Choice):
    """The parameters before the first step."""

    def __call__(self, key: Key, d_sae: int, x: Array, y: Array, b_dec: Array) -> dict[str, Array]:
        """The parameters by name, as `model.parameters` names them: "W_enc" and "W_dec", and others that it sets.

        x [d_in, n] are training examples, y [d_out, n] their targets, which are x itself in an autoencoder; b_dec
        [d_out] is what `b_dec_init` says. Parameters that it does not set are those of the experiment, b_enc zero.
        """
        raise NotImplementedError


@definition
class Constraint(Choice):
    """What the parameters keep to: `gradient` before every update and `project` after it.

    The fields below go with every constraint: `restrict` and `keep`, which training calls, add what they say. A part
    that is held gets a gradient of 0, so that clipping and moments know nothing of it, and is put back after the
    update, whatever the optimizer did to it.
    """

    tied: bool = static(False)
    """Hold W_enc = W_dec: one matrix with the gradients of both."""
    b_enc: bool = static(True)
    """Have an encoder bias; without one it is 0."""
    b_dec: bool = static(True)
    """Have a decoder bias; without one it is 0."""
    frozen: Literal["nothing", "encoder", "decoder"] = static("nothing")
    """The matrix that stays what it was at the start. Korznikov et al. 2026, arXiv 2602.14111."""
    cosine: float | None = leaf(None, min=-1, max=1)
    """Least cosine of a decoder row with its start, a soft-frozen decoder (.8 in Korznikov et al.); None for none."""

    def check(self, experiment: Any) -> str | None:
        """What is frozen cannot be tied to what is not, nor revived; a transcoder's matrices are of two spaces."""
        if self.tied and kind(experiment.task) == "transcoder":
            return "tied: got True, allowed: False with transcoder, whose encoder and decoder are of two spaces"
        if self.tied and self.frozen == "encoder":
            return "frozen: got encoder beside tied, allowed: decoder, which then freezes both"
        held = "frozen" if self.frozen != "nothing" else "cosine" if self.cosine is not None else None
        if held and experiment.revival.steps():
            name = kind(experiment.revival)
            return f"{held}: got {getattr(self, held)} beside revival {name}, which moves rows; allowed: revival never"
        return None

    def gradient(self, sae: Sae, gradient: Sae) -> Sae:
        """The gradient that the optimizer gets. `sae` holds the parameters alone, as does the result."""
        return gradient

    def project(self, sae: Sae) -> Sae:
        """The parameters after a step -> as they are kept."""
        return sae

    def init(self, sae: Sae) -> State:
        """What it remembers of the parameters before the first step: the matrices that it holds, by name."""
        held = {FROZEN[self.frozen]} if self.frozen in FROZEN else set()
        held |= set() if self.cosine is None else {"W_dec"}
        return {name: getattr(sae, name)[...] for name in sorted(held)}

    def restrict(self, sae: Sae, gradient: Sae) -> Sae:
        """The gradient, as `gradient` and the fields of every constraint leave it."""
        if self.tied:
            both = gradient.W_enc[...] + gradient.W_dec[...]
            gradient = replace(gradient, W_enc=jnp.zeros_like(both), W_dec=both)
        gradient = self.gradient(sae, gradient)
        return _zeroed(gradient, [*self._absent(), *([FROZEN[self.frozen]] if self.frozen in FROZEN else [])])

    def keep(self, state: State, sae: Sae) -> Sae:
        """The parameters, as `project` and the fields of every constraint leave them.

        `state` is what `init` gave; {} before that, when nothing is held yet.
        """
        sae = _zeroed(self.project(sae), self._absent())
        if self.cosine is not None and "W_dec" in state:
            sae = replace(sae, W_dec=within_cosine(sae.W_dec[...], state["W_dec"], self.cosine))
        if self.frozen in FROZEN and FROZEN[self.frozen] in state:
            sae = replace(sae, own=None, **{FROZEN[self.frozen]: state[FROZEN[self.frozen]]})
        return replace(sae, W_enc=sae.W_dec[...]) if self.tied else sae

    def _absent(self) -> list[str]:
        return [name for name, there in {"b_enc": self.b_enc, "b_dec": self.b_dec}.items() if not there]


def _zeroed(sae: Sae, names: Iterable[str]) -> Sae:
    return replace(sae, own=None, **{name: jnp.zeros_like(getattr(sae, name)[...]) for name in names})


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
    """The update rule.

    What its state holds of the parameters is a `Sae` of numbers whose zeros mean "knows nothing": `Resample` puts them
    there for a latent that starts again.
    """

    def at_width(self, d_sae: int) -> "Optimizer":
        """The optimizer for so many latents. Call the other methods on the result."""
        return self

    def transform(self, n_steps: int) -> optax.GradientTransformation:
        """The Optax chain. It is built inside the vmapped function, so its numbers may be tracers.

        The update's extra argument `keep`, for a chain that takes it, is the constraint's `keep` for any parameters.
        """
        raise NotImplementedError

    def weights(self, state: Any, sae: Sae) -> Sae:
        """The parameters that it stands for, from its state and those at which gradients are taken."""
        return sae

    def numbers(self, step: Array | int, n_steps: int) -> dict[str, Array]:
        """What the log shows of it at a step, [] each, by name: "lr" is column `train/lr`."""
        return {}

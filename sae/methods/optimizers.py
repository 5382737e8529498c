"""Optimizers: Optax chains whose numbers are traced, so they vary inside one compiled program."""

from typing import Literal

import jax
import jax.numpy as jnp
import optax

from sae.core.model import Sae, own, replace
from sae.core.types import Array, definition, leaf, static
from sae.methods.contract import Optimizer
from sae.methods.schedules import fall, ramp


@definition
class Adam(Optimizer):
    """Adam (Kingma & Ba 2015); with `weight_decay`, AdamW (Loshchilov & Hutter 2019).

    The learning rate at step t (from 0) is `lr * min(1, (t + 1) / warmup_steps)`, and over the last
    `decay_steps` steps it also falls to 0, linearly or along half a cosine.
    """

    lr: float = leaf(1e-3, min=0)
    """Peak learning rate."""
    b1: float = leaf(0.9, min=0, max=1)
    """Decay rate of the first moment."""
    b2: float = leaf(0.999, min=0, max=1)
    """Decay rate of the second moment."""
    eps: float = leaf(1e-8, min=0)
    """Added to the root of the second moment."""
    weight_decay: float = leaf(0.0, min=0)
    """Decoupled weight decay, multiplied by the learning rate. An activation's own parameters do not decay."""
    warmup_steps: int = leaf(0, min=0)
    """Steps over which the learning rate rises linearly; 0 for none."""
    decay_steps: int = leaf(0, min=0)
    """Final steps over which the learning rate falls to 0; 0 for none."""
    decay: Literal["linear", "cosine"] = static("linear")
    """Shape of that fall."""
    clip: float | None = leaf(None, min=0)
    """Largest global norm of the gradient; None for no clipping."""

    def tied_to_length(self) -> str | None:
        """The decay ends with the run."""
        return f"decay_steps = {self.decay_steps}, which end with the run" if self.decay_steps else None

    def learning_rate(self, step: Array | int, n_steps: int) -> Array:
        """The learning rate of a step, []."""
        left = fall(step, n_steps, self.decay_steps)
        if self.decay == "cosine":
            left = 0.5 - 0.5 * jnp.cos(jnp.pi * left)
        return self.lr * ramp(step, self.warmup_steps) * left

    def numbers(self, step: Array | int, n_steps: int) -> dict[str, Array]:
        """The learning rate."""
        return {"lr": self.learning_rate(step, n_steps)}

    def transform(self, n_steps: int) -> optax.GradientTransformation:
        """The Optax chain. Its numbers may be tracers."""
        clip = [] if self.clip is None else [optax.clip_by_global_norm(self.clip)]
        return optax.chain(
            *clip,
            optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps),
            optax.stateless(lambda updates, sae: decayed(updates, sae, self.weight_decay)),  # ty: ignore[invalid-argument-type]
            optax.scale_by_learning_rate(lambda step: self.learning_rate(jnp.asarray(step), n_steps)),
        )


def decayed(updates: Sae, sae: Sae, rate: Array | float) -> Sae:
    """`updates + rate · sae`, except for the activation's own parameters: a threshold of 0 is no simpler one."""
    return replace(jax.tree.map(lambda update, weight: update + rate * weight, updates, sae), own=own(updates))

"""Optimizers: Optax chains whose numbers are traced, so they vary inside one compiled program."""

from typing import Literal

import jax.numpy as jnp
import optax

from sae.core.types import Array, definition, leaf, static


@definition
class Adam:
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
    """Decoupled weight decay, multiplied by the learning rate."""
    warmup_steps: int = leaf(0, min=0)
    """Steps over which the learning rate rises linearly; 0 for none."""
    decay_steps: int = leaf(0, min=0)
    """Final steps over which the learning rate falls to 0; 0 for none."""
    decay: Literal["linear", "cosine"] = static("linear")
    """Shape of that fall."""
    clip: float | None = leaf(None, min=0)
    """Largest global norm of the gradient; None for no clipping."""

    def learning_rate(self, step: Array, n_steps: int) -> Array:
        """The learning rate of a step, []."""
        warmup = jnp.minimum(1.0, (step + 1) / jnp.maximum(self.warmup_steps, 1))
        left = jnp.clip((n_steps - step) / jnp.maximum(self.decay_steps, 1), 0.0, 1.0)
        if self.decay == "cosine":
            left = 0.5 - 0.5 * jnp.cos(jnp.pi * left)
        return self.lr * warmup * jnp.where(self.decay_steps > 0, left, 1.0)

    def transform(self, n_steps: int) -> optax.GradientTransformation:
        """The Optax chain. Build it inside the vmapped function: its numbers may be tracers."""
        clip = [] if self.clip is None else [optax.clip_by_global_norm(self.clip)]
        return optax.chain(
            *clip,
            optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps),
            optax.add_decayed_weights(self.weight_decay),
            optax.scale_by_learning_rate(lambda step: self.learning_rate(step, n_steps)),
        )

"""Optimizers: Optax chains whose numbers are traced, so they vary inside one compiled program."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sae.core.definitions import kind
from sae.core.model import Sae, matmul, own, replace
from sae.core.types import Array, definition, leaf, static
from sae.methods.averages import Last
from sae.methods.contract import Optimizer
from sae.methods.schedules import fall, ramp

BELOW_ONE = 1 - 1e-6  # a moment of decay rate 1 would never see a gradient


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheduled(Optimizer):
    """What optimizers share: clipping, then `direction`, then weight decay, then the learning rate of the step.

    At step t (from 0) of a cycle of T steps, with D decay steps, the learning rate is
    `lr · min(1, (t + 1) / warmup_steps) · (decay_to + (1 - decay_to) · shape(min(1, (T - t) / D)))`: it rises, holds,
    and decays. `shape(s)` is s (linear), (1 - cos πs) / 2 (cosine), or 1 - √(1 - s) (1-sqrt, Hägele et al. 2024, arXiv
    2405.18392).
    """

    lr: float = leaf(1e-3, min=0)
    """Peak learning rate."""
    weight_decay: float = leaf(0.0, min=0)
    """Decoupled weight decay, multiplied by the learning rate. An activation's own parameters do not decay."""
    warmup_steps: int = leaf(0, min=0)
    """Steps over which the learning rate rises linearly; 0 for none."""
    decay_steps: int = leaf(0, min=0)
    """Final steps over which the learning rate falls; 0 for none."""
    decay: Literal["linear", "cosine", "1-sqrt"] = static("linear")
    """Shape of that fall."""
    decay_to: float = leaf(0.0, min=0, max=1)
    """Share of the peak at which it ends."""
    restarts: int = leaf(0, min=0)
    """Times that warm-up and decay begin again: the run is so many cycles and one more, of equal length."""
    width_rule: Literal["none", "inverse-sqrt"] = static("none")
    """How `lr` follows the width: inverse-sqrt is lr / √(d_sae / 2^14), as dictionary_learning has it, after Gao et al.
    2024."""
    clip: float | None = leaf(None, min=0)
    """Largest global norm of the gradient; None for no clipping."""

    def tied_to_length(self) -> str | None:
        """The decay ends with the run, and cycles divide it."""
        if self.restarts:
            return f"restarts = {self.restarts}, which divide the run"
        return f"decay_steps = {self.decay_steps}, which end with the run" if self.decay_steps else None

    def at_width(self, d_sae: int) -> "Scheduled":
        """The optimizer with the learning rate that its rule gives."""
        return self if self.width_rule == "none" else dataclasses.replace(self, lr=self.lr / (d_sae / 2**14) ** 0.5)

    def learning_rate(self, step: Array | int, n_steps: int) -> Array:
        """The learning rate of a step, []."""
        length = jnp.maximum(1, n_steps // (self.restarts + 1))
        cycle = jnp.minimum(step // length, self.restarts)
        begin = cycle * length
        left = fall(step, jnp.where(cycle == self.restarts, n_steps, begin + length), self.decay_steps)
        if self.decay == "cosine":
            left = 0.5 - 0.5 * jnp.cos(jnp.pi * left)
        elif self.decay == "1-sqrt":
            left = 1 - jnp.sqrt(1 - left)
        return self.lr * ramp(step - begin, self.warmup_steps) * (self.decay_to + (1 - self.decay_to) * left)

    def numbers(self, step: Array | int, n_steps: int) -> dict[str, Array]:
        """The learning rate."""
        return {"lr": self.learning_rate(step, n_steps)}

    def direction(self) -> optax.GradientTransformation:
        """The update before weight decay, for a learning rate of -1. Its numbers may be tracers."""
        raise NotImplementedError

    def transform(self, n_steps: int) -> optax.GradientTransformation:
        """The Optax chain. Its numbers may be tracers."""
        clip = [] if self.clip is None else [optax.clip_by_global_norm(self.clip)]
        return optax.chain(
            *clip,
            self.direction(),
            # to Optax's types a Sae is no pytree
            optax.stateless(lambda updates, sae: decayed(updates, sae, self.weight_decay)),  # ty: ignore[invalid-argument-type]
            optax.scale_by_learning_rate(lambda step: self.learning_rate(jnp.asarray(step), n_steps)),
        )


@definition
class Adam(Scheduled):
    """Adam (Kingma & Ba 2015); with `weight_decay`, AdamW (Loshchilov & Hutter 2019)."""

    b1: float = leaf(0.9, min=0, max=BELOW_ONE)
    """Decay rate of the first moment."""
    b2: float = leaf(0.999, min=0, max=BELOW_ONE)
    """Decay rate of the second moment."""
    eps: float = leaf(1e-8, min=0)
    """Added to the root of the second moment."""

    def direction(self) -> optax.GradientTransformation:
        """m̂ / (√v̂ + eps)."""
        return optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps)


@definition
class Lion(Scheduled):
    """Lion: the sign of a momentum. Chen et al. 2023, arXiv 2302.06675.

    They use a learning rate 3 to 10 times smaller than AdamW's, and as much more weight decay.
    """

    lr: float = leaf(1e-4, min=0)
    """Peak learning rate."""
    b1: float = leaf(0.9, min=0, max=BELOW_ONE)
    """Share of the momentum in the update."""
    b2: float = leaf(0.99, min=0, max=BELOW_ONE)
    """Decay rate of the momentum."""

    def direction(self) -> optax.GradientTransformation:
        """sign(b1 m + (1 - b1) g)."""
        return optax.scale_by_lion(b1=self.b1, b2=self.b2)


@definition
class Muon(Scheduled):
    """Muon: the momentum of a matrix with all singular values near 1. Jordan et al. 2024; all else goes by Adam.

    With momentum M, the update is `rms · √max(rows, columns) · U Vᵀ` for M = U S Vᵀ: `rms` is the root mean square of
    its entries, as Adam has about .2 (Liu et al. 2025, arXiv 2502.16982), so both share one learning rate. Jordan's own
    scale, √max(1, rows / columns), is not offered. Five steps of a Newton-Schulz iteration make U Vᵀ, which leaves
    singular values of .7 to 1.2. Matrices are W_enc, W_dec and any other that is not the activation's own.
    """

    momentum: float = leaf(0.95, min=0, max=BELOW_ONE)
    """Decay rate of a matrix's momentum, which is Nesterov's."""
    rms: float = leaf(0.2, min=0)
    """Root mean square of a matrix's update."""
    b1: float = leaf(0.9, min=0, max=BELOW_ONE)
    """Adam's decay rate of the first moment."""
    b2: float = leaf(0.999, min=0, max=BELOW_ONE)
    """Adam's decay rate of the second moment."""
    eps: float = leaf(1e-8, min=0)
    """Added to the root of Adam's second moment, and to a matrix's norm."""

    def direction(self) -> optax.GradientTransformation:
        """Matrices by Muon, vectors by Adam."""
        adam = optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps)
        muon = optax.GradientTransformation(self._init, self._update)  # ty: ignore[invalid-argument-type]
        return optax.chain(only(is_matrix, muon), only(is_no_matrix, adam))

    def _init(self, sae: Any) -> "Momentum":
        return Momentum(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, sae))

    def _update(self, gradient: Any, state: "Momentum", sae: Any = None) -> tuple[Any, "Momentum"]:
        n, beta = state.count + 1, self.momentum
        mean = optax.tree.update_moment(gradient, state.mean, beta, 1)
        ahead, now = optax.tree.bias_correction(mean, beta, n + 1), optax.tree.bias_correction(gradient, beta, n)
        nesterov = jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, ahead, now)
        size = lambda G: self.rms * max(G.shape) ** 0.5
        update = lambda G: size(G) * orthogonal(G, self.eps) if G.ndim == 2 else G
        return jax.tree.map(update, nesterov), Momentum(n, mean)


class Momentum(NamedTuple):
    """The state of Muon."""

    count: Array  # [] int32
    mean: Sae


@definition
class ScheduleFree(Scheduled):
    """Schedule-free AdamW: a mean of the weights in place of a decay. Defazio et al. 2024, arXiv 2405.15682.

    Gradients are taken at y = (1 - b1) z + b1 x; z takes Adam's steps without momentum; x, the mean of all z, weighted
    by the square of the largest learning rate so far, is what is evaluated and kept. The constraint projects z after
    its step, y, and the x that is evaluated, but never the x that the mean goes on from. The state holds x - y and
    z - y: what changes y from outside (a threshold that follows the batches or that a control hastens, a latent that
    starts again) moves all three. Leave `decay_steps` at 0, and warm up.
    """

    b1: float = leaf(0.9, min=0, max=BELOW_ONE)
    """Share of x in y."""
    b2: float = leaf(0.999, min=0, max=BELOW_ONE)
    """Decay rate of the second moment."""
    eps: float = leaf(1e-8, min=0)
    """Added to the root of the second moment."""

    def check(self, experiment: Any) -> str | None:
        """Its weights are a mean already."""
        if not isinstance(experiment.average, Last):
            return f"ScheduleFree keeps a mean of its own: got average {kind(experiment.average)}, allowed: last"
        return None

    def direction(self) -> optax.GradientTransformation:
        """g / (√v̂ + eps)."""
        return optax.scale_by_rms(decay=self.b2, eps=self.eps, eps_in_sqrt=False, bias_correction=True)

    def transform(self, n_steps: int) -> optax.GradientTransformationExtraArgs:
        """The Optax chain. Its numbers may be tracers."""
        chain = super().transform(n_steps)

        def init(sae: Any) -> Means:
            same = jax.tree.map(jnp.zeros_like, sae)
            return Means(chain.init(sae), jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.zeros(()), same, same)

        def update(
            gradient: Any, state: Means, sae: Any, *, keep: Callable[[Sae], Sae] = lambda sae: sae, **_: Any
        ) -> tuple[Any, Means]:
            steps, inner = chain.update(gradient, state.chain, sae)
            largest = jnp.maximum(state.largest, self.learning_rate(state.count, n_steps))
            total = state.total + largest**2
            share = jnp.where(total > 0, largest**2 / jnp.where(total > 0, total, 1.0), 1.0)
            z = keep(jax.tree.map(lambda y, to_z, step: y + to_z + step, sae, state.to_z, steps))
            x = jax.tree.map(lambda y, to_x, z: (1 - share) * (y + to_x) + share * z, sae, state.to_x, z)
            y = keep(jax.tree.map(lambda x, z: self.b1 * x + (1 - self.b1) * z, x, z))
            minus = lambda a, b: jax.tree.map(jnp.subtract, a, b)
            return minus(y, sae), Means(inner, state.count + 1, largest, total, minus(x, y), minus(z, y))

        return optax.GradientTransformationExtraArgs(init, update)  # ty: ignore[invalid-argument-type]  # as above

    def weights(self, state: Any, sae: Sae) -> Sae:
        """x."""
        return jax.tree.map(jnp.add, sae, state.to_x)


class Means(NamedTuple):
    """The state of ScheduleFree."""

    chain: optax.OptState
    count: Array  # [] int32
    largest: Array  # [], learning rate so far
    total: Array  # [], weight of x
    to_x: Sae  # x - y
    to_z: Sae  # z - y


def decayed(updates: Sae, sae: Sae, rate: Array | float) -> Sae:
    """`updates + rate · sae`, except for the activation's own parameters: a threshold of 0 is no simpler one."""
    return replace(jax.tree.map(lambda update, weight: update + rate * weight, updates, sae), own=own(updates))


def only(which: Callable[[Any, Array], bool], chain: optax.GradientTransformation) -> optax.GradientTransformation:
    """A chain for some parameters, (path, value) -> bool; the others pass. Its state has one 0 for each of those."""

    def part(sae: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, a: a if which(path, a) else jnp.zeros(()), sae)

    def update(updates: Any, state: Any, sae: Any = None) -> tuple[Any, Any]:
        new, state = chain.update(part(updates), state, sae)
        merge = lambda path, old, new: new if which(path, old) else old
        return jax.tree_util.tree_map_with_path(merge, updates, new), state

    return optax.GradientTransformation(lambda sae: chain.init(part(sae)), update)  # ty: ignore[invalid-argument-type]


def is_matrix(path: Any, value: Array) -> bool:
    """Whether a parameter is a matrix, and not the activation's own."""
    return value.ndim == 2 and not jax.tree_util.keystr(path[:1], simple=True) == "own"


def is_no_matrix(path: Any, value: Array) -> bool:
    """The others."""
    return not is_matrix(path, value)


def orthogonal(G: Array, eps: Array | float, steps: int = 5) -> Array:
    """U Vᵀ for a matrix G = U S Vᵀ, roughly: the quintic Newton-Schulz iteration of Jordan et al. 2024."""
    a, b, c = 3.4445, -4.7750, 2.0315
    X = G.T if G.shape[0] > G.shape[1] else G
    X = X / (jnp.sqrt(jnp.sum(X * X)) + eps)
    for _ in range(steps):
        A = matmul(X, X.T)
        X = a * X + matmul(b * A + c * matmul(A, A), X)
    return X.T if G.shape[0] > G.shape[1] else X

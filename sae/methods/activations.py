"""Activations: pre-activations to latents. Feature-major: axis 0 is the latents, axis 1 the batch."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from sae.core.definitions import adopted
from sae.core.model import Pass, Sae, decode, decoder_norms, own
from sae.core.types import Array, definition, leaf, static
from sae.methods import top_k
from sae.methods.contract import Activation

T = TypeVar("T")


@definition
class Relu(Activation):
    """max(0, z). Bricken et al. 2023, "Towards Monosemanticity"."""

    def __call__(self, sae: Sae, pre_acts: Array) -> Array:
        """pre_acts [d_sae, batch] -> latents [d_sae, batch]."""
        return relu(pre_acts)


@definition
class TopK(Activation):
    """The k largest pre-activations of each example, through a ReLU; the rest are 0. Gao et al. 2024, arXiv 2406.04093.

    After Makhzani & Frey 2013, "k-Sparse Autoencoders". Gao et al.'s loss for dead latents is `AuxK`. The penalty is
    usually 0 with it.
    """

    k: int = leaf(32, min=1, arm=True)
    """Latents kept per example."""
    k_max: int | None = static(None, min=1, most_of="k")
    """The largest k of one compiled program, which sorts so many; None finds it."""

    def __call__(self, sae: Sae, pre_acts: Array) -> Array:
        """pre_acts [d_sae, batch] -> latents [d_sae, batch], at most k of each column non-zero."""
        kept = top_k.k_largest(pre_acts, self.k, self.k_max, above=0.0)
        return jnp.where(kept, pre_acts, 0.0)  # one selection, and one in its gradient

    def few(self, sae: Sae, pre_acts: Array) -> tuple[Array, Callable[[Array], Array]] | None:
        """The k_max largest, the first k of them through a ReLU."""
        if self.k_max is None:
            return None
        counts = jnp.arange(self.k_max)[:, None] < self.k
        return top_k.largest(pre_acts, self.k_max), lambda z: jnp.where(counts, relu(z), 0.0)

    def check(self, experiment: Any) -> str | None:
        """k is at most d_sae, and at most k_max."""
        for name, most in (("d_sae", experiment.d_sae), ("activation.k_max", self.k_max)):
            if most is not None and self.k > most:
                return f"k: got {self.k}, allowed: at most {name} = {most}"
        return None


@definition
class BatchTopK(Activation):
    """The k · batch largest latents of a whole batch, however many per example. Bussmann et al. 2024, arXiv 2412.06410.

    A latent is compared by its contribution, the latent times the norm of its decoder row. Outside training each
    example stands alone: contributions above `threshold` are kept. The threshold is a running mean over training steps
    of the smallest contribution that was kept.
    """

    k: float = leaf(32.0, min=0, arm=True)
    """Latents kept per example, on average over the batch."""
    decay: float = leaf(0.99, min=0, max=1)
    """Decay rate of the threshold's running mean, which starts at 0."""

    def init(self, d_sae: int) -> dict[str, Array]:
        """One threshold for all latents, 0."""
        return {"threshold": jnp.zeros(())}

    def __call__(self, sae: Sae, pre_acts: Array) -> Array:
        """pre_acts [d_sae, batch] -> the latents whose contribution exceeds the threshold."""
        latents = relu(pre_acts)
        return jnp.where(_contribution(sae, latents) > own(sae)["threshold"], latents, 0.0)

    def training(self, sae: Sae, pre_acts: Array) -> tuple[Array, Array]:
        """pre_acts [d_sae, batch] -> the largest of the batch; equal ones at the border are all kept."""
        latents = relu(pre_acts)
        contribution = _contribution(sae, latents)
        n = jnp.round(self.k * pre_acts.shape[1]).astype(jnp.int32)
        threshold = top_k.nth_largest(contribution, n, guess=own(sae)["threshold"])
        kept = jnp.where(contribution >= threshold, latents, 0.0)
        return kept, kept

    def settle(self, own: dict[str, Array], out: Pass) -> dict[str, Array]:
        """The threshold follows the smallest contribution that was kept; no gradient moves it."""
        contribution = _contribution(out.sae, out.latents)
        smallest = jnp.min(jnp.where(contribution > 0, contribution, jnp.inf))
        before = out.sae.own["threshold"][...]
        after = self.decay * before + (1 - self.decay) * smallest
        return {**own, "threshold": jnp.where(jnp.isfinite(smallest), after, before)}

    def check(self, experiment: Any) -> str | None:
        """k is at most d_sae."""
        too_large = self.k > experiment.d_sae
        return f"k: got {self.k}, allowed: at most d_sae = {experiment.d_sae}" if too_large else None


@definition
class JumpRelu(Activation):
    """z where z exceeds the threshold of its latent, else 0. Rajamanoharan et al. 2024, arXiv 2407.14435.

    Thresholds are trained. The derivative of the jump H(z - θ) by θ is replaced by that of a ramp of width ε
    (`bandwidth`): -1/ε where |z - θ| < ε/2, so the derivative of a latent by θ is -θ/ε there. Use it with the penalty
    `L0`. The defaults are those of SAELens; the paper has ε = .001, for inputs of unit mean square.
    """

    threshold: float = leaf(0.01, min=0)
    """Threshold of every latent at the start."""
    bandwidth: float = leaf(0.05, min=1e-8)
    """Width ε of the ramp."""

    def init(self, d_sae: int) -> dict[str, Array]:
        """A threshold per latent."""
        return {"threshold": jnp.full(d_sae, self.threshold, jnp.float32)}

    def __call__(self, sae: Sae, pre_acts: Array) -> Array:
        """pre_acts [d_sae, batch] -> latents [d_sae, batch]."""
        held, active = jax.lax.stop_gradient, self.active(sae, pre_acts)
        threshold = held(own(sae)["threshold"])[:, None]
        # the second term is 0; its gradient is that of the jump, which is as high as the threshold
        return pre_acts * held(active) + threshold * (active - held(active))

    def active(self, sae: Sae, pre_acts: Array) -> Array:
        """H(z - θ), [d_sae, batch], with the gradient of the ramp by θ and none by z."""
        return _jump(jax.lax.stop_gradient(pre_acts), own(sae)["threshold"][:, None], self.bandwidth)

    def settle(self, own: dict[str, Array], out: Pass) -> dict[str, Array]:
        """Thresholds stay at 0 or above."""
        return {**own, "threshold": jnp.maximum(own["threshold"], 0.0)}


@definition
class Gated(Activation):
    """Whether a latent is active and how much are two questions. Rajamanoharan et al. 2024, arXiv 2404.16014.

    With the gate π (the pre-activations), a latent is H(π) · relu((π - b_enc) e^r_mag + b_mag). A penalty charges
    relu(π), and a cost is added: the error of what relu(π) alone reconstructs.
    """

    detached: bool = static(True)
    """Hold the decoder fixed in that cost, as the paper does; SAELens does not."""

    def init(self, d_sae: int) -> dict[str, Array]:
        """The magnitude's bias and the logarithm of its scale, [d_sae] each, 0; `b_enc` is the gate's bias."""
        return {"b_mag": jnp.zeros(d_sae), "r_mag": jnp.zeros(d_sae)}

    def __call__(self, sae: Sae, pre_acts: Array) -> Array:
        """pre_acts [d_sae, batch] -> latents [d_sae, batch]."""
        b_mag, r_mag, b_enc = sae.own["b_mag"][...], sae.own["r_mag"][...], sae.b_enc[...]
        magnitude = relu((pre_acts - b_enc[:, None]) * jnp.exp(r_mag)[:, None] + b_mag[:, None])
        return jnp.where(pre_acts > 0, magnitude, 0.0)

    def training(self, sae: Sae, pre_acts: Array) -> tuple[Array, Array]:
        """pre_acts [d_sae, batch] -> (latents, the gate through a ReLU)."""
        return self(sae, pre_acts), relu(pre_acts)

    def cost(self, out: Pass) -> Array:
        """mean_b ‖y - ŷ‖², ŷ the reconstruction from the gate alone."""
        sae = jax.lax.stop_gradient(out.sae) if self.detached else out.sae
        return jnp.sum((decode(sae, out.charged) - out.y) ** 2) / out.batch


@jax.custom_jvp
def relu(z: Array) -> Array:
    """max(0, z), whose derivative reads the result and not z, so that z need not be kept (or computed again)."""
    return jnp.maximum(z, 0)


@relu.defjvp
def _relu_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    latents = relu(*primals)
    return latents, jnp.where(latents > 0, *tangents, 0)


@jax.custom_jvp
def _jump(z: Array, threshold: Array, bandwidth: Array | float) -> Array:
    """H(z - θ) with the derivative -1/ε by θ where |z - θ| < ε/2."""
    return jnp.where(z > threshold, 1.0, 0.0)


@_jump.defjvp
def _jump_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    z, threshold, bandwidth = primals
    near = jnp.abs(z - threshold) < bandwidth / 2
    return _jump(*primals), jnp.where(near, -tangents[1] / bandwidth, 0.0)


def _contribution(sae: Sae, latents: Array) -> Array:
    """Each latent times the norm of its decoder row, without a gradient."""
    return jax.lax.stop_gradient(latents * decoder_norms(sae)[:, None])


def elementwise(function: T) -> T:
    """A definition with `__call__(self, pre_acts)` and no base class, made an Activation of the same name and fields.

    A function of the pre-activations alone needs nothing else of the contract. Other values are returned as they are.
    """
    return adopted(function, Activation, "__call__", _called_with_pre_acts)


def _called_with_pre_acts(cls: type) -> dict[str, Any]:
    return {"__call__": lambda self, sae, pre_acts: cls.__call__(self, pre_acts)}

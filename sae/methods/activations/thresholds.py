"""Activations with a threshold for each latent, trained or fixed."""

import jax
import jax.numpy as jnp

from sae.core.model import Pass, Sae, decode, own
from sae.core.types import Array, definition, leaf, static
from sae.methods.activations.pointwise import relu
from sae.methods.contract import Activation


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
class SoftThreshold(Activation):
    """sign(z) · max(|z| - θ, 0), the proximal operator of θ·|f|. Daubechies, Defrise & De Mol 2004 (ISTA).

    One threshold θ for all latents is fixed, or each latent trains its own, after Gregor & LeCun 2010 (LISTA).
    """

    threshold: float = leaf(0.1, min=0, arm=True)
    """The threshold θ; where it is trained, its value at the start."""
    signed: bool = static(True)
    """Keep negative latents; else the activation is max(z - θ, 0)."""
    trained: bool = static(False)
    """Train a threshold for each latent. It stays at 0 or above."""

    def init(self, d_sae: int) -> dict[str, Array]:
        """A threshold per latent, where they are trained."""
        return {"threshold": jnp.full(d_sae, self.threshold, jnp.float32)} if self.trained else {}

    def __call__(self, sae: Sae, pre_acts: Array) -> Array:
        """pre_acts [d_sae, batch] -> latents [d_sae, batch]."""
        threshold = own(sae)["threshold"][:, None] if self.trained else self.threshold
        # what is taken off is all of z within the thresholds: the difference is exactly 0 there
        return pre_acts - jnp.clip(pre_acts, -threshold, threshold) if self.signed else relu(pre_acts - threshold)

    def settle(self, own: dict[str, Array], out: Pass) -> dict[str, Array]:
        """Thresholds stay at 0 or above."""
        return {name: jnp.maximum(value, 0.0) for name, value in own.items()}


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
def _jump(z: Array, threshold: Array, bandwidth: Array | float) -> Array:
    """H(z - θ) with the derivative -1/ε by θ where |z - θ| < ε/2."""
    return jnp.where(z > threshold, 1.0, 0.0)


@_jump.defjvp
def _jump_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    z, threshold, bandwidth = primals
    near = jnp.abs(z - threshold) < bandwidth / 2
    return _jump(*primals), jnp.where(near, -tangents[1] / bandwidth, 0.0)

"""Sparse products: what a wide autoencoder computes where each example has few active latents. Feature-major."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sae.core.types import Array

FROM = 2048  # latents per active one from which sparse products are faster (measured on a CPU in float32)


class Few(NamedTuple):
    """The latents of a batch that may be active, k of each example, and the same latents among all others."""

    chosen: Array  # [k, batch] int32, none twice in a column
    values: Array  # [k, batch]
    latents: Array  # [d_sae, batch], 0 but for the chosen ones

    def decode(self, W_dec: Array) -> Array:
        """`W_decᵀ latents`, [d_out, batch]: k rows of W_dec per example, and as many in each gradient."""
        return jnp.einsum("kbd,kb->db", W_dec[self.chosen], self.values, precision=jax.lax.Precision.HIGHEST)


def pays(d_sae: int, k: int, precision: str) -> bool:
    """Whether sparse products are faster than those with zeros.

    They are not known to be on accelerators, nor in lower precision.
    """
    return d_sae >= FROM * k and precision == "float32" and jax.default_backend() == "cpu" and undivided()


def undivided() -> bool:
    """Whether one device holds all latents. On a mesh, a slice or a gather of latents moves them between devices."""
    return jax.sharding.get_abstract_mesh().empty


def few(W_enc: Array, offset: Array, x: Array, chosen: Array, value: Callable[[Array], Array]) -> Few:
    """The latents chosen [k, batch], at value(`W_enc x + offset`); x [d_in, batch], offset [d_sae].

    Their pre-activations are computed anew from k rows of W_enc per example, so that the gradient of W_enc has no more.
    """
    pre_acts = jnp.einsum("kbd,db->kb", W_enc[chosen], x, precision=jax.lax.Precision.HIGHEST) + offset[chosen]
    values, examples = value(pre_acts), jnp.arange(x.shape[1])
    latents = jnp.zeros((W_enc.shape[0], x.shape[1])).at[chosen, examples].set(values, unique_indices=True)
    return Few(chosen, values, latents)

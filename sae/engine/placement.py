"""Where the members of a cohort lie: over which devices, and how many are computed at once.

On several devices each has members of its own, which never meet another's; a member too large for one device lies
across several, in slices of its latents. On a device, members are computed `lanes` at a time.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sae.core.types import UserError


@dataclasses.dataclass(frozen=True)
class Placement:
    """How many members a device computes at once, and over which devices members and latents are spread.

    Without a mesh there is one device. A mesh has two axes, "member" and "latent" (see `make_mesh`).
    """

    lanes: int
    mesh: Mesh | None = None
    d_sae: int = 0
    """Arrays [member, d_sae, ...] lie in slices over the mesh's latent axis."""

    def padded(self, n: int) -> int:
        """The number of members that n become, so that every device has equally many."""
        return n if self.mesh is None else -(-n // self.mesh.shape["member"]) * self.mesh.shape["member"]

    def shardings(self, tree: Any) -> Any:
        """Where the leaves [member, ...] of a tree lie on the mesh."""
        # a second axis that happens to have d_sae elements (b_dec of a square autoencoder) may be sliced too
        latent = lambda leaf: leaf.ndim > 1 and leaf.shape[1] == self.d_sae
        return jax.tree.map(lambda leaf: self._on_mesh("member", *["latent"] * latent(leaf)), tree)

    def members(self, tree: Any) -> Any:
        """A tree of leaves [n, ...] on the devices, [padded(n), ...]: the last member is there more than once."""

        def padded(leaf: Any) -> np.ndarray:
            rows = np.minimum(np.arange(self.padded(len(leaf))), len(leaf) - 1)
            return np.asarray(leaf)[rows]

        if self.mesh is None:
            return tree
        tree = jax.tree.map(padded, tree)
        return put(tree, self.shardings(tree))

    def laid(self, tree: Any) -> Any:
        """Inside a program, a tree of leaves [member, ...] that is to lie on the mesh as `members` would put it."""
        return tree if self.mesh is None else jax.lax.with_sharding_constraint(tree, self.shardings(tree))

    def gathered(self, tree: Any) -> Any:
        """A tree of leaves [member, ...], whole on every device if `fetch` would have to bring them together later.

        Asking now puts this before the devices' next work.
        """
        return tree if jax.process_count() == 1 else _whole(tree, placement=self)

    def shared(self, tree: Any) -> Any:
        """A tree, whole, on every device."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, tree)
        return put(tree, jax.tree.map(lambda _: self._on_mesh(), tree))

    def _on_mesh(self, *axes: str) -> NamedSharding:
        assert self.mesh is not None
        return NamedSharding(self.mesh, P(*axes))


def make_mesh(devices: Sequence[jax.Device], latent: int = 1) -> Mesh:
    """All devices as a grid, "member" by "latent": each member lies across `latent` of them."""
    # Auto: under Explicit axes, jax's default, a gather must say where its result lies, and resampling has one
    shape = (len(devices) // latent, latent)
    return jax.make_mesh(shape, ("member", "latent"), axis_types=(AxisType.Auto,) * 2, devices=devices)


def parse_mesh(text: str | None = None) -> Mesh | None:
    """ "member=2,latent=4" -> the mesh; without a text, members over all devices; None for one device.

    Raises UserError for another text, and where it does not come to the number of devices.
    """
    devices = jax.devices()
    shape = {"member": len(devices), "latent": 1}
    if text is not None:
        pairs = [part.partition("=") for part in text.split(",")]
        given = {name.strip(): int(size) for name, _, size in pairs if size.strip().isdecimal()}
        if len(given) < len(pairs) or not given.keys() <= shape.keys() or 0 in given.values():
            raise UserError(f"mesh: got {text!r}, allowed: member=M,latent=L, or one of them")
        shape["latent"] = given.get("latent", 1)
        shape["member"] = given.get("member", max(1, len(devices) // shape["latent"]))
    n = shape["member"] * shape["latent"]
    if n > len(devices) or (n < len(devices) and jax.process_count() > 1):
        raise UserError(f"mesh: got {text!r}, that is {n} devices; allowed: as many as there are, {len(devices)}")
    return make_mesh(devices[:n], shape["latent"]) if n > 1 else None


def put(tree: Any, shardings: Any) -> Any:
    """Arrays that every process has whole -> arrays on the devices of all processes; each process gives its part."""

    def one(leaf: Any, sharding: NamedSharding) -> jax.Array:
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(one, tree, shardings)


def fetch(tree: Any, n: int) -> Any:
    """A tree of leaves [member, ...] on the host, in every process, without the members that are padding: [n, ...].

    Every process must come here, with the same tree.
    """

    def one(leaf: jax.Array) -> np.ndarray:
        if not (leaf.is_fully_addressable or leaf.is_fully_replicated):  # one at a time: each is whole on every device
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)[:n]

    return jax.tree.map(one, tree) if jax.process_count() > 1 else jax.tree.map(lambda a: a[:n], jax.device_get(tree))


@functools.partial(jax.jit, static_argnames="placement")
def _whole(tree: Any, *, placement: Placement) -> Any:
    return jax.lax.with_sharding_constraint(tree, placement._on_mesh())

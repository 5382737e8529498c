"""Matryoshka: reconstructions from several prefixes of the latents, at the cost of one decode."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae.core.model import Sae, base, matmul
from sae.core.types import Array, definition, static
from sae.methods.contract import Reconstruction


@definition
class Matryoshka(Reconstruction):
    """The squared errors of several prefixes of the latents, and of all. Bussmann et al. 2025, arXiv 2503.17547.

    `Σ_w mean_b ‖y - x̂_w‖²`, x̂_w the reconstruction from the first w latents; x̂ is that from all. Each width adds its
    latents to the reconstruction of the width before, so all of them together cost one decode.
    """

    widths: tuple[int, ...] | None = static(None)
    """The prefixes, rising and below d_sae; None for 1/16, 1/8, 1/4 and 1/2 of d_sae. All latents always count too."""
    mean: bool = static(False)
    """Take the mean over widths, not the sum. dictionary_learning's loss is this divided by the number of widths."""

    def prefixes(self, d_sae: int) -> tuple[int, ...]:
        """The numbers of first latents, d_sae the last."""
        halves = [d_sae // part for part in (16, 8, 4, 2) if d_sae // part]
        return (*(dict.fromkeys(halves) if self.widths is None else self.widths), d_sae)

    def __call__(self, sae: Sae, latents: Array, y: Array, step: Array | int) -> tuple[Array, Array]:
        """One decode, in parts."""
        ends = self.prefixes(latents.shape[0])
        costs, x_hat = _errors(sae, latents, y, ends)
        return jnp.sum(costs) / (len(ends) if self.mean else 1), x_hat

    def check(self, experiment: Any) -> str | None:
        """Widths rise, from 1 to less than d_sae."""
        ends = (0, *self.prefixes(experiment.d_sae))
        if all(a < b for a, b in itertools.pairwise(ends)):
            return None
        return f"widths: got {self.widths}, allowed: rising numbers from 1 to less than d_sae = {experiment.d_sae}"


@definition
class DrawnMatryoshka(Reconstruction):
    """The squared errors of prefixes that are drawn anew in each step. Nabeshima 2024, "Matryoshka SAEs".

    Also Bussmann et al. 2025, arXiv 2503.17547. All latents are one prefix. The others are different lengths l below
    d_sae, drawn without replacement with probabilities in proportion to `(l - s + 1)^p - (l - s)^p` from the shortest,
    s, on: a truncated Pareto distribution, so that short prefixes are likelier. All members of a program share them.

    A decode is cut into at most `blocks` parts that end a prefix equally often, and a drawn length is rounded up to the
    end of its part: all prefixes together cost one decode, and with d_sae <= `blocks` nothing is rounded. Not done here
    are Nabeshima's penalty, which is that of each prefix too, and the sorting of latents by their contribution.
    """

    n_prefixes: int = static(10, min=1)
    """Prefixes in a step, all latents among them."""
    power: float = static(0.5, min=0.01, max=1)
    """The exponent p; 1 makes all lengths equally likely."""
    shortest: int = static(1, min=1)
    """The shortest prefix s."""
    blocks: int = static(16, min=1)
    """Parts of a decode, at most; more of them round less and cost more."""
    mean: bool = static(True)
    """Take the mean over prefixes, as Nabeshima does, not the sum."""
    draw_seed: int = static(0, min=0)
    """Seed of the draws."""

    def ends(self, d_sae: int) -> tuple[int, ...]:
        """The ends of the parts, rising, d_sae the last."""
        lengths = d_sae - self.shortest + 1
        if lengths <= self.blocks:
            return tuple(range(self.shortest, d_sae + 1))
        quantiles = lengths * (np.arange(1, self.blocks + 1) / self.blocks) ** (1 / self.power)
        return tuple(dict.fromkeys(int(end) + self.shortest - 1 for end in np.ceil(quantiles - 1e-6)))

    def lengths(self, d_sae: int, step: Array | int) -> Array:
        """The prefixes of a step without the last, [n_prefixes - 1]."""
        above = jnp.arange(1, d_sae - self.shortest + 1, dtype=jnp.float32)  # l - s + 1
        # log(a^p - (a - 1)^p), without a difference of two large numbers
        scores = self.power * jnp.log(above) + jnp.log(-jnp.expm1(self.power * jnp.log1p(-1 / above)))
        key = jax.random.fold_in(jax.random.key(self.draw_seed), step)
        # the largest of scores with Gumbel noise are a draw without replacement
        drawn = jax.lax.top_k(scores + jax.random.gumbel(key, scores.shape), self.n_prefixes - 1)[1]
        return drawn + self.shortest

    def __call__(self, sae: Sae, latents: Array, y: Array, step: Array | int) -> tuple[Array, Array]:
        """One decode, in parts."""
        d_sae = latents.shape[0]
        ends = self.ends(d_sae)
        costs, x_hat = _errors(sae, latents, y, ends)
        part = jnp.searchsorted(jnp.asarray(ends), self.lengths(d_sae, step), method="compare_all")
        prefixes = jnp.zeros(len(ends)).at[part].add(1.0).at[-1].add(1.0)  # how many end with each part
        return jnp.sum(prefixes * costs) / (self.n_prefixes if self.mean else 1), x_hat

    def check(self, experiment: Any) -> str | None:
        """There are so many prefixes."""
        if self.shortest > experiment.d_sae:
            return f"shortest: got {self.shortest}, allowed: at most d_sae = {experiment.d_sae}"
        most = experiment.d_sae - self.shortest + 1
        if self.n_prefixes <= most:
            return None
        return f"n_prefixes: got {self.n_prefixes}, allowed: at most d_sae - shortest + 1 = {most}"


def _errors(sae: Sae, latents: Array, y: Array, ends: tuple[int, ...]) -> tuple[Array, Array]:
    """The squared error of the prefix at each end, mean_b ‖y - x̂‖², [ends], and the last x̂ [d_out, batch]."""
    W_dec = sae.W_dec[...]
    parts = [matmul(W_dec[a:b].T, latents[a:b], sae.precision) for a, b in itertools.pairwise((0, *ends))]
    x_hats = list(itertools.accumulate(parts, initial=base(sae)))[1:]
    return jnp.stack([jnp.sum((x_hat - y) ** 2) / y.shape[1] for x_hat in x_hats]), x_hats[-1]

"""Tasks: what is reconstructed, and from what.

Data give rows. A source may put several arrays side by side in a row: its *parts*, each normalized on its own.
"""

from typing import Any

from sae.core.model import Shapes
from sae.core.text import count
from sae.core.types import UserError, definition, static
from sae.methods.contract import Task


@definition
class Autoencoder(Task):
    """A row is reconstructed from itself."""

    def shapes(self, parts: tuple[int, ...]) -> Shapes:
        """One part is all of it."""
        if len(parts) > 1:
            raise UserError(f"task: got rows of {len(parts)} parts, allowed: one with autoencoder; {_several(parts)}")
        return Shapes(parts[0], parts[0], parts)


@definition
class Transcoder(Task):
    """A row's second part y is reconstructed from its first, x. Dunefsky, Chlenski & Nanda 2024, arXiv 2406.11944.

    `f = activation(W_enc x + b_enc)`, `ŷ = W_decᵀ f + b_dec`, W_enc [d_sae, d_in], W_dec [d_sae, d_out]. They take the
    input and the output of an MLP layer. As b_dec is of y, `apply_b_dec_to_input` must be false.
    """

    skip: bool = static(False)
    """Add W_skip x, W_skip [d_out, d_in] trained from 0: a skip transcoder (Paulo, Shabalin & Belrose 2025, arXiv
    2501.18823)."""

    def shapes(self, parts: tuple[int, ...]) -> Shapes:
        """Two parts: the input, then the target."""
        if len(parts) != 2:
            raise UserError(
                f"task: got rows of {count(len(parts), 'part')}, allowed: two with transcoder, input and target"
            )
        d_in, d_out = parts
        return Shapes(d_in, d_out, (d_out,), self.skip)

    def check(self, experiment: Any) -> str | None:
        """The decoder's bias is not the input's."""
        if experiment.apply_b_dec_to_input:
            return "transcoder: got apply_b_dec_to_input=True, allowed: False, as b_dec is of the target"
        return None


@definition
class Crosscoder(Task):
    """All parts of a row, one for each source, from all of them. Lindsey et al. 2024, "Sparse crosscoders".

    `f = activation(Σ_s W_enc^s x^s + b_enc)`, `x̂^s = W_dec^sᵀ f + b_dec^s`. The sources are layers, or models. The
    matrices of all sources stand side by side, W_enc and W_dec [d_sae, Σ_s d_s]. The norm of a decoder row, which a
    weighted penalty and `BatchTopK` read, is Σ_s ‖W_dec,i^s‖; a constraint holds the Euclidean norm of the whole row.
    Their encoder takes x as it is: `apply_b_dec_to_input=False`.
    """

    def shapes(self, parts: tuple[int, ...]) -> Shapes:
        """Two parts or more."""
        if len(parts) < 2:
            raise UserError("task: got rows of one part, allowed: two or more with crosscoder, one for each source")
        return Shapes(sum(parts), sum(parts), parts)


def _several(parts: tuple[int, ...]) -> str:
    return "transcoder (input, target) and crosscoder take two" if len(parts) == 2 else "crosscoder takes several"

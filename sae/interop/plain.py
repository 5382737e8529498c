"""An autoencoder as every library has it: matrices, biases, the name of an activation and its numbers, on raw rows.

Each format is written from this form and read into it, so that what is common (the input transformation, thresholds,
biases) is converted in one place. Numbers are float64 until they are written.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from sae.core.model import Sae, decoder_norms, input_normalization, own, target_normalization
from sae.core.normalization import Normalization
from sae.core.types import UserError
from sae.methods.activations import (
    AbsTopK,
    BatchTopK,
    Gated,
    GroupMax,
    JumpRelu,
    MatchingPursuit,
    MultiTopK,
    Relu,
    SoftThreshold,
    TopK,
)

UNIT = 1e-4  # norms of decoder rows that differ by less from 1 count as 1


@dataclasses.dataclass(frozen=True)
class Plain:
    """An autoencoder of raw rows: `f = activation(W_enc (x - b_dec) + b_enc)`, `x_hat = W_decᵀ f + b_dec`.

    With `subtracts` false the encoder takes x itself. A transcoder may have `W_skip [d_out, d_in]`.
    """

    kind: str  # relu, jumprelu, topk, abstopk, groupmax, gated, matching_pursuit
    W_enc: np.ndarray  # [d_sae, d_in]
    b_enc: np.ndarray  # [d_sae]; of a gated one the gate's bias
    W_dec: np.ndarray  # [d_sae, d_out]
    b_dec: np.ndarray  # [d_out]
    subtracts: bool = True
    W_skip: np.ndarray | None = None
    k: int | None = None  # of topk, abstopk, groupmax, matching_pursuit
    threshold: np.ndarray | None = None  # [d_sae], of jumprelu
    b_mag: np.ndarray | None = None  # [d_sae], of gated
    r_mag: np.ndarray | None = None  # [d_sae], of gated
    stop_on_repeat: bool = True  # of matching_pursuit
    transcodes: bool = False  # it reconstructs a target, not its input

    @property
    def d_in(self) -> int:
        """Width of what is encoded."""
        return self.W_enc.shape[1]

    @property
    def d_out(self) -> int:
        """Width of what is reconstructed."""
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[0]

    @property
    def norms(self) -> np.ndarray:
        """Euclidean norms of the decoder rows, [d_sae]."""
        return np.sqrt(np.sum(self.W_dec**2, axis=1))

    @property
    def unit_norm(self) -> bool:
        """Whether every decoder row has norm 1."""
        return bool(np.all(np.abs(self.norms - 1) < UNIT))

    def subtracting(self) -> "Plain":
        """The same function with `subtracts`: what the encoder loses by b_dec goes to its biases."""
        return self if self.subtracts else self._moved(self.W_enc @ self.b_dec, subtracts=True)

    def not_subtracting(self) -> "Plain":
        """The same function without `subtracts`."""
        return self._moved(-self.W_enc @ self.b_dec, subtracts=False) if self.subtracts else self

    def _moved(self, shift: np.ndarray, subtracts: bool) -> "Plain":
        b_mag = None if self.b_mag is None or self.r_mag is None else self.b_mag + np.exp(self.r_mag) * shift
        return dataclasses.replace(self, b_enc=self.b_enc + shift, b_mag=b_mag, subtracts=subtracts)

    def scaled(self, by: np.ndarray) -> "Plain":
        """The same reconstructions from latents times `by` [d_sae], all above 0. Not for matching pursuit."""
        times = lambda value: None if value is None else value * by
        return dataclasses.replace(
            self,
            W_enc=self.W_enc * by[:, None],
            b_enc=self.b_enc * by,
            W_dec=self.W_dec / by[:, None],
            threshold=times(self.threshold),
            b_mag=times(self.b_mag),
        )


def plain_of(sae: Sae) -> Plain:
    """An autoencoder in the plain form, with its normalization in its weights and the same latents (see `folded`).

    BatchTopK, which outside training compares `f_i ‖W_dec,i‖` with one threshold, is the JumpReLU with the thresholds
    `threshold / ‖W_dec,i‖`. Raises UserError for an activation that has no such form.
    """
    a = sae.activation
    if type(a) not in KINDS:
        known = ", ".join(cls.__name__ for cls in KINDS)
        raise UserError(f"got the activation {type(a).__name__}, which other libraries lack; allowed: {known}")
    kind = KINDS[type(a)]
    numbers: dict[str, Any] = {name: _double(value) for name, value in own(sae).items()}
    if hasattr(a, "k") and kind != "jumprelu":
        numbers["k"] = int(a.k)
    if isinstance(a, MatchingPursuit):
        numbers["stop_on_repeat"] = a.stop_on_repeat
    b_enc = _double(sae.b_enc[...])
    if isinstance(a, SoftThreshold):
        if a.signed:
            raise UserError("got SoftThreshold(signed=True), which other libraries lack; allowed: signed=False")
        b_enc = b_enc - numbers.pop("threshold", float(a.threshold))
    if isinstance(a, BatchTopK):
        numbers["threshold"] = numbers["threshold"] / _double(decoder_norms(sae))
    found = Plain(
        kind,
        _double(sae.W_enc[...]),
        b_enc,
        _double(sae.W_dec[...]),
        _double(sae.b_dec[...]),
        subtracts=sae.apply_b_dec_to_input or kind == "matching_pursuit",
        W_skip=None if sae.W_skip is None else _double(sae.W_skip[...]),
        transcodes=_transcodes(sae),
        **numbers,
    )
    seen, made = input_normalization(sae), target_normalization(sae)
    return found if seen is None or made is None else folded(found, seen, made)


KINDS: dict[type, str] = {
    Relu: "relu",
    SoftThreshold: "relu",
    JumpRelu: "jumprelu",
    BatchTopK: "jumprelu",
    TopK: "topk",
    MultiTopK: "topk",
    AbsTopK: "abstopk",
    GroupMax: "groupmax",
    Gated: "gated",
    MatchingPursuit: "matching_pursuit",
}


def sae_of(one: Plain) -> Sae:
    """The autoencoder of a plain form. It has no normalization: it takes raw rows as they are."""
    k = one.k or 1
    activations = {
        "relu": Relu(),
        "jumprelu": JumpRelu(),
        "topk": TopK(k=k),
        "abstopk": AbsTopK(k=k),
        "groupmax": GroupMax(k=k),
        "gated": Gated(),
        "matching_pursuit": MatchingPursuit(k=k, stop_on_repeat=one.stop_on_repeat),
    }
    single = lambda value: jnp.asarray(np.asarray(value, np.float32))
    own = {name: single(value) for name in ("threshold", "b_mag", "r_mag") if (value := getattr(one, name)) is not None}
    return Sae(
        *map(single, (one.W_enc, one.b_enc, one.W_dec, one.b_dec)),
        activations[one.kind],
        apply_b_dec_to_input=one.subtracts,
        own=own,
        W_skip=None if one.W_skip is None else single(one.W_skip),
    )


def checked(one: Plain) -> Plain:
    """The plain form, if its shapes and numbers fit together. Raises UserError, which names the tensor."""
    d_sae, d_in = _matrix("W_enc", one.W_enc)
    d_out = _matrix("W_dec", one.W_dec)[1]
    shapes: dict[str, tuple[int, ...]] = {"W_dec": (d_sae, d_out), "b_enc": (d_sae,), "b_dec": (d_out,)}
    shapes |= {"threshold": (d_sae,), "b_mag": (d_sae,), "r_mag": (d_sae,), "W_skip": (d_out, d_in)}
    for name, shape in shapes.items():
        value = getattr(one, name)
        if value is not None and value.shape != shape:
            raise UserError(f"{name}: got shape {list(value.shape)}, allowed: {list(shape)} beside W_enc [d_sae, d_in]")
    for name in ("W_enc", *shapes):
        value = getattr(one, name)
        if value is not None and not np.all(np.isfinite(value)):
            raise UserError(f"{name}: got a number that is not finite, allowed: finite weights")
    if d_in != d_out and one.subtracts:
        raise UserError(f"got b_dec of width {d_out} subtracted from inputs of width {d_in}, allowed: equal widths")
    if one.kind in ("topk", "abstopk", "groupmax", "matching_pursuit"):
        if not isinstance(one.k, int) or isinstance(one.k, bool) or not 1 <= one.k <= d_sae:
            raise UserError(f"k: got {one.k!r}, allowed: 1 to d_sae = {d_sae}")
        if one.kind == "groupmax" and d_sae % one.k:
            raise UserError(f"k: got {one.k}, allowed with groupmax: a number that divides d_sae = {d_sae}")
    return one


def needed(tensors: Mapping[str, np.ndarray], *names: str) -> list[np.ndarray]:
    """Tensors by name, as float64. Raises UserError for one that is missing."""
    for name in names:
        if name not in tensors:
            raise UserError(f"got no tensor {name!r}, allowed: a file with {', '.join(names)}")
    return [_double(tensors[name]) for name in names]


def _matrix(name: str, value: np.ndarray) -> tuple[int, int]:
    if value.ndim != 2 or 0 in value.shape:
        raise UserError(f"{name}: got shape {list(value.shape)}, allowed: a matrix")
    return value.shape[0], value.shape[1]


def on_examples(one: Plain, normalization: Normalization) -> Plain:
    """The same function of normalized examples: what `folded` takes away. Raises UserError as `folded` does.

    `normalization` is that of the data, of rows (input ‖ target) for a transcoder.
    """
    seen = normalization.part(0, one.d_in)
    made = normalization.part(normalization.shift.shape[-1] - one.d_out, normalization.shift.shape[-1])
    back = lambda n: Normalization(-_double(n.shift) * _double(n.scale), 1 / _double(n.scale))
    return folded(one, back(seen), back(made))


def folded(one: Plain, seen: Normalization, made: Normalization) -> Plain:
    """The same latents from rows, where `one` takes `(row - shift) * scale`: that of inputs, and that of targets.

    Matching pursuit is tied, so its rows stay as they are and its latents are divided by the scale. Raises UserError
    for it where the scales of dimensions differ.
    """
    if one.kind == "matching_pursuit" and np.ptp(seen.scale) > 1e-6 * np.max(np.abs(seen.scale)):
        raise UserError("got matching pursuit on data whose dimensions have scales of their own, allowed: one scale")
    (shift, scale), (out_shift, out_scale) = ([_double(n.shift), _double(n.scale)] for n in (seen, made))
    if one.kind == "matching_pursuit":
        return dataclasses.replace(one, b_dec=one.b_dec / out_scale + out_shift)
    W_enc = one.W_enc * scale
    if not one.subtracts:
        one = one._moved(-W_enc @ shift, subtracts=False)
    b_dec, W_skip = one.b_dec / out_scale + out_shift, one.W_skip
    if W_skip is not None:
        W_skip = W_skip / out_scale[:, None] * scale
        b_dec = b_dec - W_skip @ shift
    W_dec = one.W_dec / out_scale
    return dataclasses.replace(one, W_enc=W_enc, W_dec=W_dec, b_dec=b_dec, W_skip=W_skip)


def _transcodes(sae: Sae) -> bool:
    """Whether it has a target of its own: its normalization is then of rows (input ‖ target)."""
    width = None if sae.normalization is None else sae.normalization.shift.shape[-1]
    return sae.W_skip is not None or sae.d_in != sae.d_out or (width is not None and width != sae.d_in)


def _double(value: Any) -> np.ndarray:
    return np.asarray(value, np.float64)

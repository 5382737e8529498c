"""Initializations: the parameters before the first step."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from sae.core import files
from sae.core.model import BESIDE, MEMBER, unit_rows
from sae.core.types import Array, Key, UserError, definition, leaf, static
from sae.methods.constraints import AtMostUnitNorm, UnitNorm
from sae.methods.contract import Constraint, Initialization

ROUNDING = 1e-3  # what weights of fewer bits may miss a norm of 1 by
OWN = ("W_enc", "W_dec", "b_enc", "b_dec", "W_skip")  # what is read of a file, beside own.NAME


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows(Initialization):
    """Decoder rows of one norm, from `directions`, and an encoder with these directions or with its own; b_enc zero."""

    decoder_norm: float = leaf(1.0, min=0)
    """Euclidean norm of the decoder rows."""
    encoder: Literal["decoder", "random"] = static("decoder")
    """Directions of the encoder rows: those of the decoder rows, or random ones of their own."""
    encoder_scale: float = leaf(1.0, min=0)
    """Norm of the encoder rows, in units of `decoder_norm`."""

    def check(self, experiment: Any) -> str | None:
        """A constraint may fix the norm, and a tied encoder is the decoder."""
        constraint = experiment.constraint
        name = type(constraint).__name__
        if isinstance(constraint, UnitNorm) and self.decoder_norm != 1:
            return f"decoder_norm: got {self.decoder_norm:g} beside {name}, which sets it to 1; allowed: 1"
        if isinstance(constraint, AtMostUnitNorm) and self.decoder_norm > 1:
            return f"decoder_norm: got {self.decoder_norm:g} beside {name}, which sets it to 1; allowed: at most 1"
        if constraint.tied and (self.encoder, self.encoder_scale) != ("decoder", 1):
            return "encoder: got an encoder of its own beside constraint.tied, allowed: decoder, with encoder_scale 1"
        return None

    def directions(self, key: Key, d_sae: int, y: Array, b_dec: Array) -> Array:
        """Unit rows [d_sae, d_out]."""
        raise NotImplementedError

    def __call__(self, key: Key, d_sae: int, x: Array, y: Array, b_dec: Array) -> dict[str, Array]:
        """W_dec = decoder_norm · directions; W_enc = encoder_scale · W_dec, or rows of that norm in random directions.

        The encoder of a transcoder always has directions of its own: its inputs lie in another space than its targets.
        """
        W_dec = self.decoder_norm * self.directions(key, d_sae, y, b_dec)
        if self.encoder == "decoder" and x is y:
            return {"W_enc": self.encoder_scale * W_dec, "W_dec": W_dec}
        own = random_rows(jax.random.fold_in(key, 1), d_sae, len(x))
        return {"W_enc": self.encoder_scale * self.decoder_norm * own, "W_dec": W_dec}


@definition
class RandomRows(Rows):
    """Decoder rows uniform on the sphere of radius `decoder_norm`; W_enc = encoder_scale · W_dec (Gao et al. 2024).

    At equal seed the rows of a narrow autoencoder are the first rows of a wide one. Anthropic's (Conerly et al. 2024,
    "April update") and SAELens' decoder rows start with norm .1, SAELens' JumpReLU with .5; both need the constraint
    `Free`.
    """

    def directions(self, key: Key, d_sae: int, y: Array, b_dec: Array) -> Array:
        """Random unit rows."""
        return random_rows(key, d_sae, len(y))


@definition
class DataRows(Rows):
    """Decoder rows along training examples, (y - b_dec) / ‖y - b_dec‖, as in K-SVD (Aharon, Elad & Bruckstein 2006).

    The examples are different ones, out of up to 8,192; rows beyond their number are random, and so
    is the row of an example that is b_dec itself. At equal seed the rows of a narrow autoencoder are the first rows of
    a wide one.
    """

    def directions(self, key: Key, d_sae: int, y: Array, b_dec: Array) -> Array:
        """Unit rows along examples y [d_out, n]."""
        n = y.shape[1]
        chosen = jax.random.permutation(key, n)[:d_sae]
        rows, others = unit_rows(y[:, chosen].T - b_dec), random_rows(key, d_sae, len(y))
        rows = jnp.concatenate([jnp.where(jnp.any(rows != 0, axis=1, keepdims=True), rows, others[:n]), others[n:]])
        return rows


@definition
class AxisRows(Rows):
    """Decoder rows along the dimensions of an example: e_1, -e_1, e_2, -e_2, ... With no training, raw neurons.

    Two latents are the positive and the negative part of a dimension, less b_dec. Rows beyond 2 · d_in are zero, and so
    their latents are dead. A baseline: `optimizer.lr` 0 and one step, with `b_dec_init` "mean".
    """

    def directions(self, key: Key, d_sae: int, y: Array, b_dec: Array) -> Array:
        """Unit rows and rows of zeros."""
        return _both_ways(jnp.eye(len(y)), d_sae)


@definition
class PrincipalRows(Rows):
    """Decoder rows along principal components: c_1, -c_1, c_2, -c_2, ... by falling variance. With no training, PCA.

    The components are those of up to 8,192 training examples about b_dec. Rows beyond 2 · d_in are zero, and so their
    latents are dead. A baseline: `optimizer.lr` 0 and one step, with `b_dec_init` "mean".
    """

    def directions(self, key: Key, d_sae: int, y: Array, b_dec: Array) -> Array:
        """Unit rows and rows of zeros."""
        away = y - b_dec[:, None]
        _, vectors = jnp.linalg.eigh(jnp.matmul(away, away.T, precision="highest"))  # variances rise
        return _both_ways(vectors.T[::-1], d_sae)


@definition
class GivenWeights(Initialization):
    """The weights in a .safetensors file, or those of a member of a run: fine-tuning, or a decoder to freeze.

    The file has W_enc [d_sae, d_in] and W_dec [d_sae, d_out], and may have b_enc, b_dec (which then replaces
    `b_dec_init`) and own.NAME, the activation's own parameters, of those that this activation has. They are weights for
    normalized examples. A run's folder is read as data; nothing in it is executed.
    """

    path: str = static(path=True)
    """A .safetensors file, or the folder of a run."""
    member: int = static(0, min=0)
    """The member of that run."""
    sha256: str | None = static(None)
    """Checksum of the file; None for what it is now. A run keeps it, and does not go on from other weights."""

    def resolved(self) -> "GivenWeights":
        """The choice with the checksum of its file. Raises UserError where that is not the one it has."""
        found = _sha256(path := self._file())
        if self.sha256 not in (None, found):
            raise UserError(f"initialization.sha256: {path} has {found[:12]}…, allowed: {self.sha256[:12]}…, as before")
        return dataclasses.replace(self, sha256=found)

    def check(self, experiment: Any) -> str | None:
        """The file has as many latents as the experiment, and decoder rows that the constraint leaves alone."""
        read = self._read()
        shapes = {name: value.shape for name, value in read.items()}
        missing = [name for name in ("W_enc", "W_dec") if len(shapes.get(name, ())) != 2]
        if missing:
            return f"path: {self.path} has {', '.join(shapes) or 'nothing'}, allowed: matrices W_enc and W_dec"
        if (n := shapes["W_dec"][0]) != experiment.d_sae:
            turned = "; transpose them" if experiment.d_sae in shapes["W_dec"] else ""
            return f"path: W_dec of {self.path} has {n} rows, allowed: d_sae = {experiment.d_sae}{turned}"
        return self._moved(np.linalg.norm(np.float64(read["W_dec"]), axis=1), experiment.constraint)

    def _moved(self, norms: np.ndarray, constraint: Constraint) -> str | None:
        """What a constraint does to decoder rows of these norms, in words; it would leave W_enc as it is."""
        unit, bounded = isinstance(constraint, UnitNorm), isinstance(constraint, AtMostUnitNorm)
        if (unit and np.abs(norms - 1).max() > ROUNDING) or (bounded and norms.max() > 1 + ROUNDING):
            got = f"W_dec of {self.path} has rows of norm {norms.min():.3g} to {norms.max():.3g}"
            allowed = f"rows of norm {'1' if unit else 'at most 1'} beside {type(constraint).__name__}, or Free"
            return f"path: {got}, allowed: {allowed}"
        return None

    def __call__(self, key: Key, d_sae: int, x: Array, y: Array, b_dec: Array) -> dict[str, Array]:
        """The parameters in the file."""
        found = {name: value for name, value in self._read().items() if name in OWN or name.startswith("own.")}
        return {name: jnp.asarray(value, jnp.float32) for name, value in found.items()}

    def _file(self) -> Path:
        path = files.located(self.path)
        if not path.is_dir():
            return path
        for weights in sorted(path.glob("cohorts/*/weights.safetensors")):
            if self.member in _tensors(weights, (MEMBER,)).get(MEMBER, ()):
                return weights
        raise UserError(f"initialization.member: {path} has no weights of member {self.member}; is that run finished?")

    def _read(self) -> dict[str, np.ndarray]:
        path = self._file()
        if not files.located(self.path).is_dir():
            return _tensors(path)
        place = int(np.flatnonzero(_tensors(path, (MEMBER,))[MEMBER] == self.member)[0])
        return {name: value[place] for name, value in _tensors(path).items() if name not in BESIDE}


def _both_ways(rows: Array, d_sae: int) -> Array:
    """Rows [n, width] -> [d_sae, width]: each and its negative, in their order, and then zeros."""
    both = jnp.stack([rows, -rows], axis=1).reshape(-1, rows.shape[1])[:d_sae]
    return jnp.concatenate([both, jnp.zeros((d_sae - len(both), rows.shape[1]))])


def random_rows(key: Key, n: int, width: int) -> Array:
    """Rows [n, width] uniform on the unit sphere. Fewer rows are the first of more: each number has its own counter."""
    return unit_rows(jax.random.normal(key, (n, width)))


def _tensors(path: Path, names: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
    """The tensors of a .safetensors file, or some of them. Raises UserError."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys() if names is None or name in names}
    except FileNotFoundError:
        raise UserError(f"initialization.path: {path}: no such file or folder") from None
    except Exception as error:  # a header may be damaged in any way
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"initialization.path: {path} is no .safetensors file that can be read ({reason})") from None


def _sha256(path: Path) -> str:
    try:
        stat = path.stat()
        return _sha256_of(path, stat.st_mtime_ns, stat.st_size)
    except OSError as error:
        raise UserError(f"initialization.path: {path}: {error.strerror}") from None


@functools.lru_cache(maxsize=64)
def _sha256_of(path: Path, changed: int, size: int) -> str:
    """The checksum of a file that was changed then; many members may start from one."""
    return files.sha256(path)

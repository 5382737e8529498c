"""Files that other programs wrote too, read as data: nothing in them is executed, and every fault is one line."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from sae.core.files import write_atomically
from sae.core.types import UserError


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({brief(error)})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: got {type(found).__name__}, allowed: a JSON object")
    return found


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a .safetensors file; numbers with a point become float32. Raises UserError."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: _single(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # safetensors has errors of its own, and TypeError for dtypes that numpy lacks
        raise UserError(f"{path}: not a whole .safetensors file ({brief(error)}); write or copy it again") from None


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write tensors as float32, atomically."""
    data = safetensors.numpy.save({name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()})
    write_atomically(path, lambda file: file.write(data))


def brief(error: Exception) -> str:
    """What an error says, in one line of at most 160 characters."""
    return " ".join((str(error) or type(error).__name__).split())[:160]


def _single(value: np.ndarray) -> np.ndarray:
    return value if value.dtype.kind in "iub" else value.astype(np.float32)

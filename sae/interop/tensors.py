"""PyTorch's files of tensors, read as data and never unpickled, and settings as other libraries write them."""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sae.core.files import write_atomically
from sae.core.foreign import brief
from sae.core.types import UserError


def write_settings(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object."""
    write_atomically(path, lambda file: file.write((json.dumps(value, indent=2) + "\n").encode()))


def read_pt(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict that torch.save wrote, read with `weights_only=True`. Raises UserError."""
    torch = _torch(path)
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # torch's own, pickle's, zipfile's
        raise UserError(f"{path}: not a .pt file of tensors alone ({brief(error)})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: got {type(found).__name__}, allowed: tensors by name")
    tensors = {str(name): value for name, value in found.items() if isinstance(value, torch.Tensor)}
    whole = lambda value: value.detach().to(torch.float32 if value.is_floating_point() else torch.int64).numpy()
    return {name: whole(value) for name, value in tensors.items()}


def write_pt(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a state dict with torch.save: float32, and whole numbers as int32. Raises UserError without torch."""
    torch = _torch(path)
    whole = lambda value: np.ascontiguousarray(value, np.int32 if value.dtype.kind in "iu" else np.float32)
    state = {name: torch.from_numpy(whole(value)).reshape(value.shape) for name, value in tensors.items()}
    write_atomically(path, lambda file: torch.save(state, file))


def _torch(path: Path) -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError:
        raise UserError(
            f"{path.name}: .pt files need PyTorch; pip install -e '.[torch]', or use another format"
        ) from None

"""Autoencoders in the formats of other libraries, both ways: a file per format.

`save(sae, path, "saelens")` writes a folder that the library opens, `load(path)` reads one. Both keep the function of
raw rows: latents and reconstructions are those of the original. What is in a folder is data: nothing is executed.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from sae.core.files import expanded
from sae.core.foreign import brief
from sae.core.model import Sae
from sae.core.text import nearest
from sae.core.types import UserError
from sae.interop import card, dictionary_learning, saelens, sparsify
from sae.interop.plain import checked, plain_of, sae_of

FORMATS: dict[str, ModuleType] = {
    "saelens": saelens,
    "dictionary_learning": dictionary_learning,
    "sparsify": sparsify,
}
CARD = "README.md"


def save(
    sae: Sae,
    path: str | Path,
    format: str = "saelens",
    *,
    name: str = "",
    experiment: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    firing_rates: np.ndarray | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write an autoencoder to a new or empty folder, with a card in Markdown (README.md) -> the folder.

    The normalization of its data goes into its weights, so the folder takes raw rows [n, d_in] as `sae` does. BatchTopK
    becomes JumpReLU, as in SAELens. `name` is the title of the card, `experiment` {dotted name: value} and `metrics`
    {name: number} its tables; `firing_rates` [d_sae] and `metadata` (such as model_name, hook_name) go into the files
    where the format has a place. Raises UserError for an unknown format, for an autoencoder that the format lacks, and
    for a folder that holds something.
    """
    module, folder = _module(format), expanded(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: got a path that holds something, allowed: a new or empty folder")
    one = plain_of(sae)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as temporary:
        part = Path(temporary) / "part"
        part.mkdir()
        module.write(one, part, dict(metadata or {}), firing_rates)
        text = card.page(
            one, sae, format, module.LOADING, json.dumps(folder.name)[1:-1], name, experiment or {}, metrics or {}
        )
        (part / CARD).write_text(text, encoding="utf-8")
        os.replace(part, folder)  # the folder is whole, or is not there
    return folder


def load(path: str | Path, format: str | None = None) -> Sae:
    """Read an autoencoder from a folder of another library. It takes raw rows [n, d_in] and gives raw reconstructions.

    None finds the format by the files that are there. Raises UserError for a folder that is in none of the formats, and
    for an autoencoder that this project lacks.
    """
    folder = expanded(path)
    folder = folder.parent if folder.is_file() else folder
    if format is None:
        format = detect(folder)
    try:
        return sae_of(checked(_module(format).read(folder)))
    except UserError as error:
        raise UserError(f"{folder}: {format}: {error}") from None
    except (TypeError, ValueError, IndexError) as error:  # a scalar for a matrix, a text for a number
        raise UserError(f"{folder}: {format}: settings or tensors of another shape or type ({brief(error)})") from None


def detect(folder: Path) -> str:
    """The format of a folder, by the names of its files. Raises UserError where there is none, or more than one."""
    if not folder.exists():
        raise UserError(f"{folder}: no such folder")
    found = [name for name, module in FORMATS.items() if module.is_one(folder)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{folder}: got files of {' and '.join(found)}, allowed: one; name it with format=")
    if (folder / "definition.json").is_file():
        raise UserError(f"{folder}: got a run of this project, allowed: another library's folder; use sae.load")
    files = ", ".join(f"{module.WEIGHTS} ({name})" for name, module in FORMATS.items())
    raise UserError(f"{folder}: got no autoencoder, allowed: a folder with one of {files}")


def _module(format: str) -> ModuleType:
    if format not in FORMATS:
        raise UserError(f"format: got {format!r}; {nearest(str(format), FORMATS)}")
    return FORMATS[format]

"""Files: where a path leads, and files written so that each is either the old one or the new one."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from sae.core.types import UserError


def expanded(path: str | Path) -> Path:
    """A path with `~` and `~user` replaced. Raises UserError where that home folder is not known."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        whose = Path(path).parts[0]
        fix = "set HOME, or write" if whose == "~" else "write"
        raise UserError(f"{path}: the home folder {whose} is not known; {fix} the path from / on") from None


class Written(str):
    """A path as a definition file writes it, which knows the folder of that file. It is equal to its text."""

    folder: Path

    def __new__(cls, text: str, folder: Path) -> "Written":
        """The text, as it stands in a file in this folder."""
        written = super().__new__(cls, text)
        written.folder = folder
        return written


def located(path: str) -> Path:
    """Where the path in a field of a definition leads: beside its definition file, or else from the working directory.

    A path that is in neither place leads there from the working directory. Raises UserError where a home is not known.
    """
    plain = expanded(path)
    beside = path.folder / plain if isinstance(path, Written) else plain
    return beside if beside.exists() else plain


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a temporary file beside `path`, flush it to disk, then rename it to `path` in one step.

    Raises OSError (for a full disk, say), leaving `path` untouched and no temporary file behind.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # the error of a full disk names no file
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_atomically(path, lambda file: file.write(json.dumps(value, indent=1).encode()))


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

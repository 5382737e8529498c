"""Files: where a path leads; files written so that each is the old or the new one, and read with their checksum."""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from sae.core.types import UserError

LEFTOVER = re.compile(r"\.[0-9a-f]{16}\.tmp")  # names of temporary files: a killed process leaves one behind


class DamagedError(UserError):
    """A file differs from what was written, or is missing."""


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
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")  # a name that nobody else's file has
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename, error.filename2 = str(path), None  # the error of a full disk names no file
        raise


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of killed processes. No other process may be writing there."""
    for path in folder.iterdir():
        if LEFTOVER.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_atomically(path, lambda file: file.write(json.dumps(value, indent=1).encode()))


def write_checked(path: Path, value: Mapping[str, Any]) -> None:
    """Write a mapping as indented JSON, atomically, with a last entry "checksum" over the others."""
    write_json(path, {**value, "checksum": _checksum(json.loads(json.dumps(value)))})


def read_checked(path: Path) -> Any:
    """What `write_checked` wrote, without its checksum. JSON without one, which is older, is read as it is.

    Raises DamagedError, and FileNotFoundError where there is no file.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except IsADirectoryError:
        raise DamagedError(f"{path} is a folder, allowed: a file; move it away") from None
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: not readable as JSON ({' '.join(str(error).split())[:200]})") from None
    checksum = value.pop("checksum", None) if isinstance(value, dict) else None
    if checksum is not None and checksum != _checksum(value):
        raise DamagedError(
            f"{path} is damaged, or was edited by hand: its checksum is another; "
            'delete its entry "checksum" to have it read as it is'
        )
    return value


def _checksum(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""The libraries of the extra `lm`, imported where they are first needed."""

import importlib
from typing import Any

from sae.core.types import UserError


def library(name: str) -> Any:
    """A library of the extra. Raises UserError with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"language models need {name} ({error}); pip install -e '.[lm]'") from None

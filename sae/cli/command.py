"""A command of the command line, and how its arguments are read."""

import contextlib
import dataclasses
import io
import re
import shutil
import textwrap
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro

from sae.core.console import show
from sae.core.text import nearest
from sae.core.types import UserError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Command:
    """One command: `sae NAME ...`."""

    usage: str
    """The name and its arguments, as `sae --help` shows them."""
    about: str
    """What it does, in one sentence."""
    main: Callable[[list[str]], int]
    """Does it, given what follows the name -> the exit code."""

    @property
    def name(self) -> str:
        """The word after `sae`."""
        return self.usage.split()[0]


def read(options: type[T], argv: Sequence[str], command: Command) -> T:
    """A command's arguments, all of them fields of one dataclass. Raises UserError; exits after --help."""
    fields: tuple[dataclasses.Field, ...] = dataclasses.fields(options)  # ty: ignore[invalid-argument-type]: T is one
    flags = [
        f"--{field.name.rstrip('_').replace('_', '-')}" for field in fields if field.default is not dataclasses.MISSING
    ]
    if not argv and not command.usage.split()[1].startswith("["):
        raise UserError(f"{command.name}: got no arguments, allowed: sae {command.usage}")
    for token in argv:
        flag = token.split("=", 1)[0].replace("_", "-")
        if flag.startswith("--") and not {flag, flag.replace("--no-", "--", 1)} & {*flags, "--help"}:
            raise UserError(f"{command.name} has no option '{token}'; {nearest(token, flags)}")
    return parse(options, argv, f"sae {command.name}", command.about, usage=command.usage.partition(" ")[2])


def parse(
    cls: type[T], tokens: Sequence[str], prog: str, description: str, default: T | None = None, usage: str = "--help"
) -> T:
    """A dataclass from the tokens, over the default; errors show the `usage`. Raises UserError; exits after --help."""
    text = io.StringIO()
    given: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(text), contextlib.redirect_stdout(text), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a user's own choices, which are not among the annotated ones
            return tyro.cli(
                cls, args=tokens, prog=prog, description=description, config=(tyro.conf.AvoidSubcommands,), **given
            )
    except SystemExit as stop:
        if stop.code == 0:  # --help
            width = shutil.get_terminal_size().columns
            for line in text.getvalue().splitlines():  # tyro wraps what is in its boxes only
                show(line if len(line) <= width else textwrap.fill(line, width, break_on_hyphens=False))
            raise
        said, name = _one_line(text.getvalue()), prog.removeprefix("sae ")
        if lacking := re.match(r"Missing from .*?: (\S+)", said):
            said = f"{name}: got no {lacking[1]}, allowed: {prog} {usage}"
        elif unknown := re.match(r"Unrecognized options: (.*)", said):
            said = f"{name}: got {unknown[1]}, which it has no place for, allowed: {prog} {usage}"
        elif pair := re.match(r"(\S+): Could not parse arguments \[(.*)\] into tuple type \S*\[(.*)\]", said):
            said = f"{pair[1]}: got {pair[2]}, allowed: {pair[3]}"
        raise UserError(said) from None


def _one_line(box: str) -> str:
    """The message inside tyro's box: the text between the title and the next rule, after which help follows."""
    groups: list[list[str]] = [[]]
    for line in box.splitlines():
        if "──" in line or "---" in line:
            groups.append([])
        else:
            groups[-1].append(line.strip(" │|"))
    return re.sub(r"^Error parsing ", "", " ".join(groups[1]))

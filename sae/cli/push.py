"""`sae push`: trained autoencoders to the Hugging Face hub, as SAELens' `from_pretrained` takes them."""

import dataclasses
import re
import tempfile
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

import sae
from sae.cli.command import Command, read
from sae.cli.export import chosen, export, ordered, pairs
from sae.core.console import say
from sae.core.types import UserError
from sae.interop import hub


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Which autoencoders, and where they go."""

    folder: Annotated[Positional[Path], arg(metavar="DIR")]
    """The folder of a run."""
    repo: Annotated[Positional[str], arg(metavar="REPO")]
    """The repository, OWNER/NAME. It is made if it is not there."""
    member: Annotated[tuple[int, ...], arg(metavar="ID...")] = ()
    """The numbers of the members; a run of one member needs none."""
    name: str = ""
    """The folder of a single member in the repository; the run's name and the member's number if not given."""
    private: bool = False
    """Make the repository a private one, where it is made."""
    revision: str | None = None
    """The branch; main if not given."""
    metadata: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE...")] = ()
    """What the data are, for the library that opens it: model_name=gpt2 hook_name=blocks.8.hook_resid_pre"""


def main(argv: list[str]) -> int:
    """Write the folders, upload them, and say how they are loaded."""
    options = read(Options, ordered(argv), COMMAND)
    results = sae.load(options.folder)
    members = chosen(results, options.member)
    if options.name and len(members) > 1:
        raise UserError(f"name: got {options.name!r} for {len(members)} members, allowed: one member")
    run = re.sub(r"[^\w.-]|^[.-]", "_", results.definition["name"], flags=re.ASCII)
    names = {member: options.name or f"{run}-{member}" for member in members}
    with tempfile.TemporaryDirectory() as temporary:
        for member, name in names.items():
            if not re.fullmatch(hub.WORD, name, re.ASCII):
                raise UserError(f"name: got {name!r}, allowed: letters, digits and _.-")
            export(results, member, Path(temporary) / name, "saelens", pairs(options.metadata))
        how = {"private": options.private, "revision": options.revision}
        commit = hub.push(temporary, options.repo, names.values(), **how)
    for name in names.values():
        say(f'pushed {options.repo}/{name} at {commit[:12]}: sae.load_pretrained("hf:{options.repo}/{name}")')
    return 0


COMMAND = Command(
    "push DIR [--member ID...] REPO",
    "Upload members to the Hugging Face hub, as SAELens reads them.",
    main,
)

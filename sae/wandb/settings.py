"""What this user and folder have configured for W&B: the mode, the server, an API key. wandb is not imported."""

import configparser
import contextlib
import netrc
import os
import re
import urllib.parse
from pathlib import Path
from typing import Literal, TypeAlias

from sae.core.files import expanded
from sae.core.text import nearest
from sae.core.types import UserError

Mode: TypeAlias = Literal["online", "offline"]
LONGEST = 128  # characters that W&B takes in the name of a project
REFUSED = r"[/\\#?%:\r\n]"  # what it takes in none, as such a name is part of an address


def resolve_mode(choice: str, project: str, agent: bool = False) -> Mode | None:
    """Turn `--wandb auto|online|offline|off` into a W&B mode, without a prompt; None for no W&B.

    `auto` does what WANDB_MODE or W&B's settings file says. Without either it is online where an API key is
    configured, and offline where none is. `agent` says that a `wandb agent` started this run.

    Raises:
        UserError: `online` without a key, or a project or an entity that W&B would refuse.
    """
    choices = ("auto", "online", "offline", "off")
    if choice not in choices:
        raise UserError(f"--wandb got {choice!r}; {nearest(choice, choices)}")
    source, mode = "--wandb online", choice
    if choice == "auto":
        wanted = os.environ.get("WANDB_MODE") or read().get("mode")
        source = "WANDB_MODE=online"
        if wanted in ("offline", "dryrun"):
            mode = "offline"
        elif wanted in ("online", "run", "shared"):
            mode = "online"
        elif wanted == "disabled":
            mode = "off"
        else:
            mode = "online" if has_key() else "offline"
    if mode == "online" and not has_key():
        raise UserError(
            f"{source} needs an API key for {host()}, and none is configured; "
            "set WANDB_API_KEY, run `wandb login`, or use --wandb offline"
        )
    if mode == "off":
        return None
    check_place(agents_project(project) if agent else project)
    return "online" if mode == "online" else "offline"


def check_place(project: str, entity: str | None = None) -> None:
    """Raise UserError for the name of a project or an entity that W&B would refuse, offline too: `sae sync` follows.

    The entity is by default the one that is configured.
    """
    for what, name in (("project", project), ("entity", entity or configured_entity())):
        if name is not None and (not name or len(name) > LONGEST or re.search(REFUSED, name)):
            fit = re.sub(rf"{REFUSED}+", "-", name)[:LONGEST].strip("-")
            fix = f"; for example {fit}" if fit else ""
            raise UserError(
                f"W&B {what}: got {name!r}, allowed: 1 to {LONGEST} characters, and none of / \\ # ? % :{fix}"
            )


def configured_entity() -> str | None:
    """The entity that the environment or W&B's settings file names; None for the one of the API key."""
    return os.environ.get("WANDB_ENTITY") or read().get("entity")


def agents_project(default: str) -> str:
    """The project of the agent that started this process, or that is configured, or else the default."""
    return os.environ.get("WANDB_PROJECT") or read().get("project") or default


def is_id(text: str) -> bool:
    """Whether a text is the id of a run or a sweep, which names files and folders."""
    return bool(re.fullmatch(r"[\w-]{1,128}", text))


def read() -> dict[str, str]:
    """What `wandb login --host`, `wandb offline` and `wandb init` wrote into the user's and the project's settings."""
    files = [Path("wandb") / "settings"]
    with contextlib.suppress(UserError):  # no home, so no settings of the user's
        files.insert(0, expanded(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb") / "settings")
    parser = configparser.ConfigParser(interpolation=None)
    with contextlib.suppress(configparser.Error, OSError, UnicodeDecodeError):
        parser.read(files, encoding="utf-8")
    return dict(parser["default"]) if "default" in parser else {}


def has_home() -> bool:
    """Whether this user has a home folder. Some containers have users without."""
    with contextlib.suppress(UserError):
        return bool(expanded("~"))
    return False


def host() -> str:
    """The W&B server, as configured."""
    url = os.environ.get("WANDB_BASE_URL") or read().get("base_url") or "https://api.wandb.ai"
    return urllib.parse.urlsplit(url).netloc


def has_key() -> bool:
    """Whether an API key is configured for the host."""
    settings = read()
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or settings.get("api_key"):
        return True
    names = [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]
    with contextlib.suppress(OSError, UserError, netrc.NetrcParseError, UnicodeDecodeError):
        files = [file for name in names if (file := expanded(name)).exists()]
        return any((netrc.netrc(file).authenticators(host()) or ("", "", ""))[2] for file in files[:1])
    return False

"""What this user and folder have configured for W&B: the mode, the server, an API key. wandb is not imported."""

import configparser
import contextlib
import netrc
import os
import re
import urllib.parse
from pathlib import Path
from typing import Literal, TypeAlias

from sae.core.text import nearest
from sae.core.types import UserError

Mode: TypeAlias = Literal["online", "offline"]


def resolve_mode(choice: str) -> Mode | None:
    """Turn `--wandb auto|online|offline|off` into a W&B mode, without a prompt; None for no W&B.

    `auto` does what WANDB_MODE or W&B's settings file says. Without either it is online where an API key is
    configured, and offline where none is.

    Raises:
        UserError: `online` without a key.
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
    return None if mode == "off" else "online" if mode == "online" else "offline"


def is_id(text: str) -> bool:
    """Whether a text is the id of a run or a sweep, which names files and folders."""
    return bool(re.fullmatch(r"[\w-]{1,128}", text))


def read() -> dict[str, str]:
    """What `wandb login --host`, `wandb offline` and `wandb init` wrote into the user's and the project's settings."""
    config = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    parser = configparser.ConfigParser(interpolation=None)
    with contextlib.suppress(configparser.Error, OSError, UnicodeDecodeError):
        parser.read([config / "settings", Path("wandb") / "settings"])
    return dict(parser["default"]) if "default" in parser else {}


def host() -> str:
    """The W&B server, as configured."""
    url = os.environ.get("WANDB_BASE_URL") or read().get("base_url") or "https://api.wandb.ai"
    return urllib.parse.urlsplit(url).netloc


def has_key() -> bool:
    """Whether an API key is configured for the host."""
    settings = read()
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or settings.get("api_key"):
        return True
    if "NETRC" in os.environ:
        files = [Path(os.environ["NETRC"]).expanduser()]
    else:
        files = [file for name in ("~/.netrc", "~/_netrc") if (file := Path(name).expanduser()).exists()]
    with contextlib.suppress(OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return any((netrc.netrc(file).authenticators(host()) or ("", "", ""))[2] for file in files[:1])
    return False

"""What W&B's server has, read through its public API. Only this file and the W&B process import `wandb`."""

import contextlib
import os
import re
import tempfile
from collections.abc import Generator
from typing import Any

from sae.core.text import nearest
from sae.core.types import UserError
from sae.wandb import settings

CONNECT_SECONDS = 6  # to wait for the server's first answer
ANSWER_SECONDS = 30  # to wait for every later answer


class Server:
    """One project of one entity at the server that wandb is configured for."""

    def __init__(self, entity: str, project: str, host: str, api: Any) -> None:
        self.entity, self.project, self.host, self.api = entity, project, host, api

    @property
    def path(self) -> str:
        """ENTITY/PROJECT."""
        return f"{self.entity}/{self.project}"

    def runs(self, filters: dict[str, Any], there: bool = False) -> list[Any]:
        """The project's runs that match the filters, with everything but their histories.

        A project that does not exist has no runs; with `there`, it raises UserError.
        """
        with self._told():
            self.api.flush()  # it caches earlier answers
            try:
                return list(self.api.runs(self.path, filters=filters, lazy=False))
            except ValueError as error:
                if "find project" not in str(error):
                    raise
                if there:
                    raise UserError(f"{self.path}: no such project at {self.host}, or not one of yours") from None
                return []

    @contextlib.contextmanager
    def _told(self) -> Generator[None]:
        """Turns whatever wandb raises into a UserError."""
        try:
            yield
        except (UserError, KeyboardInterrupt):
            raise
        except Exception as error:  # wandb's own, requests' or asyncio's
            raise UserError(f"W&B at {self.host}, {self.path}: {one_line(error)}") from None

    def history(self, run: Any) -> list[dict[str, Any]]:
        """Every row of a run's history, in order."""
        with self._told():
            return list(run.scan_history(page_size=max(1_000, run.lastHistoryStep + 1)))


def connect(entity: str | None, project: str, write: bool = False) -> Server:
    """Connect to the server as this user; with `write`, also check that the entity is one of theirs.

    Raises UserError, within seconds, where the server does not answer, does not know the user, or refuses the entity.
    """
    host = settings.host()
    if not settings.has_key():
        raise UserError(f"not logged in at {host}: no API key is configured; set WANDB_API_KEY, or run `wandb login`")
    os.environ["WANDB_SILENT"] = "true"
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its end waits for the server, however dead
    own = os.path.join(tempfile.gettempdir(), f"wandb-{os.getuid()}")
    if not settings.has_home():
        os.environ["HOME"] = own  # wandb wants one
    if not os.access(os.path.expanduser("~"), os.W_OK):
        os.environ.setdefault("WANDB_CACHE_DIR", own)  # where wandb has no log file, it logs to the terminal
    import wandb

    wandb.setup(wandb.Settings(x_graphql_timeout_seconds=ANSWER_SECONDS, x_graphql_retry_max=2))
    try:
        wandb.Api(timeout=CONNECT_SECONDS)
        api = wandb.Api(timeout=ANSWER_SECONDS)
        ours = [api.viewer.entity, api.viewer.username, *api.viewer.teams]
    except Exception as error:
        text = one_line(error)
        if "in time" in text or "timed out" in text:
            text = f"no answer within {CONNECT_SECONDS} s; is it up, and is there a network?"
        raise UserError(f"W&B at {host}: {text}") from None
    entity, ours = entity or ours[0], list(dict.fromkeys(filter(None, ours)))
    if write and entity not in ours:
        raise UserError(f"entity: got {entity!r}; {nearest(str(entity), ours)}, as W&B at {host} knows you")
    if not entity:
        raise UserError(f"W&B at {host} names no default entity for this key; give --entity")
    return Server(entity, project, host, api)


def one_line(error: Exception) -> str:
    """An error of wandb's as the end of a line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"^Failed to verify credentials with \S+: ", "", text)[:300]

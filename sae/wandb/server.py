"""What W&B's server has, through its public API. Beside the W&B process, the only file that imports `wandb`."""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

from sae.wandb import client
from sae.core.text import nearest
from sae.core.types import UserError

CONNECT_SECONDS = 6  # for the server's first answer
ANSWER_SECONDS = 30  # for every later one


class Server:
    """One project of one entity at the server that wandb is configured for."""

    def __init__(self, entity: str | None, project: str, host: str, api: Any):
        self.entity, self.project, self.host, self.api = entity, project, host, api

    @property
    def path(self) -> str:
        """ENTITY/PROJECT."""
        return f"{self.entity}/{self.project}"

    def runs(self, filters: dict[str, Any], there: bool = False) -> list[Any]:
        """The project's runs, with all that is known of them but their histories.

        Where there is no project, none; or, if it is to be `there`, raises UserError.
        """
        with self._told():
            self.api.flush()  # it keeps what it was told before
            try:
                return list(self.api.runs(self.path, filters=filters, lazy=False))
            except ValueError as error:
                if "find project" not in str(error):
                    raise
                if there:
                    raise UserError(f"{self.path}: no such project at {self.host}, or not one of yours") from None
                return []

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Raises UserError for what wandb raises."""
        try:
            yield
        except (UserError, KeyboardInterrupt):
            raise
        except Exception as error:  # its own, requests', asyncio's
            raise UserError(f"W&B at {self.host}, {self.path}: {one_line(error)}") from None

    def history(self, run: Any) -> list[dict[str, Any]]:
        """Every row of a run's history, in order."""
        with self._told():
            return list(run.scan_history(page_size=max(1_000, run.lastHistoryStep + 1)))


def connect(entity: str | None, project: str, write: bool = False) -> Server:
    """Ask the server whether it knows us, and, to `write`, whether an entity is one of ours.

    Raises UserError, in seconds, where it does not, or is not there.
    """
    host = client.host()
    if not client.has_key():
        raise UserError(f"not logged in at {host}: no API key is configured; set WANDB_API_KEY, or run `wandb login`")
    os.environ["WANDB_SILENT"] = "true"
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
    """An error of wandb's, as the end of a line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"^Failed to verify credentials with \S+: ", "", text)[:300]

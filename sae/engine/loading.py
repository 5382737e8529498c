"""The data of a plan, loaded once for all cohorts that share a source."""

from collections.abc import Sequence

from sae.core.definitions import kind
from sae.core.types import UserError
from sae.data import feed as feeds
from sae.data.source import Examples
from sae.engine.cohort import Cohort


def load_data(plan: Sequence[Cohort]) -> dict:
    """{source: its data} for every source of a plan. Raises UserError, also for what a user's own source does wrong."""
    data = {}
    for cohort in plan:
        source = cohort.example.data
        if source not in data:
            try:
                data[source] = source.load()
            except (UserError, MemoryError, KeyboardInterrupt):
                raise
            except Exception as error:
                raise UserError(f"{kind(source)}: load() raised {type(error).__name__}: {error}") from error
            if not isinstance(data[source], Examples):
                got = type(data[source]).__name__
                raise UserError(
                    f"{kind(source)}: load() gave a {got}, allowed: what sae.rows(...) gives, or sae.Examples"
                )
        feeds.check(data[source], cohort.example.batch_size)
    return data

"""What a run's report was made from: one that is half written, damaged or older than the results is made again."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sae.core.files import DamagedError, read_checked, sha256, write_checked
from sae.report import FEATURES, NAME
from sae.store.results import Results
from sae.store.storage import ANALYSIS, DEFINITION, OTHERS, state_of
from sae.study import claims

MADE = "made.json"  # in the folder of figures beside the page


def note(results: Results) -> None:
    """Note that the report in a run's folder is written as a whole, and what it shows."""
    figures = (results.folder / NAME).with_suffix("")
    drawn = [path for path in figures.iterdir() if path.is_file() and path.name != MADE]
    pages = [path for name in (NAME, FEATURES) if (path := results.folder / name).is_file()]
    names = [str(path.relative_to(results.folder)) for path in [*pages, *sorted(drawn)]]
    write_checked(figures / MADE, {"from": _sources(results), "files": _checksums(results.folder, names)})


def current(results: Results) -> bool:
    """Whether the report in a run's folder is whole, and shows what the folder holds now."""
    try:
        made = read_checked((results.folder / NAME).with_suffix("") / MADE)
        return made == {"from": _sources(results), "files": _checksums(results.folder, made["files"])}
    except (OSError, DamagedError, TypeError, KeyError):
        return False


def _sources(results: Results) -> dict[str, Any]:
    looked_at = (DEFINITION, ANALYSIS, claims.NAME, f"{OTHERS}/{DEFINITION}")
    names = [name for name in looked_at if (results.folder / name).exists()]
    return {"cohorts": state_of(results.cohorts), **_checksums(results.folder, names)}


def _checksums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    return {name: sha256(folder / name) for name in names}

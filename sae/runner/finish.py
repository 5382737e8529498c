"""The end of a run, when all of its members are trained."""

from collections.abc import Callable

from sae import report
from sae.analysis import ask
from sae.report.notebook import Results
from sae.runner.options import RunOptions
from sae.runner.signals import stopping_at_once
from sae.store import storage
from sae.study import claims
from sae.study.sweep import Sweep


def finish(sweep: Sweep, results: Results, options: RunOptions, say: Callable[[str], None]) -> None:
    """Ask the measures, decide the claims and write the report, where that is not done yet.

    A run may be finished again: the sweep's measures, claims and figures may be others than when it was trained.
    """
    with stopping_at_once():
        ask.settle(sweep.measures, results, say)
    claims.settle(sweep.claims, results)
    if options.report:
        _write_report(sweep, results, say)


def _write_report(sweep: Sweep, results: Results, say: Callable[[str], None]) -> None:
    """Write the report, unless it is newer than what it shows. A report that fails does not fail the run."""
    page = results.folder / report.NAME
    names = (storage.MEMBERS, storage.DEFINITION, storage.ANALYSIS, claims.NAME)
    sources = [path for name in names if (path := results.folder / name).exists()]
    if page.exists() and page.stat().st_mtime >= max(path.stat().st_mtime for path in sources):
        return
    try:
        from sae.report import build  # plotly and matplotlib take a second to import, which only a report needs

        build.build([results], sweep=sweep, say=say)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        say(f"no report: {reason}; the results are whole, and `sae report {results.folder}` tries again")

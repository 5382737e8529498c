"""The end of a run, when all of its members are trained."""

import shutil
from collections.abc import Callable

from sae.analysis import ask
from sae.report import made
from sae.report.notebook import Results
from sae.runner import evaluation
from sae.runner.options import RunOptions
from sae.runner.signals import stopping_at_once
from sae.store import folder as folders
from sae.store import storage
from sae.study import claims
from sae.study.sweep import Sweep


def finish(sweep: Sweep, results: Results, options: RunOptions, say: Callable[[str], None]) -> None:
    """Join the tables, ask the measures, decide the claims and write the report, where that is not done yet.

    Whatever is derived is compared with what it is derived from: a process may have been killed before any of it, and
    files may be damaged or lost. A run may be finished again: the sweep's measures, claims and figures may be others
    than when it was trained.
    """
    with folders.held(results.folder) as writable:
        if writable:
            storage.write_joined(results.folder, results.cohorts)
            for files in results.cohorts:
                shutil.rmtree(files.path / storage.CHECKPOINTS, ignore_errors=True)
        with stopping_at_once():
            ask.settle(sweep.measures, results, say)
            if writable:
                evaluation.settle(sweep, results, say)
        claims.settle(sweep.claims, results)
        if options.report and writable and not made.current(results):
            _write_report(sweep, results, say)


def _write_report(sweep: Sweep, results: Results, say: Callable[[str], None]) -> None:
    """Write the report. A report that fails does not fail the run."""
    try:
        from sae.report import build  # plotly and matplotlib take a second to import, which only a report needs

        build.build([results], sweep=sweep, say=say)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        say(f"no report: {reason}; the results are whole, and `sae report {results.folder}` tries again")

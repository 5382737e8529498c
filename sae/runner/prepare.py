"""The folder of a run, and its sweep cut into cohorts, before anything is trained."""

from collections.abc import Callable, Sequence
from pathlib import Path

from sae.core.types import UserError
from sae.engine import cost
from sae.engine import plan as plans
from sae.engine.loading import Loaded, load_data
from sae.engine.rehearsal import rehearse
from sae.report.notebook import Results
from sae.runner import evaluation
from sae.runner.longer import lengthen
from sae.runner.options import RunOptions
from sae.store import folder as folders
from sae.store import results
from sae.store.storage import DEFINITION, STATE, CohortFiles, DamagedError
from sae.study.sweep import Sweep


def prepare(
    sweep: Sweep,
    options: RunOptions,
    question: str,
    command: Sequence[str],
    say: Callable[[str], None],
    loaded: Loaded | None = None,
) -> Results:
    """Make a run's folder and cut its sweep into cohorts, or find that done; train nothing.

    `loaded` gets the data that had to be loaded. Raises UserError for bad input, and where the folder holds something
    else or was trained on other data.
    """
    folder = options.folder(sweep.name)
    if not options.fresh:
        _mend(folder, say)
        lengthen(folder, sweep, command, say)
    older = None if options.fresh else folders.older_run(folder, sweep)
    if older is not None:
        _check_data(older, sweep, say, {} if loaded is None else loaded)
        folders.describe_again(older, sweep)
        return Results(folder)
    evaluation.check(sweep.others)
    plan = plans.make(sweep, options.least_cohorts)
    data = load_data(plan, loaded)  # before anything is written, so that bad data leaves no folder
    rehearse(plan, data)
    plan = cost.fit(plan, data)
    if options.fresh and (aside := folders.move_aside(folder)):
        say(f"moved the older run aside: {aside}")
    folders.make(folder)
    with folders.lock(folder, wait=True):  # other parts may start at this moment
        if folders.older_run(folder, sweep) is None:
            fingerprints = folders.fingerprints(sweep, data)
            folders.describe(folder, sweep, [cohort.members for cohort in plan], fingerprints, question, command)
    return Results(folder)


def _mend(folder: Path, say: Callable[[str], None]) -> None:
    """Have a cohort trained again where what says how far it is cannot be read. Raises DamagedError."""
    if not (folder / DEFINITION).exists():
        return
    try:
        older = results.Results(folder)
    except DamagedError as error:
        raise DamagedError(f"{error}; or add --fresh to move the run aside") from None
    for files in older.cohorts:
        try:
            _ = files.state
        except DamagedError as error:
            if not (files.path / STATE).is_file():
                raise  # it is not ours
            with folders.lock(files.path):
                say(f"{error}; the cohort is trained again")
                files.forget()


def _check_data(older: results.Results, sweep: Sweep, say: Callable[[str], None], loaded: Loaded) -> None:
    """Check that a run's data are those that it began with; a finished run may have lost them. Raises UserError."""
    for entry in older.definition.get("data", []):
        member = entry["member"]
        try:
            older.check_data(member, sweep.members[member].data, loaded)
        except results.ChangedError:
            raise
        except UserError as error:
            if not older.finished:
                raise
            say(f"{older.folder}: whether its data are still the same cannot be seen: {error}")


def damaged(cohorts: Sequence[CohortFiles], say: Callable[[str], None] = lambda line: None) -> set[int]:
    """The cohorts whose finished files are not what was written. There is no other copy: they are trained again."""
    found = set()
    for files in cohorts:
        try:
            files.check()
        except DamagedError as error:
            say(str(error))
            found.add(files.index)
    return found

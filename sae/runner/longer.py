"""A finished run that is to train for longer: it goes on from its last state, where that is a run of the new length."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sae.core.files import write_checked
from sae.core.types import UserError
from sae.data.feed import BLOCK_STEPS, block_steps
from sae.engine.loading import load
from sae.experiment import Experiment, tied_to_length, window_follows
from sae.store import folder as folders
from sae.store.results import Results
from sae.store.storage import ANALYSIS, CHECKPOINTS, DEFINITION, LAST_STATE, CohortFiles
from sae.study.sweep import Sweep


def lengthen(folder: Path, sweep: Sweep, command: Sequence[str], say: Callable[[str], None]) -> None:
    """Make a finished run the run of this sweep, where the sweep differs from it in a larger `n_steps` alone.

    Its cohorts then count as interrupted after their last step. Another folder is left as it is. Raises UserError where
    the run cannot go on.
    """
    if not (folder / DEFINITION).exists():
        return
    older, members = Results(folder), folders.plain(sweep)
    if not _only_longer(older.definition["members"], members) and not _behind(older):
        return
    with folders.lock(folder, wait=True):  # other parts may start at this moment
        older = Results(folder)
        if _only_longer(older.definition["members"], members):
            _check(older, sweep)
            made = {"members": members, "command": list(command), "file_sha256": folders.file_sha256(command)}
            write_checked(folder / DEFINITION, older.definition | made)
        _reopen(Results(folder), say)


def _only_longer(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> bool:
    pairs = list(zip(before, now, strict=False))
    if len(before) != len(now) or not all("n_steps" in old for old in before):  # a run pulled from W&B may lack some
        return False
    differing = {name for old, new in pairs for name in new if name in old and repr(old[name]) != repr(new[name])}
    longer = [new["n_steps"] > old["n_steps"] for old, new in pairs]
    shorter = any(new["n_steps"] < old["n_steps"] for old, new in pairs)
    if not any(longer) or shorter or differing - {"n_steps", "dead_after"}:
        return False
    for i, (old, new) in enumerate(pairs):
        if old.get("dead_after") != new["dead_after"] and window_follows(old) and window_follows(new):
            raise UserError(
                f"dead_after of member {i} follows from n_steps, {old['dead_after']} in the folder and "
                f"{new['dead_after']} in the sweep; add --dead-after {old['dead_after']} to go on, or use --out DIR"
            )
    return "dead_after" not in differing


def _check(older: Results, sweep: Sweep) -> None:
    def refuse(index: int, why: str) -> None:
        raise UserError(f"{older.folder}: cohort {index} cannot be trained for longer: {why}; use --out DIR or --fresh")

    for entry in older.definition.get("data", []):
        older.check_data(entry["member"], sweep.members[entry["member"]].data, {})
    for cohort, members in zip(older.cohorts, older.definition["cohorts"], strict=True):
        before = older.definition["members"][members[0]]["n_steps"]
        lengths = {sweep.members[i].n_steps for i in members}
        if lengths == {before}:
            continue
        if len(lengths) > 1:
            refuse(cohort.index, f"its members would have different n_steps, {sorted(lengths)}")
        if not cohort.finished:
            refuse(cohort.index, f"it is not finished; finish it first, with --n-steps {before}")
        for i in members:
            if why := tied_to_length(sweep.members[i], before):
                refuse(cohort.index, why)
        if _sampled_otherwise(sweep.members[members[0]], before):
            refuse(cohort.index, f"under {20 * BLOCK_STEPS:,} steps, n_steps affects how sampled examples are rounded")
        if not (cohort.path / LAST_STATE).exists():
            refuse(cohort.index, "its last state was not kept; a run keeps it with --keep-state")


def _sampled_otherwise(experiment: Experiment, n_steps: int) -> bool:
    """Whether examples are sampled in other blocks than in a run of `n_steps`, and so differ by rounding."""
    if n_steps >= 20 * BLOCK_STEPS:
        return False
    data, lengths = load(experiment.data), (n_steps, experiment.n_steps)
    return data.n_train is None and len({block_steps(data.d_in, experiment.batch_size, n) for n in lengths}) > 1


def _behind(results: Results) -> list[tuple[CohortFiles, int, int]]:
    """The finished cohorts that are to have more steps, with the steps that they were trained for and are to have."""
    found = []
    for cohort, members in zip(results.cohorts, results.definition["cohorts"], strict=True):
        state, n_steps = cohort.state, results.definition["members"][members[0]].get("n_steps")
        if cohort.finished and n_steps and state.get("n_steps", n_steps) < n_steps:
            found.append((cohort, state["n_steps"], n_steps))
    return found


def _reopen(results: Results, say: Callable[[str], None]) -> None:
    """Let every finished cohort that is to have more steps go on. It does nothing the second time."""
    for cohort, trained, n_steps in _behind(results):
        (results.folder / ANALYSIS).unlink(missing_ok=True)  # it was measured of the shorter run
        if (cohort.path / LAST_STATE).exists():
            shutil.rmtree(cohort.path / CHECKPOINTS, ignore_errors=True)
            (cohort.path / LAST_STATE).rename(cohort.path / CHECKPOINTS)
        cohort.mark(status="interrupted", n_steps=n_steps, checksums={})
        say(f"cohort {cohort.index}: trained for {trained} steps, goes on to {n_steps}")

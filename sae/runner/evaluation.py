"""Autoencoders that are there already, ours and other libraries', as the members of a run that trains nothing.

Each is a member of a cohort of its own: the folder has the tables and weights of a run, so that whatever reads a run
(`sae report`, `sae.load`, notebooks) reads an evaluation.
"""

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from sae import interop
from sae.core.console import say
from sae.core.definitions import flatten, kind
from sae.core.files import DamagedError, expanded, located, sha256, write_checked
from sae.core.metrics import Moments, Sums
from sae.core.model import Sae, input_normalization, on_examples
from sae.core.normalization import Normalization
from sae.core.text import count
from sae.core.types import UserError
from sae.data.feed import Feed
from sae.data.source import Examples, Source, parts_of
from sae.engine import cohort as cohorts
from sae.engine.loading import fingerprint, load
from sae.engine.loop import measured
from sae.engine.placement import Placement
from sae.interop.hub import load_pretrained
from sae.interop.plain import Plain, checked, plain_of, sae_of
from sae.interop.plain import on_examples as on_examples_of
from sae.methods.tasks import Autoencoder, Crosscoder, Transcoder
from sae.report.notebook import Results
from sae.store import folder as folders
from sae.store import storage
from sae.store.storage import DEFINITION, CohortFiles
from sae.store.tables import plain as in_table
from sae.study import figures
from sae.study.sweep import Sweep

Flat = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Named:
    """An autoencoder that takes raw rows, by name, and what is known of its making: a flattened experiment."""

    name: str
    sae: Sae
    format: str  # the library whose folder it is
    known: Flat
    own: Mapping[str, str]  # files of a user's own classes in `known`


def evaluate(
    paths: Sequence[str | Path],
    source: Source,
    out: str | Path,
    command: Sequence[str] = (),
    data_seed: int = 0,
    more: Mapping[str, Any] | None = None,
) -> Results:
    """Evaluate autoencoders on the held-out examples of a source -> the results, in a run's folder.

    A path is a folder of SAELens, dictionary_learning or sparsify, a place on the hub ("hf:OWNER/NAME/FOLDER"), or the
    folder of a run of this project, which gives all its members. All see the same examples: raw rows in, and errors
    measured on rows that are normalized as the source says. `data_seed` chooses the examples of a source that draws
    them; `more` are further entries of definition.json. An older run in `out` is moved aside. Raises UserError for what
    cannot be read, and for widths that do not fit.
    """
    data = load(source)
    found = [one for path in paths for one in _opened(path if isinstance(path, str) else str(path))]
    if not found:
        raise UserError("evaluate: got no autoencoder, allowed: one or more folders")
    fitted = [_fitted(one, data) for one in found]  # all are checked before anything is written
    folder = expanded(out)
    if aside := folders.move_aside(folder):
        say(f"moved the older run aside, to {aside}")
    folders.make(folder)
    names = _unique([one.name for one in found])
    of_data = json.loads(json.dumps({"data": kind(source), **flatten(source, "data.")}, default=str))
    of_data |= {"data_seed": data_seed, "n_eval": None}
    members = [
        {"autoencoder": name, "name": name, "format": one.format, **_shape(sae, data, one.known), **of_data}
        for name, one, sae in zip(names, found, fitted, strict=True)
    ]
    shown: list[figures.Figure] = [figures.Frontier(along=("autoencoder",), group=("autoencoder",))]  # a point of each
    shown += [f for f in figures.default_figures(members, ()) if not isinstance(f, figures.Curves)]  # no training
    definition = {
        "name": folder.resolve().name,
        "question": f"{count(len(found), 'autoencoder')}, evaluated on the same held-out examples",
        "command": list(command),
        "token": "evaluated",
        "cohorts": [[i] for i in range(len(found))],
        "members": members,
        "own": {name: file for one in found for name, file in one.own.items()},
        "data": [{"member": 0, "fingerprint": fingerprint(source, {source: data})}],
        "evaluated": True,
        "arms": [],
        "figures": [figures.plain(figure) for figure in shown],
        **(more or {}),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    with folders.lock(folder):
        write_checked(folder / DEFINITION, definition)
        for i, sae in enumerate(fitted):
            _write(CohortFiles(folder, i), i, sae, members[i], data, data_seed)
        results = Results(folder)
        storage.write_joined(folder, results.cohorts)
    return results


def check(paths: Sequence[str]) -> None:
    """Open autoencoders, so that what is wrong with one is said before a run begins. Raises UserError."""
    for path in paths:
        for _ in _opened(path):
            pass


def settle(sweep: Sweep, results: Results, say: Callable[[str], object]) -> None:
    """Evaluate a sweep's `others` where that is not done yet, in the folder `others` of its run.

    They are evaluated anew where a file of theirs, or the data, differ. What cannot be evaluated costs only itself:
    `say` gets a line with the reason.
    """
    folder, first = results.folder / storage.OTHERS, sweep.members[0]
    if not sweep.others:
        return
    try:
        state = [[text, *(_files(text))] for text in sweep.others]
        data = results.definition.get("data")
        if (folder / DEFINITION).is_file():
            with contextlib.suppress(DamagedError):
                older = Results(folder)
                if len(results.others) and older.definition.get("others") == {"files": state, "data": data}:
                    return
            shutil.rmtree(folder)
        evaluate(
            sweep.others, first.data, folder, data_seed=first.data_seed, more={"others": {"files": state, "data": data}}
        )
    except (UserError, OSError) as error:
        say(f"{results.folder}: the others have no numbers: {' '.join(str(error).split())}")


def _files(text: str) -> list[str]:
    """What tells an autoencoder's folder from an older one: the checksums of its settings and weights."""
    path = located(text)
    known = [DEFINITION, *(n for module in interop.FORMATS.values() for n in (module.SETTINGS, module.WEIGHTS))]
    return [sha256(path / name) for name in dict.fromkeys(known) if (path / name).is_file()]


def numbers_of(sae: Sae, data: Examples, data_seed: int = 0) -> tuple[dict[str, float], np.ndarray]:
    """({"eval/l0": ..., ...}, firing rates [d_sae]) of an autoencoder of normalized examples on held-out ones."""
    placement, stacked = Placement(lanes=1), cohorts.stack([sae])
    sums = jax.tree.map(lambda a: a[None], Sums.zero(sae.d_out, sae.b_enc[...].shape[0]))
    pivot = jnp.asarray(data.mean[-sae.d_out :])
    with contextlib.closing(Feed(data, data_seed, 1, 1, resident_bytes=0)) as feed:
        numbers, rates = measured(stacked, (sums, Moments.zero(sae.d_out)), pivot, feed, placement, 1)
    return {name: value[0].item() for name, value in numbers.items()}, rates[0]


def _opened(written: str) -> Iterator[Named]:
    """The autoencoders at a path, named by it as it is written. One of a definition file is beside it first."""
    text = str(written)
    if text.startswith("hf:"):
        yield Named(text, load_pretrained(text), "hub", {}, {})
        return
    yield from _in_folder(text, located(written))


def _in_folder(text: str, path: Path) -> Iterator[Named]:
    """The autoencoders in a folder, by this name."""
    if not (path / DEFINITION).is_file():
        inner = [one for one in sorted(path.iterdir()) if one.is_dir() and _holds_one(one)] if path.is_dir() else []
        if inner and not _holds_one(path):  # what `sae export` writes of several members
            for one in inner:
                yield from _in_folder(f"{text.rstrip('/')}/{one.name}", one)
            return
        format = interop.detect(path)
        yield Named(text, interop.load(path, format), format, {}, {})
        return
    results = Results(path)
    members = results.members
    for number in members["member"][members["status"] == "finished"]:
        flat = results.definition["members"][int(number)]
        name = f"{text}/{number}" if len(members) > 1 else text
        yield Named(name, results.sae(int(number)), "sparsity_lab", flat, results.definition.get("own") or {})


def _holds_one(path: Path) -> bool:
    return any(module.is_one(path) for module in interop.FORMATS.values())


def _fitted(one: Named, data: Examples) -> Sae:
    """The autoencoder as one of the data's normalized examples. Raises UserError where widths do not fit."""
    try:
        sae, width = one.sae, data.d_in
        same = input_normalization(sae)
        if sae.normalization is not None and same is not None and _equal(sae.normalization, data.normalization):
            return on_examples(sae)
        form = checked(plain_of(sae))
        transcodes = form.d_in != width
        if (form.d_in + form.d_out if transcodes else form.d_out) != width:
            widths = f"{form.d_in} and {form.d_out}" if form.d_in != form.d_out else f"{form.d_in}"
            raise UserError(f"got an autoencoder of width {widths}, allowed: one that fits rows of width {width}")
        return sae_of(_of_examples(form, data.normalization))
    except UserError as error:
        raise UserError(f"{one.name}: {error}") from None


def _of_examples(form: Plain, normalization: Normalization | None) -> Plain:
    return form if normalization is None else on_examples_of(form, normalization)


def _equal(one: Normalization, other: Normalization | None) -> bool:
    if other is None or one.shift.shape != other.shift.shape:
        return False
    return np.array_equal(one.shift, other.shift) and np.array_equal(one.scale, other.scale)


def _shape(sae: Sae, data: Examples, known: Flat) -> Flat:
    """What the weights say of the experiment, which goes before what is known of it."""
    parts = parts_of(data)
    task = Transcoder(skip=sae.W_skip is not None) if sae.d_in != data.d_in else Autoencoder()
    task = Crosscoder() if sae.d_in == data.d_in and len(parts) > 1 else task
    activation = {"activation": kind(sae.activation), **flatten(sae.activation, "activation.")}
    made = {"d_sae": sae.b_enc[...].shape[0], "task": kind(task), **flatten(task, "task."), **activation}
    numbers = {name: float(value) if hasattr(value, "shape") else value for name, value in made.items()}
    same = known.get("activation") == activation["activation"]  # as it was written, where it was not converted
    numbers |= {name: value for name, value in known.items() if same and name.startswith("activation.")}
    return {**numbers, "apply_b_dec_to_input": sae.apply_b_dec_to_input}


def _write(files: CohortFiles, member: int, sae: Sae, flat: Flat, data: Examples, data_seed: int) -> None:
    """Evaluate an autoencoder and write the folder of its cohort."""
    begun = time.monotonic()
    numbers, rates = numbers_of(sae, data, data_seed)
    status = "finished" if np.isfinite(numbers["eval/mse"]) else "diverged"
    files.mark(members=[member], status="running", step=0)
    files.write_history(pd.DataFrame({"member": [member], "step": [0], "examples": [0]}))
    files.write_weights([member], cohorts.stack([sae]), rates[None], data.normalization)
    own = {"member": member, "cohort": files.index, "status": status}
    table = pd.DataFrame([in_table(flat)], dtype=object)
    row = storage.join_members([pd.concat([table, pd.DataFrame([{**own, **numbers}])], axis=1)])
    files.finish(row, seconds=round(time.monotonic() - begun, 2))


def _unique(names: Sequence[str]) -> list[str]:
    """The names, with a number where there are several of one."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}~{seen[name]}")
    return found

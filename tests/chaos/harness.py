"""An assault on a run's folder: kills, full disks and flipped bytes, in one process, so that hundreds take minutes.

A kill is not done but copied. An audit hook sees every file operation below the folder before it happens, and copies
the folder as it is then: what a `kill -9` at that moment would leave, as the system keeps what was written. Each copy
is then put in the folder's place, and the same command runs again. What Orbax writes from C++ is not seen, so a copy
may hold any part of it. Kills of real processes are in tests/test_resume.py.
"""

import contextlib
import errno
import io
import json
import os
import random
import shutil
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

import sae
from sae.cli.main import main
from sae.core.types import UserError
from sae.study import claims

DEFINITION = '''
"""Do kills and full disks cost anything?"""
import dataclasses

import numpy as np
import pandas as pd

from sae import AtMost, Claim, Digits, ElasticNet, Experiment, Frontier, Resample, Sweep, grid


@dataclasses.dataclass(frozen=True)
class Norm:
    """The norm of each decoder."""

    columns = {"analysis/norm": "Frobenius norm of the decoder"}

    def __call__(self, results):
        numbers = [int(member) for member in results.members.member]
        norms = [float(np.linalg.norm(results.sae(member).W_dec[...])) for member in numbers]
        return pd.DataFrame({"analysis/norm": norms}, index=pd.Index(numbers, name="member"))


class Largest:
    reads = ("eval/fvu",)

    def __call__(self, results):
        return {"all": pd.Series([float(results.members["eval/fvu"].max())])}


base = Experiment(
    name="chaos", data=Digits(), penalty=ElasticNet(l1=0.1), batch_size=64, n_steps=40, d_sae=16, dead_after=500,
    revival=Resample(every=15, times=1, n_candidates=64),
)
sweep = Sweep(
    name="chaos", members=grid(base, {"d_sae": (16, 24), "penalty.l1": (0.1, 0.3)}),
    measures=[Norm()], claims=[Claim("the error is small", AtMost(Largest(), 0.99))],
    figures=[Frontier(along=("penalty.l1",))],
)
'''
FLAGS = ["--wandb", "off", "--checkpoint-minutes", "0", "--chunk-steps", "20", "--keep-every", "25", "--keep-state"]
LEFTOVERS = ("checkpoints", "*.tmp", "*.orbax-checkpoint-tmp*")

_watching: "Watch | None" = None


class Watch:
    """Calls `see(n)` before the n-th file operation below a folder, from whatever thread."""

    def __init__(self, folder: Path, see: Callable[[int], None]) -> None:
        self.folder, self.see, self.n = str(folder), see, 0
        self._inside, self._one = threading.local(), threading.Lock()

    def __enter__(self) -> "Watch":
        global _watching
        _watching = self
        return self

    def __exit__(self, *_: object) -> None:
        global _watching
        _watching = None

    def operation(self, path: str) -> None:
        """An operation on a path is about to be done."""
        if not path.startswith(self.folder) or getattr(self._inside, "it", False):
            return
        with self._one:
            self._inside.it = True
            try:
                self.see(self.n)
            finally:
                self.n += 1
                self._inside.it = False


def _hook(event: str, args: tuple) -> None:
    if _watching is None or event not in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"):
        return
    path, fd = args[0], -1
    if event == "open":
        if not isinstance(args[2], int) or not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
    elif event == "os.mkdir":
        fd = args[2]
    elif event in ("os.remove", "os.rmdir"):
        fd = args[1]
    if not isinstance(path, str | bytes | os.PathLike):
        return
    path = os.fsdecode(path)
    if isinstance(fd, int) and fd >= 0:
        path = os.path.join(os.readlink(f"/proc/self/fd/{fd}"), path)
    _watching.operation(os.path.abspath(path))


sys.addaudithook(_hook)


class Said:
    """How a command ended: its exit code, None for a traceback, and what it said."""

    def __init__(self, argv: list[str]) -> None:
        out = io.StringIO()
        with contextlib.redirect_stderr(out), contextlib.redirect_stdout(out):
            try:
                self.code: int | None = main(argv)
            except BaseException:
                self.code = None
                traceback.print_exc()
        self.text = out.getvalue()

    @property
    def one_line(self) -> bool:
        """Whether it failed as it should: with exit code 1, a last line of its own, and no traceback."""
        return self.code == 1 and "Traceback" not in self.text and self.text.splitlines()[-1].startswith("sae: ")

    @property
    def end(self) -> str:
        """How it ended, in a line."""
        lines = self.text.splitlines() or [""]
        return f"code {self.code}, {len(lines)} lines, the last {lines[-1][:200]!r}"


class Place:
    """A definition file and the folder of its run, which is whole in `reference`."""

    def __init__(self, folder: Path) -> None:
        self.file, self.run, self.reference = folder / "chaos.py", folder / "run", folder / "reference"
        self.file.write_text(DEFINITION)
        said = self.again()
        assert said.code == 0, said.text
        self.run.rename(self.reference)

    def again(self, *flags: str) -> Said:
        """The same command."""
        return Said(["run", str(self.file), "--out", str(self.run), *FLAGS, *flags])

    def put(self, state: Path | None) -> None:
        """Put a copy of a state of the folder in its place."""
        shutil.rmtree(self.run, ignore_errors=True)
        if state is not None:
            shutil.copytree(state, self.run)

    def faults(self) -> list[str]:
        """What is not as in the run that nobody disturbed, when the command has said that it is finished."""
        found = [f"left over: {path.name}" for name in LEFTOVERS for path in self.run.rglob(name)]
        for name in ("members", "history", "analysis"):
            with _noted(found, name):
                one, other = (pd.read_parquet(folder / f"{name}.parquet") for folder in (self.run, self.reference))
                pd.testing.assert_frame_equal(one, other, check_exact=True)
        with _noted(found, "results"):
            found += differences(sae.load(self.run), sae.load(self.reference))
        with _noted(found, "claims"):
            one, other = (json.loads((folder / "claims.json").read_text()) for folder in (self.run, self.reference))
            if one != other:
                found.append("claims.json differs")
        drawn = lambda folder: sorted(path.name for path in (folder / "report").iterdir())
        with _noted(found, "report"):
            if not (self.run / "report.html").stat().st_size or drawn(self.run) != drawn(self.reference):
                found.append("the report is not whole")
        return found


def differences(results: sae.Results, reference: sae.Results) -> list[str]:
    """Where the results of two runs differ, in tables or in a bit of a weight. Raises UserError for what is damaged."""
    found = []
    for name in ("members", "history"):
        try:
            pd.testing.assert_frame_equal(getattr(results, name), getattr(reference, name), check_exact=True)
        except AssertionError:
            found.append(f"{name} differ")
    if results.members.attrs != reference.members.attrs:
        found.append("meanings differ")
    if results.status != reference.status:
        found.append(f"status {results.status}")
    for member in reference.members.member:
        if results.steps(member) != reference.steps(member):
            found.append(f"steps of member {member} differ")
        for step in reference.steps(member):
            one, other = results.sae(member, step), reference.sae(member, step)
            for parameter in ("W_enc", "b_enc", "W_dec", "b_dec"):
                if not np.array_equal(getattr(one, parameter)[...], getattr(other, parameter)[...]):
                    found.append(f"{parameter} of member {member} at {step} differs")
    return found


@contextlib.contextmanager
def _noted(found: list[str], what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        found.append(f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:150]}")


class Tally:
    """Cases by kind: how many were tried, and those that failed."""

    def __init__(self) -> None:
        self.tried: dict[str, int] = {}
        self.failed: dict[str, list[str]] = {}

    def case(self, kind: str, name: str, faults: list[str]) -> None:
        """Note a case."""
        self.tried[kind] = self.tried.get(kind, 0) + 1
        if faults:
            self.failed.setdefault(kind, []).append(f"{name}: {'; '.join(faults)}")

    def __str__(self) -> str:
        lines = []
        for kind, n in self.tried.items():
            failed = self.failed.get(kind, [])
            lines += [f"{kind}: {n - len(failed)} of {n} survived", *(f"    {case}" for case in failed)]
        return "\n".join(lines)


def kills(place: Place, tally: Tally, most: int | None = None) -> None:
    """Kill before each file operation of a run, or before `most` of them, spread evenly; then run it again."""
    states = place.run.parent / "states"
    shutil.rmtree(states, ignore_errors=True)
    place.put(None)
    with Watch(place.run, lambda n: _copy(place.run, states / str(n))) as watch:
        said = place.again()
    assert said.code == 0, said.text
    for n in sorted(set(np.linspace(0, watch.n - 1, most or watch.n).astype(int).tolist())):
        place.put(states / str(n) if (states / str(n)).exists() else None)
        tally.case("kill", f"before operation {n} of {watch.n}", resumed(place))
    shutil.rmtree(states)


def full_disks(place: Place, tally: Tally, most: int | None = None) -> None:
    """Let the disk be full from each file operation on, or from `most` of them; then make room and run again."""

    def refuse(at: int, n: int) -> None:
        if n >= at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    place.put(None)
    with Watch(place.run, lambda n: None) as watch:
        place.again()
    for at in sorted(set(np.linspace(0, watch.n - 1, most or watch.n).astype(int).tolist())):
        place.put(None)
        with Watch(place.run, lambda n, at=at: refuse(at, n)):
            said = place.again()
        # a measure or a report that cannot be written costs only itself
        faults = [] if said.one_line or (said.code == 0 and "Traceback" not in said.text) else [said.end]
        tally.case("full disk", f"from operation {at} of {watch.n}", faults or resumed(place))


def resumed(place: Place) -> list[str]:
    """What the same command leaves wrong."""
    said = place.again()
    return [said.end] if said.code != 0 or "Traceback" in said.text else place.faults()


def _copy(folder: Path, to: Path) -> None:
    if not folder.exists():
        return
    with contextlib.suppress(shutil.Error):  # a file that went meanwhile
        shutil.copytree(folder, to)


def flips(data: bytes, n: int, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Some harms to a file's bytes: empty, cut, and `n` single bytes changed."""
    yield "emptied", b""
    yield "cut in half", data[: len(data) // 2]
    for _ in range(n if data else 0):
        at = rng.randrange(len(data))
        yield f"byte {at} changed", data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def unfinished(place: Place, to: Path) -> None:
    """Copy the folder of a run as it is when its second cohort has a checkpoint."""

    def see(n: int) -> None:
        if not to.exists() and (place.run / "cohorts/001/checkpoints/20").exists():
            _copy(place.run, to)

    place.put(None)
    with Watch(place.run, see):
        place.again()


def corruptions(place: Place, tally: Tally, state: Path, kind: str, n: int, most: int | None = None) -> None:
    """Harm the files of a state of the folder in turn: what is read is right or named, and a run makes it anew.

    Each file is emptied, cut, deleted, made a folder, and has `n` times one bit flipped; or `most` of these cases.
    """
    rng, before, cases = random.Random(0), sae.load(state), []
    for path in sorted(path for path in state.rglob("*") if path.is_file() and path.name != ".lock"):
        name = path.relative_to(state)
        cases += [(name, *harm) for harm in flips(path.read_bytes(), n, rng)]
        cases += [(name, "deleted", None), (name, "made a folder", None)]
    for at in sorted(set(np.linspace(0, len(cases) - 1, most or len(cases)).astype(int).tolist())):
        name, harm, harmed = cases[at]
        faults = []
        if before.finished and (name.name, harm) != ("analysis.parquet", "deleted"):  # as if nothing had been asked
            _harm(place, state, name, harm, harmed)
            faults = _read(place, before, state)
        _harm(place, state, name, harm, harmed)
        tally.case(kind, f"{name} {harm}", faults + _healed(place, name, harm, harmed))


def _harm(place: Place, state: Path, name: Path, harm: str, harmed: bytes | None) -> None:
    place.put(state)
    path = place.run / name
    if harmed is not None:
        path.write_bytes(harmed)
        return
    path.unlink()
    if harm == "made a folder":
        path.mkdir()


def _read(place: Place, before: sae.Results, state: Path) -> list[str]:
    """What reading a harmed folder gives that is neither right nor named in one line."""
    found = []
    try:
        results = sae.load(place.run)
        found += differences(results, before)
        read = {name: results.definition.get(name) for name in before.definition}
        found += ["definition differs"] * (read != before.definition)
        found += ["claims differ"] * (claims.read(place.run) not in ([], claims.read(state)))
    except UserError as error:
        found += ["more than a line"] * ("\n" in str(error))
    except Exception as error:
        found.append(f"load: {type(error).__name__}: {str(error)[:100]}")
    for command in (
        ["report", str(place.run), "-o", str(place.run.parent / "page.html")],
        ["claims", str(place.run), str(place.file)],
    ):
        said = Said(command)
        if not (said.one_line or said.code == 0) or "Traceback" in said.text:
            found.append(f"{command[0]}: {said.end}")
    return found


def _healed(place: Place, name: Path, harm: str, harmed: bytes | None) -> list[str]:
    """What a run leaves wrong in a harmed folder. It may stop with a line that names what it cannot make anew."""
    said = place.again()
    if said.one_line and name.name in said.text and (harm == "made a folder" or name.name == "definition.json"):
        return []
    if said.code != 0 or "Traceback" in said.text:
        return [f"run: {said.end}"]
    found = place.faults()
    if "steps" in name.parts:  # no other file is lost with it, so it is named where it is read, and no more is done
        return [fault for fault in found if "is damaged or missing" not in fault]
    path = place.run / name
    still = harmed is not None and path.is_file() and path.read_bytes() == harmed
    return found + ["still harmed"] * (still and "state" not in name.parts)  # a last state is checked where it is used

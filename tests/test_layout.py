"""The shape of the code: imports run downwards only, and every published definition is what it was."""

import ast
import dataclasses
import graphlib
from pathlib import Path

import pytest

from sae.core.definitions import flatten
from sae.study import definition_files as loading
from sae.study.sweep import as_sweep, varying

ROOT = Path(__file__).parents[1]

# Rooms from the ground up. A file imports from rooms below its own, and from its own room without circles.
FLOORS = [
    ["core"],
    ["methods", "data"],
    ["experiment"],
    ["train", "study"],
    ["engine"],
    ["store"],
    ["analysis", "interop"],
    ["lm"],
    ["report"],
    ["wandb"],
    ["runner"],
    [""],  # sae/__init__.py, what a definition file and a notebook import
    ["cli"],
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "sae").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_of(path): path for path in sorted((ROOT / "sae").rglob("*.py"))}


def imported(path: Path):
    """The project's modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name == "sae" or name.startswith("sae."):
                inner = name.removeprefix("sae").lstrip(".")
                yield inner if inner in MODULES else inner.rpartition(".")[0]


def test_the_house_has_few_rooms():
    inside = {path.name for path in (ROOT / "sae").iterdir() if path.name != "__pycache__"}
    assert inside <= {"__init__.py", "py.typed", *(f"{room}.py" for room in FLOOR), *FLOOR}
    assert len(inside) <= 17


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards_between_rooms(module):
    room = module.split(".")[0]
    for other in imported(MODULES[module]):
        there = other.split(".")[0]
        below = FLOOR[there] < FLOOR[room]
        assert below or there == room, f"{module} (floor {FLOOR[room]}) imports {other} (floor {FLOOR[there]})"


def test_no_imports_run_in_a_circle():
    graph = {module: set(imported(path)) for module, path in MODULES.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_only_the_wandb_process_and_the_commands_that_ask_its_server_import_wandb():
    def imports(node):
        if isinstance(node, ast.Import):
            return any(alias.name.split(".")[0] == "wandb" for alias in node.names)
        return isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "wandb"

    paths = (ROOT / "sae").rglob("*.py")
    files = {p.name for p in paths if any(map(imports, ast.walk(ast.parse(p.read_text()))))}
    assert files == {"process.py", "server.py"}


# Why each of these maps over something else than members: steps of a block, batches of candidates, random dictionaries
# and z draws, bare matrix products; in analysis/ parts of the examples, noise levels, directions, shuffled labels,
# images and starts. Everything that maps over members is in programs.py.
MAPS = {"programs.py", "rows.py", "sampler.py", "revival.py", "metrics.py", "superposition.py", "bench.py"}
MAPS |= {"members.py", "denoising.py", "copying.py", "one_latent.py", "gabor.py", "gabor_fit.py"}


def test_the_member_axis_is_in_one_file():
    def maps(node):
        return isinstance(node, ast.Attribute) and ast.unparse(node) in ("jax.vmap", "jax.lax.map", "jax.pmap")

    paths = (ROOT / "sae").rglob("*.py")
    assert {p.name for p in paths if any(map(maps, ast.walk(ast.parse(p.read_text()))))} == MAPS


DEFINITIONS = sorted([*(ROOT / "experiments").rglob("*.py"), *(ROOT / "sweeps").rglob("*.py")])


@pytest.mark.parametrize("path", DEFINITIONS, ids=lambda p: p.stem)
def test_a_published_definition_is_what_it_was(path):
    """The full definition of every shipped file. If it moved on purpose, delete the golden file and run this again."""
    sweep = as_sweep(loading.load_file(path))
    axes = varying(sweep.members)
    lines = [f"{sweep.name}: {len(sweep.members)} members"]
    lines += [f"{name} = {value!r}" for name, value in flatten(sweep.members[0]).items() if name not in axes]
    flats = [flatten(member) for member in sweep.members]
    lines += [" ".join(f"{name}={flat[name]!r}" for name in axes if name in flat) for flat in flats if axes]
    if sweep.answer is not None:
        lines += [f"answer.{k} = {v!r}" for k, v in dataclasses.asdict(sweep.answer).items()]
    lines += [repr(figure) for figure in sweep.figures]
    lines += [repr(measure) for measure in sweep.measures]
    lines += [repr(claim) for claim in sweep.claims]
    golden = ROOT / "tests" / "goldens" / f"{'-'.join(path.relative_to(ROOT).with_suffix('').parts)}.txt"
    if not golden.exists():
        golden.parent.mkdir(exist_ok=True)
        golden.write_text("\n".join(lines) + "\n")
        pytest.fail(f"wrote {golden.name}: read it, and commit it with the definition")
    assert golden.read_text().splitlines() == lines, f"{path.name} or a default under it has changed: see the docstring"


@pytest.mark.parametrize("path", DEFINITIONS, ids=lambda p: p.stem)
def test_a_definition_file_opens_with_its_question_and_its_command(path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert len(docstring.split("\n")[0]) <= 116
    assert f"sae run {path.relative_to(ROOT)}" in docstring

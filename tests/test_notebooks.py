"""The notebooks of docs/ run from top to bottom, where their cells assert what they say.

`python tests/test_notebooks.py` runs them and stores what they show.
"""

import tempfile
from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))
KINDS = {"text/plain", "text/html", "image/png", "application/vnd.plotly.v1+json"}


def execute(path: Path, folder: Path) -> nbformat.NotebookNode:
    """The notebook after its cells have run in a folder. Raises the first error of a cell, with its traceback."""
    book = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": folder}}
    nbclient.NotebookClient(book, kernel_name="python3", timeout=600, resources=resources).execute()
    return book


def stored(book: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without what differs each time: progress, warnings and times."""
    for cell in book.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _passes(output)]
    book.metadata.language_info = {"name": "python"}
    return book


def _passes(output: nbformat.NotebookNode) -> bool:
    progress = output.get("data", {}).get("text/plain", "").startswith("cohort ")
    return progress or output.get("name") == "stderr"


LONG = [pytest.param(path, marks=pytest.mark.long) for path in NOTEBOOKS[1:]]


@pytest.mark.parametrize("path", [NOTEBOOKS[0], *LONG], ids=lambda path: path.stem)
def test_a_notebook_runs_and_what_it_asserts_holds(path, tmp_path):
    book = execute(path, tmp_path)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    assert sum("assert" in cell.source for cell in code) >= 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_stored_notebook_is_small_and_shows_what_a_forge_can_draw(path):
    assert path.stat().st_size < 100_000
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert outputs and [output for output in outputs if output.output_type == "error" or _passes(output)] == []
    shown = [set(output.get("data", {})) for output in outputs]
    assert set().union(*shown) <= KINDS and sum("image/png" in kinds for kinds in shown) == 1
    assert all(cell.execution_count for cell in book.cells if cell.cell_type == "code"), "run from top to bottom"


def test_there_are_three():
    assert len(NOTEBOOKS) == 3


if __name__ == "__main__":
    for path in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(stored(execute(path, Path(folder))), path)

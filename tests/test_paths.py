"""Relative paths in a definition file: beside that file first, then from the working directory."""

import json
from pathlib import Path

import numpy as np
import pytest

import sae
from sae import UserError
from sae.cli.main import main
from sae.study.definition_files import load_file

FILE = '''"""Is it found?"""
from sae import Arrays, Experiment, Sweep, grid

base = Experiment(name="q", data=Arrays(path="acts/a.npy"), d_sae=8, batch_size=16, n_steps=4)
sweep = Sweep(name="q", members=grid(base, {"seed": (0, 1)}))
'''


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A folder with a definition file, and another from which it is run."""
    for name in ("here", "there", "elsewhere"):
        (tmp_path / name / "acts").mkdir(parents=True)
    (tmp_path / "there/q.py").write_text(FILE)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def write(path: Path, value: float) -> None:
    np.save(path, np.random.default_rng(0).normal(value, 0.1, (100, 4)).astype(np.float32))


def mean(source) -> float:
    return round(float(source.load().normalization.shift.mean()))


def test_a_path_is_found_beside_its_file_and_else_from_the_working_directory(places):
    data = load_file(Path("../there/q.py")).members[1].data
    with pytest.raises(UserError, match=r"acts/a.npy: no such file or folder; nothing is in .*there/acts and acts$"):
        data.load()
    write(places / "here/acts/a.npy", 1)
    assert mean(data) == 1
    write(places / "there/acts/a.npy", 2)
    assert mean(data) == 2, "where there are both, the one beside the file counts"
    assert mean(sae.Arrays(path="acts/a.npy")) == 1, "a path that no file holds is the shell's"
    assert data == sae.Arrays(path="acts/a.npy") and hash(data) == hash(sae.Arrays(path="acts/a.npy"))


def test_held_out_rows_and_folders_of_pictures_are_found_too(places):
    write(places / "there/acts/a.npy", 2)
    write(places / "there/acts/b.npy", 3)
    (places / "there/q.py").write_text(FILE.replace('"acts/a.npy"', '"acts/a.npy", held_out_path="acts/b.npy"'))
    held_out = load_file(places / "there/q.py").members[0].data.load().held_out
    assert round(float(held_out[:].mean())) == 3
    pictures = FILE.replace('Arrays(path="acts/a.npy")', 'ImagePatches(folder="acts")')
    (places / "there/q.py").write_text(pictures.replace("Arrays", "ImagePatches"))
    with pytest.raises(UserError, match="no images in '.*there/acts'"):
        load_file(places / "there/q.py").members[0].data.load()


def test_a_run_keeps_the_path_as_it_is_written_and_finds_the_data_again(places, monkeypatch, capsys):
    write(places / "there/acts/a.npy", 2)
    command = ["run", "--wandb", "off", "--no-report", "--out", str(places / "run")]
    assert main([command[0], "../there/q.py", *command[1:]]) == 0
    definition = json.loads((places / "run/definition.json").read_text())
    assert [member["data.path"] for member in definition["members"]] == ["acts/a.npy"] * 2
    assert definition["beside"] == str(places / "there")
    monkeypatch.chdir(places / "elsewhere")
    assert main([command[0], "../there/q.py", *command[1:]]) == 0
    assert "finished already" in capsys.readouterr().err
    assert mean(sae.load(places / "run").source(1)) == 2
    assert sae.load(places / "run").members["data.path"].tolist() == ["acts/a.npy"] * 2


def test_a_path_on_the_command_line_is_the_shells(places, capsys):
    write(places / "there/acts/a.npy", 2)
    write(places / "here/acts/b.npy", 1)
    write(places / "there/acts/b.npy", 2)
    assert main(["run", "../there/q.py", "--data.path", "acts/b.npy", "--wandb", "off", "--no-report"]) == 0
    assert mean(sae.load("runs/q").source(0)) == 1

"""A run's folder is data: no command executes a file because a folder names it or holds it."""

import shutil
from pathlib import Path

import pytest

import sae
from sae.cli.main import main
from sae.core.files import read_checked, sha256, write_checked
from sae.study import claims
from sae.study import definition_files as loading

SWEEP = """
from sae import AtMost, Claim, Digits, Experiment, Sweep
from sae.study.quantities import Peak

base = Experiment(name="x", data=Digits(), d_sae=16, batch_size=64, n_steps=20)
sweep = Sweep(name="x", members=[base], claims=[Claim("few", AtMost(lambda results: {}, 1))])
"""

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb_workspaces")
EVIL = "open('executed', 'w')\n" + SWEEP


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("x.py").write_text(SWEEP)
        assert main(["run", "x.py", "--wandb", "off", "--no-report"]) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path, monkeypatch, capsys):
    """A copy of the run and its file, in the working directory."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    shutil.copy(trained / "x.py", tmp_path / "x.py")
    monkeypatch.chdir(tmp_path)
    return Path("runs/x")


def change(folder, **entries):
    path = folder / "definition.json"
    write_checked(path, read_checked(path) | entries)


@pytest.mark.parametrize("path", ["evil.py", "runs/x/evil.py", "sweeps/evil.py", "experiments/x/evil.py"])
def test_claims_runs_no_file_that_a_folder_names(run, path, capsys):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(EVIL)
    change(run, command=["sae", "run", path], file_sha256=sha256(Path(path)), own={"data digits": path})
    for command in (["claims", run], ["report", run], ["watch", run, "--once"], ["sync", run], ["dashboard", run]):
        main([*map(str, command)])
    assert not Path("executed").exists()
    assert main(["claims", str(run)]) == 1
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.endswith(f"name it: sae claims runs/x {'FILE.py' if path.startswith('runs') else path}")
    assert main(["claims", str(run), path]) == 0 and Path("executed").exists(), "the user named it"


def test_a_run_notes_the_checksum_of_its_file_and_is_decided_by_that_file_of_the_checkout(run, monkeypatch, capsys):
    assert sae.load(run).definition["file_sha256"] == sha256(Path("x.py"))
    assert main(["claims", str(run)]) == 1 and "name it: sae claims runs/x x.py" in capsys.readouterr().err
    checkout = Path("checkout").resolve()
    (checkout / "sweeps/deep").mkdir(parents=True)
    monkeypatch.setattr(loading, "CHECKOUT", checkout)
    (checkout / "sweeps/other.py").write_text(EVIL)
    shutil.copy("x.py", checkout / "sweeps/deep/other_name.py")
    (run / "claims.json").unlink()
    assert main(["claims", str(run)]) == 0 and not Path("executed").exists()
    assert [claim["text"] for claim in claims.read(run)] == ["few"]
    (checkout / "sweeps/deep/other_name.py").write_text(SWEEP + "# changed\n")
    assert main(["claims", str(run)]) == 1


def test_several_runs_are_decided_by_the_files_named_each_by_its_own(run, capsys):
    other = Path("runs/y")
    shutil.copytree(run, other)
    Path("y.py").write_text(SWEEP.replace("few", "many"))
    change(other, file_sha256=sha256(Path("y.py")), name="y")
    assert main(["claims", "runs/x", "runs/y", "y.py", "x.py"]) == 0
    assert [claims.read(folder)[0]["text"] for folder in (run, other)] == ["few", "many"]
    assert main(["claims", "runs/x", "runs/y", "x.py"]) == 1 and "runs/y" in capsys.readouterr().err

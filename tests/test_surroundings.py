"""Places where a home folder, a UTF-8 locale or open files are lacking: commands as processes."""

import ast
import codecs
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import TINY

import sae
from sae.cli import streams
from sae.cli.main import COMMANDS
from sae.core.files import expanded
from sae.core.types import UserError

ROOT = Path(__file__).parents[1]

# one process runs all commands, as each start of JAX takes seconds
DRIVER = """
import json, os, pwd, sys

def gone(*_):
    raise KeyError("no such user")

pwd.getpwuid = gone
from sae.cli.main import main

codes = {}
for argv in json.loads(sys.argv[1]):
    print("$", *argv, flush=True)
    try:
        codes[" ".join(argv)] = main(argv)
    except SystemExit as stop:
        codes[" ".join(argv)] = stop.code
json.dump(codes, open("codes.json", "w", encoding="utf-8"))
"""

SWEEP = TINY.replace("Is a tiny run tiny?", "Größe → Wärme?")
SWEEP += """
from sae import AtMost, Claim, Sweep, grid
from sae.study.quantities import Arm, AtEnd

sweep = Sweep(
    name="tiny",
    members=grid(experiment, {"penalty.l1": (0.05, 0.4)}),
    claims=[Claim("Verlust ≤ 1 – für alle", AtMost(AtEnd(arm=Arm(along="penalty.l1"), metric="eval/fvu"), 1.0))],
)
"""


@pytest.mark.parametrize("home", [None, "/proc"])
def test_every_command_works_without_a_home_and_in_a_locale_of_ascii(tmp_path, home):
    (tmp_path / "q.py").write_text(SWEEP, encoding="utf-8")
    kept = ("PATH", "JAX_COMPILATION_CACHE_DIR", "WANDB_INIT_TIMEOUT")
    env = {name: value for name, value in os.environ.items() if name in kept or name.startswith("JAX_PERSISTENT")}
    env |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    env |= {"HOME": home} if home else {}
    commands = [["run", "q.py", "--dry-run"]]
    if home is None:
        commands += [
            ["run", "q.py"],
            ["watch", "runs/tiny", "--once"],
            ["report", "runs/tiny"],
            ["claims", "runs/tiny", "q.py"],
        ]
        commands += [[name, "--help"] for name in COMMANDS] + [["run", "q.py", "--help"], ["list"], ["--help"]]
    else:
        commands += [["run", "q.py", "--wandb", "off", "--no-report"]]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(commands)], env=env, cwd=tmp_path, capture_output=True
    )
    out, err = done.stdout.decode("ascii"), done.stderr.decode("ascii")
    assert "Traceback" not in out + err and done.returncode == 0, err
    assert set(json.loads((tmp_path / "codes.json").read_text()).values()) == {0}, err
    if home is not None:
        return
    assert "W&B" not in err and "atplotlib" not in err, err  # W&B's files, too, are whole
    assert len(list((tmp_path / "runs/tiny/wandb").glob("offline-run-*"))) == 3
    page = (tmp_path / "runs/tiny/report.html").read_text(encoding="utf-8")
    assert "Größe → Wärme?" in page and "Verlust ≤ 1 – für alle" in page and "Ã" not in page
    assert sae.load(tmp_path / "runs/tiny").definition["question"].startswith("Größe → Wärme?")
    assert "Verlust <= 1 - fur alle" in out and "Grosse -> Warme?" in out


def test_a_name_that_the_locale_lacks_is_one_line(tmp_path):
    (tmp_path / "größe.py").write_text(SWEEP, encoding="utf-8")
    env = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "sae.cli", "run", "größe.py".encode()], env=env, cwd=tmp_path, capture_output=True
    )
    said = "sae: größe.py: this locale's encoding, ascii, lacks some of its characters; set LC_ALL=C.UTF-8\n"
    assert (done.returncode, done.stderr.decode()) == (1, said)


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("utf-8", "┌─…→ ×·² Größe λ☃"), ("iso-8859-1", "+-.-> ×·² Größe lambda?"), ("ascii", "+-.-> x*2 Grosse lambda?")],
)
def test_a_terminal_shows_what_it_can(encoding, shown, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    streams.show_what_can_be_shown()
    print("┌─…→ ×·² Größe λ☃", end="", flush=True)
    assert sys.stdout.buffer.getvalue().decode(encoding) == shown
    assert codecs.lookup_error("close")


def test_a_home_that_is_not_known_is_one_line(monkeypatch):
    with pytest.raises(UserError, match="~nobody-here/x: the home folder ~nobody-here is not known; write the path"):
        expanded("~nobody-here/x")
    monkeypatch.setattr(Path, "expanduser", lambda path: (_ for _ in ()).throw(RuntimeError))
    with pytest.raises(UserError, match=r"~/x: the home folder ~ is not known; set HOME, or write the path from / on"):
        expanded("~/x")


def test_text_is_utf_8_whatever_the_locale():
    """Every text file and pipe in the project has an encoding."""

    def lacks(call):
        if not isinstance(call, ast.Call):
            return False
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        text = name in ("read_text", "write_text") or given.get("text") == "True"
        if name == "open" and isinstance(call.func, ast.Name):
            text = "b" not in (ast.unparse(call.args[1]) if len(call.args) > 1 else given.get("mode", "r"))
        return text and "encoding" not in given

    places = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in (ROOT / "sae").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if lacks(node)
    ]
    assert places == []

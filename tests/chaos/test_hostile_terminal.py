"""Texts of files and of W&B reach a terminal, YAML and Markdown as texts."""

import ast
import io
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sae import Sweep, UserError, replace
from sae.cli.main import main
from sae.core import text
from sae.core.console import Console, say
from sae.core.files import read_checked, write_checked
from sae.study.sweep import as_sweep
from sae.wandb import sweeps

ROOT = Path(__file__).parents[2]
EVIL = "a\x1b]0;title\x07\x1b[2J\x9b31m\r\x7f\u202eevil\u2066\u2028\x00b"
SHOWN = "a␛]0;title␇␛[2J�31m␍��evil��␀b"
QUICK = settings(
    max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def test_control_characters_are_shown_and_others_stay():
    assert text.printable(EVIL + "\n\té–×👍") == SHOWN + "\n\té–×👍"
    assert text.one_line("a\n\nb\tc  d") == "a b c  d"


@QUICK
@given(st.text())
def test_no_text_moves_the_cursor(words):
    shown = text.printable(words)
    assert not any((ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 or "\u202a" <= c <= "\u202e" for c in shown)
    assert text.printable(shown) == shown and len(shown) == len(words)


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_printed_is_text_and_only_richs_own_codes_control_the_terminal(terminal):
    from rich.table import Table
    from rich.text import Text

    colours = "truecolor" if terminal else None
    console = Console(file=io.StringIO(), width=100, force_terminal=terminal, color_system=colours)
    table = Table(title=Text(EVIL))
    table.add_column(Text(EVIL))
    table.add_row(Text(EVIL, "bold"))
    for shown in (Text(EVIL), table, EVIL.replace("[", "")):
        console.print(shown)
    out = console.file.getvalue()
    assert "\x1b]" not in out and "\x1b[2J" not in out and "\x07" not in out and "\u202e" not in out
    assert out.count("␛]0;title") >= 3 and ("\x1b[1m" in out) == terminal


def test_say_prints_one_line(capsys):
    say(f"x\n{EVIL}\nsae: all is well")
    assert capsys.readouterr().out == f"x {SHOWN} sae: all is well\n"


def test_nothing_is_printed_in_another_way():
    """`print`, and rich's console, are used in one file; what makes a console takes that file's."""
    for path in (ROOT / "sae").rglob("*.py"):
        if path == ROOT / "sae/core/console.py":
            continue
        tree = ast.parse(path.read_text())
        names = [
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        ]
        assert "print" not in names, path
        if "Console" in names:
            imported = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)
                        and any(alias.name == "Console" for alias in n.names)]  # fmt: skip
            assert imported == ["sae.core.console"], path


def test_a_run_of_such_a_name_is_watched_and_claimed(tmp_path, monkeypatch, capsys, tiny, quiet):
    import sae

    monkeypatch.chdir(tmp_path)
    sae.run(Sweep(name="x", members=[replace(tiny, {"n_steps": 20})]), out="x", wandb="off", console=quiet)
    path = Path("x/definition.json")
    names = {"name": f"n{EVIL}\nforged: line", "question": EVIL, "command": ["sae", "run", f"{EVIL}.py"]}
    names["own"] = {"activation gone": "a;touch b.py"}
    write_checked(path, read_checked(path) | names)
    Path("x/claims.json").write_text(json.dumps([{
        "text": EVIL, "source": EVIL, "verdict": "holds", "later": None, "clauses": [
            {"text": EVIL, "measured": 1.0, "low": None, "high": None, "seeds": 1, "threshold": EVIL,
             "verdict": "holds", "reason": EVIL}]}]))  # fmt: skip
    Path(f"x/{EVIL.replace(chr(0), '').replace('/', '')}").touch()
    commands = ["watch", "x", "--once"], ["report", "x"], ["claims", "x"], [EVIL], ["report", EVIL.replace(chr(0), "")]
    for command in commands:
        main(command)
    out, err = capsys.readouterr()
    assert not any((ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160 or c in "\u202e\u2066\u2028" for c in out + err)
    assert not any(line.startswith("forged") for line in (out + err).splitlines()) and SHOWN in out
    assert "name it: sae report x 'a;touch b.py'\n" in out, "a command to copy runs no other"


WORDS = st.text(min_size=1, max_size=30) | st.sampled_from(
    ["yes", "null", "1e3", "0x1", "2020-01-01", "- a: b", "#", "~"]
)


@QUICK
@given(question=WORDS, path=WORDS, names=st.lists(WORDS, min_size=2, max_size=3, unique=True))
def test_the_yaml_of_a_sweep_holds_every_text_and_nothing_more(tiny, question, path, names):
    members = [replace(tiny, {"name": "x", "data.normalize": "centre", "seed": i}) for i in range(len(names))]
    sweep = as_sweep(Sweep(name="x", members=members))
    axes = {"penalty.words": names}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeps, "_axes", lambda sweep: axes)
        written = sweeps.sweep_yaml(sweep, Path(path), sweeps.Options(), question)
    read = yaml.safe_load(written)
    assert read["description"] == question and read["program"] == str(Path(path))
    assert read["parameters"] == {"penalty.words": {"values": names}}
    assert set(read) == {"name", "project", "description", "program", "method", "command", "parameters"}
    assert text.printable(written) == written


def test_a_cell_of_markdown_is_text():
    assert text.in_markdown("a|b <img src=x>\n[x](http://y) `c` *d*") == "a\\|b &lt;img src=x> [x\\](http://y) `c` *d*"


@pytest.mark.parametrize("id", ["../../../x", "a/b", "", ".", "a b", "x\n", "a" * 200])
def test_an_agents_ids_name_no_place_outside(tiny, monkeypatch, id):
    for name, other in (("WANDB_RUN_ID", "WANDB_SWEEP_ID"), ("WANDB_SWEEP_ID", "WANDB_RUN_ID")):
        monkeypatch.setenv(other, "abc123")
        monkeypatch.setenv(name, id)
        with pytest.raises(UserError, match=name):
            sweeps.read_trial(tiny, [])

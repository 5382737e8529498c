"""After how much training without activity a latent is dead: in examples, steps or tokens; several windows at once."""

import dataclasses

import numpy as np
import pytest

import sae
from sae import UserError
from sae.cli.overrides import override
from sae.experiment import validate
from sae.runner.options import RunOptions
from sae.store import schema


@pytest.mark.parametrize(
    ("text", "examples"),
    [
        ("1000 steps", 64_000), ("1 step", 64), ("10000000 tokens", 10_000_000), ("1e7 tokens", 10_000_000),
        ("2.5e3 examples", 2_500), ("50_000 examples", 50_000), ("50,000examples", 50_000), (300, 300),
    ],
)  # fmt: skip
def test_a_window_is_so_many_examples(text, examples, tiny):
    e = validate(sae.replace(tiny, {"dead_after": text, "dead_windows": (text, 7)}))
    assert (e.dead_after, e.dead_windows) == (examples, (examples, 7))
    assert validate(e) == e


@pytest.mark.parametrize(
    "wrong", ["1000", "1000 epochs", "-5 steps", "", "steps", "0 steps", "40000000 steps", "1e99 tokens"]
)
def test_a_text_that_is_no_window_is_one_line(wrong, tiny):
    for changes in ({"dead_after": wrong}, {"dead_windows": (wrong,)}):
        with pytest.raises(UserError, match=f"^'tiny': {next(iter(changes))}: got '{wrong}', allowed: [^\n]*$"):
            validate(sae.replace(tiny, changes))
    with pytest.raises(UserError, match="dead_windows: got 0, allowed: 1 to"):
        validate(sae.replace(tiny, {"dead_windows": (0,)}))


def test_windows_are_flags(tiny):
    flags = ["--dead-after", "10 steps", "--dead-windows", "300", "1e3 tokens"]
    e, _ = override(tiny, flags, prog="sae", options=RunOptions())
    assert (validate(e).dead_after, validate(e).dead_windows) == (640, (300, 1_000))
    for flag, value in (("500", 500), ("None", None)):
        assert override(tiny, ["--dead-after", flag], prog="sae", options=RunOptions())[0].dead_after == value


def test_every_window_has_a_column_and_they_change_nothing(tiny, tmp_path, quiet):
    base = sae.replace(tiny, {"penalty.l1": 2.0, "dead_after": "5 steps"})
    how = {"wandb": "off", "console": quiet, "chunk_steps": 20}
    plain = sae.run(base, out=tmp_path / "plain", **how)
    several = sae.run(sae.replace(base, {"dead_windows": (64, "5 steps", 640)}), out=tmp_path / "several", **how)
    np.testing.assert_array_equal(several.sae(0).W_dec[...], plain.sae(0).W_dec[...])
    history, members = several.history, sae.load(tmp_path / "several").members
    counts = history[["train/dead_64", "train/dead_320", "train/dead_640"]].to_numpy()
    assert (np.diff(counts, axis=1) <= 0).all() and counts[-1, 0] > 0
    np.testing.assert_array_equal(history["train/dead_320"], history["train/dead"])
    for name in ("train/dead_64", "train/dead_320", "train/dead_640"):
        assert members[name][0] == history[name].iloc[-1]
    assert not [name for name in plain.members if name.startswith("train/")]
    assert members["dead_windows"][0] == "64, 320, 640" and several.definition["members"][0]["dead_after"] == 320


def test_a_folder_has_windows_in_examples_alone(tiny):
    flat = {"dead_after": 5, "dead_windows": [5, 6]}
    assert schema.misfit(flat, "members[0]") is None
    for wrong in ({"dead_after": "5 steps"}, {"dead_windows": ["5 steps"]}, {"dead_after": 0}):
        assert schema.misfit(flat | wrong, "members[0]")
    assert dataclasses.replace(tiny, dead_after=None).dead_window == 384

"""Definitions and flags with anything in them: they are taken, or refused in one line."""

import contextlib
import dataclasses
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sae import Experiment, Sweep, UserError, replace
from sae.cli.overrides import override
from sae.cli.run import Options
from sae.core.definitions import flatten
from sae.study import definition_files as loading
from sae.study.sweep import as_sweep

VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.binary(max_size=3)
VALUES |= st.lists(st.integers(), max_size=2) | st.dictionaries(st.text(max_size=3), st.none(), max_size=2)
VALUES |= st.sampled_from([object, len, Experiment, float("nan"), 10**30, "relu", ()])
FIELDS = [field.name for field in dataclasses.fields(Experiment)]
WORDS = st.characters(exclude_categories=("Cc", "Cs"))  # the command line makes one line of what has several
FLAGS = ["l1", "seed", "lanes", "out", "only", "shard", "mesh", "wandb", "activation", "launcher", "help_", "", "x"]


def some(n):
    return settings(
        max_examples=n, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )


def refused_in_one_line(make):
    """Whether something raises UserError, whose message is one line; nothing else may come of it."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            make()
    except UserError as error:
        assert str(error).strip() and "\n" not in str(error).strip(), str(error)
        return True
    return False


def definitions(tiny, n):
    names = st.sampled_from([*FIELDS, *flatten(tiny)])

    @some(n)
    @given(st.dictionaries(names, VALUES, min_size=1, max_size=3))
    def one(values):
        refused_in_one_line(lambda: as_sweep(replace(tiny, values)))

    @some(n)
    @given(VALUES, st.text(max_size=9) | VALUES)
    def sweep(members, name):
        refused_in_one_line(lambda: as_sweep(Sweep(name=name, members=members if members else [tiny])))

    one()
    sweep()


def flags(tiny, n):
    names = st.sampled_from([*flatten(tiny), *FLAGS]) | st.text(WORDS, max_size=6)
    words = st.text(WORDS, max_size=9) | st.sampled_from(
        ["1e999", "-1", "nan", "--", "-h", "=", "[1]", "None", "True", "0x1"]
    )

    @some(n)
    @given(st.lists(st.tuples(names, words, st.booleans()), min_size=1, max_size=3))
    def one(given_flags):
        tokens = [
            token
            for name, word, joined in given_flags
            for token in ([f"--{name}={word}"] if joined else [f"--{name}", word])
        ]
        if {"--help", "-h"} & set(tokens):
            return
        refused_in_one_line(lambda: as_sweep(override(tiny, tokens, prog="sae run x.py", options=Options())[0]))

    one()


def files(folder, n):
    @some(n)
    @given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode(errors="ignore")))
    def one(content):
        path = Path(folder) / "x.py"
        path.write_bytes(content)
        loading.question(path)
        assert refused_in_one_line(lambda: loading.load_file(path)) or b"experiment" in content or b"sweep" in content

    one()


def test_any_value_of_a_field_is_taken_or_refused_in_one_line(tiny):
    definitions(tiny, 25)


def test_any_flag_is_taken_or_refused_in_one_line(tiny):
    flags(tiny, 25)


def test_any_file_is_a_definition_or_refused_in_one_line(tmp_path):
    files(tmp_path, 25)


@pytest.mark.long
def test_many_values_flags_and_files(tiny, tmp_path):
    definitions(tiny, 2_000)
    flags(tiny, 1_000)
    files(tmp_path, 1_000)

"""The number of members that are computed at once: from a model of the device, or measured once and remembered."""

import dataclasses
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sae.core.definitions import kind
from sae.core.files import read_checked, write_checked
from sae.core.types import UserError
from sae.data.feed import Feed
from sae.data.source import parts_of
from sae.engine import programs
from sae.engine.cohort import Cohort
from sae.engine.loop import compile_block
from sae.engine.placement import Placement
from sae.engine.runtime import cache_folder
from sae.experiment import method

LONG = 5e12  # multiply-adds of a cohort's products from which a measurement is worth its seconds of compiling
SECONDS, ROUNDS = 0.3, 3  # length of one timing, and how often each candidate is timed, in turn


def choose(cohort: Cohort, feed: Feed, mesh: Mesh | None = None) -> int:
    """The lanes of a cohort on these devices: measured now where training is long enough to be worth it."""
    d_in, e = feed.data.d_in, cohort.example
    long = 5 * len(cohort.members) * d_in * e.d_sae * e.batch_size * e.n_steps >= LONG
    # processes must agree, and would not measure the same
    if long and len(cohort.members) > 1 and jax.process_count() == 1 and _known(cohort, d_in, mesh) is None:
        return measure(cohort, feed, mesh)
    return expected(cohort, d_in, mesh)


def expected(cohort: Cohort, d_in: int, mesh: Mesh | None = None) -> int:
    """The lanes measured on these devices before, or the model's."""
    return _known(cohort, d_in, mesh) or cohort.placement(d_in, mesh=mesh).lanes


def measure(cohort: Cohort, feed: Feed, mesh: Mesh | None = None) -> int:
    """Time the model's choice and those around it on real steps, and remember the fastest."""
    d_in = feed.data.d_in
    model, n = cohort.placement(d_in, mesh=mesh), len(cohort.members)
    most = n if mesh is None else model.padded(n) // mesh.shape["member"]
    candidates = sorted({min(most, max(1, int(factor * model.lanes))) for factor in (1 / 4, 1 / 2, 1, 2, 4)})
    timers = {lanes: timer(cohort, feed, dataclasses.replace(model, lanes=lanes))[1] for lanes in candidates}
    seconds = {lanes: [] for lanes in candidates}
    for _ in range(ROUNDS):
        for lanes, once in timers.items():
            seconds[lanes].append(once())
    best = min(candidates, key=lambda lanes: statistics.median(seconds[lanes]))
    try:
        write_checked(_path(), _remembered() | {_key(cohort, d_in, mesh): best})
    except OSError:
        pass  # measured again next time
    return best


def timer(
    cohort: Cohort, feed: Feed, placement: Placement, seconds: float = SECONDS
) -> tuple[float, Callable[[], float]]:
    """The seconds that compiling took, and a function that trains for about `seconds` and returns those of one step.

    One step includes its share of drawing the block's batches.
    """
    experiments = cohort.stacked(placement)
    sample = feed.candidates(0, cohort.example.batch_size)[0]
    state = programs.init(experiments, sample, placement=placement, parts=parts_of(feed.data))
    begun = time.perf_counter()
    program = compile_block(experiments, state, feed, placement)
    compiling = time.perf_counter() - begun
    block, pivot = feed.block(0), placement.shared(feed.data.mean)

    def train(steps: int) -> float:
        nonlocal state
        begun = time.perf_counter()
        where = placement.shared((np.int32(0), np.int32(steps)))
        state, _ = program(experiments, state, block, pivot, *where)
        jax.block_until_ready(state)
        return time.perf_counter() - begun

    train(1)
    steps = min(feed.steps, max(1, math.ceil(seconds / train(1))))

    def step() -> float:
        drawing = train(0)  # the batches of a block are drawn together, whatever is done with them
        return (train(steps) - drawing) / steps + drawing / feed.steps

    return compiling, step


def _known(cohort: Cohort, d_in: int, mesh: Mesh | None) -> int | None:
    """The lanes measured on these devices before; None where there are none that can be."""
    lanes = _remembered().get(_key(cohort, d_in, mesh)) if jax.process_count() == 1 else None
    return lanes if type(lanes) is int and 0 < lanes <= len(cohort.members) else None


def _remembered() -> dict[str, Any]:
    """{key: lanes} of earlier measurements; {} where the file is damaged."""
    try:
        found = read_checked(_path())
    except (OSError, UserError):
        return {}
    return found if isinstance(found, dict) else {}


def _key(cohort: Cohort, d_in: int, mesh: Mesh | None) -> str:
    e, device = cohort.example, jax.devices()[0]
    where = f"{device.device_kind}, {os.cpu_count()} cores" if device.platform == "cpu" else device.device_kind
    method_name = " ".join(map(kind, method(e).values()))
    shape = f"{len(cohort.members)} x {d_in} x {e.d_sae} x {e.batch_size}"
    if mesh is not None:
        where += f" x {mesh.shape['member']} x {mesh.shape['latent']}"
    return f"{where}, jax {jax.__version__}: {shape}, {method_name}, {e.precision}"


def _path() -> Path:
    return cache_folder() / "lanes.json"

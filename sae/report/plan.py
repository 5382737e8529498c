"""The plan of a sweep, printed: its cohorts, why they differ, and what they will cost."""

import pandas as pd
from rich.console import Console
from rich.text import Text

from sae.core.definitions import flatten
from sae.core.text import count, table
from sae.data.source import parts_of
from sae.engine import cohort as cohorts
from sae.engine import cost, runtime
from sae.engine import plan as plans
from sae.engine.lanes import expected as expected_lanes
from sae.engine.loading import load_data
from sae.engine.rehearsal import rehearse
from sae.report.warnings import idle
from sae.study.sweep import Sweep, varying


def describe_plan(sweep: Sweep, console: Console, lanes: int | None = None, pieces: int = 1) -> None:
    """Print members, cohorts and why they split, parameters, FLOPs, expected memory. Loads the data for its width."""
    plan, axes = plans.make(sweep, pieces), varying(sweep.members)
    data = load_data(plan)
    rehearse(plan, data)
    whole, plan = len(plan), cost.fit(plan, data)
    split = cohorts.splits(plan)
    say = lambda line: console.print(Text(line), soft_wrap=True)
    say(f"{sweep.name}: {count(len(sweep.members), 'member')} in {count(len(plan), 'compiled program')}")
    say(f"members differ in: {', '.join(axes) or 'nothing'}")
    if split:
        say(f"programs differ in: {', '.join(split)}")

    head = ("#", "members", "lanes", "d_in", "d_sae", "batch", "steps", "params", "GFLOP", "memory")
    rows, total = [], 0.0
    for index, cohort in enumerate(plan):
        e, source, n = cohort.example, data[cohort.example.data], len(cohort.members)
        at_once = lanes or expected_lanes(cohort, source.d_in)
        gflop = cost.step_flops(e, parts_of(source)) * e.n_steps * n / 1e9
        total += gflop
        numbers = (
            index,
            n,
            at_once,
            " + ".join(f"{width:,}" for width in parts_of(source)),
            e.d_sae,
            e.batch_size,
            e.n_steps,
            n * cost.parameters(e, parts_of(source)),
        )
        memory = cost.process_bytes(cohort, source, at_once)
        cells = [number if isinstance(number, str) else f"{number:,}" for number in numbers]
        rows.append([*cells, _short(gflop), f"{memory / 2**20:,.0f} MiB"])
    say(table(head, rows, console.width))
    say(f"in all {_short(total)} GFLOP of matrix products")
    say("memory: the expected peak of the process, while a checkpoint is written")
    members = pd.DataFrame([flatten(member) for member in sweep.members], dtype=object).rename_axis("member")
    for sentence in idle(members.reset_index()):
        say(sentence)
    if len(plan) > whole:
        say(f"divided from {count(whole, 'program')}, as {runtime.free_bytes() / 2**30:.1f} GiB of memory are free")


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

"""`sae bench`: how fast training is, beside bare matrix products."""

import dataclasses
import json
from pathlib import Path

from sae.cli.command import Command, read
from sae.cli.overrides import kinds, override
from sae.core.console import Console, show
from sae.engine import bench
from sae.engine import cohort as cohorts
from sae.engine.loading import load_data
from sae.study import definition_files as loading
from sae.study.sweep import as_sweep


@dataclasses.dataclass(frozen=True)
class Options:
    """How speed is measured."""

    json: bool = False
    """Print JSON instead of a table."""
    lanes: int | None = None
    """Members computed at once."""


def main(argv: list[str]) -> int:
    """Measure the programs of a definition file, or those of the benchmark's shapes."""
    if not argv or argv[0].startswith("-"):
        options = read(Options, argv, COMMAND)
        work = [bench.shape(*shape) for shape in bench.SHAPES]
    else:
        path = Path(argv[0])
        definition, options = override(
            loading.load_file(path), argv[1:], prog=f"sae bench {path}", description=kinds(), options=Options()
        )
        plan = cohorts.plan(as_sweep(definition).members)
        data = load_data(plan)
        work = [(cohort, data[cohort.example.data]) for cohort in plan]
    speeds = [bench.measure(cohort, data, options.lanes) for cohort, data in work]
    if options.json:
        show(json.dumps(bench.report(speeds), indent=1))
    else:
        bench.table(speeds, Console())
    return 0


COMMAND = Command(
    "bench [FILE] [--FIELD VALUE ...] [--json]",
    "Measure how fast training is, beside bare matrix products.",
    main,
)

"""How a sweep is cut: into cohorts, pieces of cohorts, and parts of a run."""

from collections.abc import Sequence

from sae.core.types import UserError
from sae.engine import cohort as cohorts
from sae.engine.cohort import Cohort
from sae.engine.cost import work
from sae.study.sweep import Sweep


def make(sweep: Sweep, shards: int = 1) -> list[Cohort]:
    """The cohorts of a sweep, divided into at least as many as there are shards, where it has the members."""
    plan = cohorts.plan(sweep.members)
    while len(plan) < shards and max(len(cohort.members) for cohort in plan) > 1:
        largest = max((i for i, cohort in enumerate(plan) if len(cohort.members) > 1), key=lambda i: work(plan[i]))
        plan[largest : largest + 1] = cohorts.divide(plan[largest], 2)
    return plan


def stored(sweep: Sweep, members: Sequence[Sequence[int]]) -> list[Cohort]:
    """The cohorts that an earlier process made, by their members."""
    return [Cohort(tuple(ids), tuple(sweep.members[i] for i in ids)) for ids in members]


def part(plan: Sequence[Cohort], only: Sequence[int], shard_of: str | None) -> list[int]:
    """The numbers of the cohorts to train: some, a shard, or all. Raises UserError."""
    if only and shard_of:
        raise UserError("only, shard: got both, allowed: one of them")
    if shard_of:
        return shard(plan, shard_of)
    if wrong := [index for index in only if not 0 <= index < len(plan)]:
        raise UserError(f"only: got {wrong[0]}, allowed: the numbers of cohorts, 0 to {len(plan) - 1}")
    return sorted(set(only)) or list(range(len(plan)))


def shard(plan: Sequence[Cohort], text: str) -> list[int]:
    """The cohorts of shard "i/n", i from 1 to n: the heaviest first, each to the shard with the least to do so far."""
    i, n = parse_shard(text)
    loads, shards = [0] * n, {}
    for index in sorted(range(len(plan)), key=lambda index: -work(plan[index])):
        shards[index] = loads.index(min(loads))
        loads[shards[index]] += work(plan[index])
    return [index for index in range(len(plan)) if shards[index] == i - 1]


def parse_shard(text: str) -> tuple[int, int]:
    """ "2/4" -> (2, 4). Raises UserError."""
    i, slash, n = text.partition("/")
    if not (slash and i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise UserError(f"shard: got {text!r}, allowed: i/n with i from 1 to n, as 2/4")
    return int(i), int(n)

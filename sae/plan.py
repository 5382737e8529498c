"""What a sweep will cost, before it is run."""

from rich.console import Console
from rich.table import Table

from sae import cohort as cohorts
from sae.cohort import Cohort
from sae.experiment import flatten
from sae.sweep import Sweep, varying


def parameters(d_in: int, d_sae: int) -> int:
    """Of one member: W_enc, W_dec, b_enc, b_dec."""
    return 2 * d_in * d_sae + d_sae + d_in


def step_flops(d_in: int, d_sae: int, batch_size: int) -> int:
    """Of the matrix products of one member's step: two forward, three backward, 2 FLOPs per multiply-add."""
    return 5 * 2 * d_in * d_sae * batch_size


def memory_bytes(cohort: Cohort, d_in: int, lanes: int, data_bytes: int) -> int:
    """Expected peak of training a cohort, all float32.

    Parameters and two moments of every member, twice (what goes into a block and what comes out of it); a
    gradient and an update of the members computed at once, and their latents, pre-activations, the gradients
    of both, and a mask; a block of batches, drawn and transposed; the data.
    """
    e = cohort.example
    state = 3 * parameters(d_in, e.d_sae) * len(cohort.members) * 2
    working = lanes * (2 * parameters(d_in, e.d_sae) + 5 * e.d_sae * e.batch_size)
    block = 2 * min(2**25, 4 * 64 * e.batch_size * d_in) // 4
    return 4 * (state + working + block) + data_bytes


def describe_plan(sweep: Sweep, console: Console, lanes: int | None = None) -> None:
    """Print members, cohorts and why they split, parameters, FLOPs and expected memory. Loads the data for its width."""
    plan = cohorts.plan(sweep.members)
    data = {source: source.load() for source in dict.fromkeys(cohort.example.data for cohort in plan)}
    console.print(f"{sweep.name}: {len(sweep.members)} members in {len(plan)} compiled programs", highlight=False)
    console.print(f"varying: {', '.join(varying(sweep.members)) or 'nothing'}", highlight=False)
    split = cohorts.splits(plan)
    if split:
        console.print(f"cohorts split on: {', '.join(split)}", highlight=False)
    table = Table("cohort", "members", "differs in", "lanes", "d_in", "steps", "parameters", "GFLOP", "memory")
    total = 0.0
    for index, cohort in enumerate(plan):
        e, source = cohort.example, data[cohort.example.data]
        at_once = lanes or cohort.lanes()
        n = len(cohort.members)
        gflop = step_flops(source.d_in, e.d_sae, e.batch_size) * e.n_steps * n / 1e9
        total += gflop
        held = 4 * source.d_in * len(source.train) if hasattr(source, "train") else 0
        memory = memory_bytes(cohort, source.d_in, at_once, held)
        flat = flatten(e)
        differs = ", ".join(f"{name}={flat[name]}" for name in split if name in flat)
        table.add_row(
            str(index), str(n), differs, str(at_once), str(source.d_in), f"{e.n_steps:,}",
            f"{n * parameters(source.d_in, e.d_sae):,}", f"{gflop:,.0f}", f"{memory / 2**20:,.0f} MiB",
        )  # fmt: skip
    console.print(table)
    console.print(f"in all {total:,.0f} GFLOP of matrix products", highlight=False)

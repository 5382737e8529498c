"""How fast is a training step, beside the bare matrix products that it cannot do without?

    python benchmarks/step.py

The whole step as `sae run` takes it (ReLU + L1, Adam, unit norms, all metrics), on a batch that members share,
against five products of the same shapes alone. Both are timed in turn, several times, in one process: machines
are noisy, so read the ratio of the medians.
"""

import statistics
import time

import jax
import jax.numpy as jnp

from sae import Digits, ElasticNet, Experiment, cohort, grid
from sae.data.feed import Resident
from sae.model import matmul

SHAPES = (
    (16, 64, 256, 256, 64),
    (16, 144, 512, 1024, 32),
    (4, 512, 4096, 2048, 4),
)  # members, d_in, d_sae, batch, steps
ROUNDS = 7


def seconds(function) -> float:
    """Wall-clock seconds of one call, its results included."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def bare_products(d_in: int, d_sae: int, batch: int, n: int):
    """A function that runs a step's five products, two forward and three backward, n times in one program."""
    W, x = jnp.full((d_sae, d_in), 1 / d_sae), jnp.ones((d_in, batch))

    def five(_, W):
        f = matmul(W, x)
        x_hat = matmul(W.T, f)
        g = matmul(W, x_hat)
        # the next products wait for these, and none can be left out
        return W + 1e-30 * (matmul(g, x.T) + matmul(f, x_hat.T))

    program = jax.jit(lambda W: jax.lax.fori_loop(0, n, five, W))
    return lambda: program(W)


def measure(members: int, d_in: int, d_sae: int, batch: int, steps: int) -> None:
    """Print one row of the table."""
    experiment = Experiment(
        name="step", data=Digits(), d_sae=d_sae, n_steps=10_000, batch_size=batch, penalty=ElasticNet(l1=0.1)
    )
    plan = cohort.plan(grid(experiment, {"seed": range(members)}))[0]
    placement = plan.placement(d_in)
    experiments, examples = plan.stacked(placement), jax.random.normal(jax.random.key(0), (20_000, d_in))
    feed = Resident(examples, 0, batch, steps)
    state = cohort.init(experiments, examples[:1000].T, placement=placement)
    pivot, zero, n = jnp.zeros(d_in), jnp.int32(0), jnp.int32(steps)

    def train():
        nonlocal state
        state = cohort.train_block(experiments, state, feed, pivot, zero, n, placement=placement)
        return state

    repeats = max(1, members * steps // 4)
    products = bare_products(d_in, d_sae, batch, repeats)
    seconds(train), seconds(products)
    ours, bound = [], []
    for _ in range(ROUNDS):
        ours.append(seconds(train) / (members * steps))
        bound.append(seconds(products) / repeats)
    rate, limit = 1 / statistics.median(ours), 1 / statistics.median(bound)
    shape = f"{members}, {d_in}, {d_sae}, {batch}"
    print(f"| {shape} | {placement.lanes} | {rate:,.1f} | {limit:,.1f} | {rate / limit:.0%} |", flush=True)


if __name__ == "__main__":
    print("| members, d_in, d_sae, batch | lanes | member-steps/s | bare products | share |\n|---|---|---|---|---|")
    for shape in SHAPES:
        measure(*shape)

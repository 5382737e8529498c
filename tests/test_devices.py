"""A cohort over several devices is the cohort on one: the same numbers, no traffic between members, memory divided.

The eight devices are eight threads of a CPU, which must be asked for before jax starts: this file runs itself in a
process of its own, which prints what it found.
"""

import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae import Adam, Digits, ElasticNet, Experiment, Resample, TopK, grid, replace
from sae.core import model
from sae.data.feed import Feed
from sae.engine import cohort, programs
from sae.engine.loop import compile_block, evaluate, train_cohort
from sae.engine.placement import fetch, make_mesh

CASES = {  # members, latent axis, changes; all on 8 devices, all with members that are padding
    "11 members on 8 devices": (11, 1, {}),
    "3 members on 2 x 4 devices": (3, 4, {}),
    "3 members on 2 x 4 devices, top-k": (3, 4, {"activation": TopK(k=8), "penalty.l1": 0.0}),
}
COLLECTIVE = re.compile(r" (all-reduce|all-gather|all-to-all|collective-\w+|reduce-scatter)(?:-start)?\(")
BASE = Experiment(
    name="devices", data=Digits(), d_sae=48, n_steps=30, batch_size=64, penalty=ElasticNet(l1=0.1),
    optimizer=Adam(lr=3e-3), revival=Resample(every=12, times=1, n_candidates=128), dead_after=300, n_eval=300,
)  # fmt: skip


def train(members, mesh=None):
    """Train with a revival of half of the latents -> (weights and numbers on the host, collectives, device's share)."""
    plan, n = cohort.plan(members)[0], len(members)
    data = BASE.data.load()
    placement = plan.placement(data.d_in, mesh=mesh)
    feed = Feed(data, 0, BASE.batch_size, BASE.n_steps, put=placement.shared)
    experiments = plan.stacked(placement)
    state = programs.init(experiments, feed.candidates(0, 128)[0], placement=placement)
    sae = jax.tree.map(jnp.asarray, fetch(state.train.sae, n))
    b_enc = sae.b_enc[...].at[:, ::2].set(-100.0)  # out of reach: these latents are dead until they are revived
    sae = placement.members(model.replace(sae, b_enc=b_enc))
    state = state.replace(train=state.train.replace(sae=sae))
    program, chunks = compile_block(experiments, state, feed, placement), []
    for trained, _, numbers in train_cohort(state, plan, experiments, feed, placement, chunk_steps=10, program=program):
        state = trained
        if numbers is not None:
            chunks.append(fetch(numbers, n))
    assert np.all(chunks[0]["dead"] >= BASE.d_sae // 2) and np.all(chunks[-1]["dead"] < BASE.d_sae // 4)
    values, firing_rates, *_ = evaluate(plan, experiments, feed, state, placement)
    W_enc = state.train.opt_state[0].mu.W_enc[...]
    share = W_enc.addressable_shards[0].data.size / W_enc[:n].size
    return (
        (fetch(state.train.sae, n), chunks, values, firing_rates),
        COLLECTIVE.findall(program.as_text()),
        share,
    )


def main():
    alone, found = {}, {}
    for name, (n, latent, changes) in CASES.items():
        members = grid(replace(BASE, changes), {"seed": range(11)})
        if str(changes) not in alone:
            alone[str(changes)], _, _ = train(members)
        results, collectives, share = train(members[:n], make_mesh(jax.devices(), latent))
        expected = jax.tree.map(lambda leaf, n=n: leaf[:n], alone[str(changes)])
        apart = lambda a, b: float(np.max(np.abs(np.float64(a) - b) / (1 + np.abs(b))))
        worst = max(jax.tree.leaves(jax.tree.map(apart, results, expected)))
        found[name] = {"apart": worst, "collectives": sorted(set(collectives)), "share": share}
    print(json.dumps(found))


@pytest.fixture(scope="module")
def found():
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling is nearly all that this costs
    }
    out = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_devices_change_results_by_rounding_only(found, case):
    assert found[case]["apart"] < 1e-3


@pytest.mark.parametrize("case", CASES)
def test_members_never_meet_and_their_memory_is_divided(found, case):
    n, latent, _ = CASES[case]
    assert ("all-reduce" in found[case]["collectives"]) == (latent > 1)
    assert latent > 1 or found[case]["collectives"] == []
    of_a_device = -(-n // (8 // latent))
    assert found[case]["share"] == of_a_device / latent / n


if __name__ == "__main__":
    main()

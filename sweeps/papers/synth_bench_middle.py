"""Which method finds the features of SynthSAEBench-16k, and is it the one that reconstructs best? Middle tier.

5 methods x 3 seeds = 15 members in 5 compiled programs. Differs from `synth_bench.py` in having only an L0 of 25, three
seeds, and 40,000 steps, a fifth, so that it takes about ten minutes of one H100 by the times of single steps. The
controller of L1 and JumpReLU moves five times as fast. Claims are those of the full tier.

Not run yet.

    sae run sweeps/papers/synth_bench_middle.py
"""

from sae import Best, Sweep, replace
from sweeps.papers import synth_bench as full

base = replace(full.base, {"name": "synth_bench_middle", "n_steps": 40_000})

ANSWER = Best(
    metric="analysis/f1",
    along="activation.k",
    group=full.METHOD,
    also=("analysis/mcc", "analysis/uniqueness", "analysis/explained_variance", "analysis/l0", "analysis/dead"),
)

sweep = Sweep(
    name="synth_bench_middle",
    members=full.members(base, (25.0,), range(3)),
    answer=ANSWER,
    measures=full.MEASURES,
    claims=[*full.ranked(25.0), *full.published(25.0)],
)

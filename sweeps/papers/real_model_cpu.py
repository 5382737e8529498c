"""On SmolLM2-135M, does L1 reconstruct worse than TopK, and does the model's loss recover with L0? For two CPU cores.

The small tier of P9 (`real_model.py` says what it asks): 200,000 tokens, 2,304 latents, one seed; claims (a) and (c).
One seed has no interval, so a claim is decided by a single number.

6 methods x 3 targets of L0 = 18 members in 6 compiled programs, 600 steps of 1,024 rows: three passes.

Result: every number is on the claimed side of its threshold, and with one seed every verdict is "undecided". FVU at an
L0 of 32: BatchTopK .169, TopK .176, Matryoshka .182, Gated .227, JumpReLU .231, L1 .286, so L1 has 1.63 times TopK's;
loss recovered rises with L0 for all, and is .985 for TopK at 64. (2 CPU cores: 35 min beside other work.)

It is run from the root of the project, after the harvest.

    sae harvest MODEL PROSE CODE --layer 9 --context 128 --tokens 224000 --out acts/real_model_cpu
    sae run sweeps/papers/real_model_cpu.py
"""

from sae import Sweep, replace
from sae.lm.loss_recovered import LossRecovered
from sweeps.papers import real_model as full

steps = {"n_steps": 600, "optimizer.warmup_steps": 50, "optimizer.decay_steps": 120}
base = replace(
    full.base, {"name": "real_model_cpu", "data.path": "acts/real_model_cpu", "d_sae": 4 * full.WIDTH, **steps}
)
RATES = dict.fromkeys(full.METHODS, 2e-3)  # of 5e-4 and 2e-3, as `real_model_rates.py` chose for all of them

sweep = Sweep(
    name="real_model_cpu",
    members=full.members(base, full.TARGETS, (1,), RATES),
    answer=full.ANSWER,
    measures=[LossRecovered()],
    figures=full.figures()[:2],
    claims=[full.reconstruction()[0], *full.loss()],
)

"""All claims on SmolLM2-135M at a quarter of the full tier's width, in one pass over a million tokens. Two CPU cores.

The middle tier of P9 (`real_model.py` says what it asks): the same methods, L0s, seeds, measures and claims, 1,152
latents in place of 4,608, and 2,100 steps of 512 rows: each row once. Learning rates are those that
`real_model_middle_rates.py` chose.

57 members in 7 compiled programs.

Result: 15 of 19 verdicts hold, 2 fail, 2 are undecided. FVU at an L0 of 32: Gated .147, BatchTopK .149, JumpReLU .161,
TopK .166, L1 .167, Matryoshka .176. So (a) fails, 1.01 for 1.15: with a rate of its own L1 keeps up with TopK. (d)
fails for L1, whose best latent says less than a frozen random decoder's (.595, .656); it is undecided for BatchTopK and
JumpReLU. Matryoshka absorbs .21 times as many letters as BatchTopK. (2 CPU cores: 75 min beside other work.)

    sae harvest MODEL PROSE CODE --layer 9 --context 128 --tokens 1200000 --out acts/real_model
    sae run sweeps/papers/real_model_middle.py
"""

from sae import Sweep, replace
from sae.lm.first_letters import FirstLetterAbsorption
from sae.lm.loss_recovered import LossRecovered
from sae.lm.probing import Probing
from sweeps.papers import real_model as full

steps = {"batch_size": 512, "n_steps": 2_100, "optimizer.warmup_steps": 100, "optimizer.decay_steps": 420}
base = replace(full.base, {"name": "real_model_middle", "d_sae": 2 * full.WIDTH, "dead_after": "400 steps", **steps})

sweep = Sweep(
    name="real_model_middle",
    members=[*full.members(base, full.TARGETS, full.SEEDS), *full.frozen(base, full.SEEDS)],
    answer=full.ANSWER,
    measures=[LossRecovered(), Probing(), FirstLetterAbsorption()],
    figures=full.figures(),
    claims=[*full.reconstruction(), *full.loss(), *full.knowledge()],
)

"""The same as `language_model.py` in five minutes, too short for an answer: does everything run?

TopK and BatchTopK at an L0 of 16 and 32, 1,152 latents, 200 steps on 40,000 tokens: 4 members in 2 compiled programs.

    make lm-small
    sae run sweeps/language_model_small.py
"""

from sae import AtMatched, BatchTopK, Frontier, Sweep, grid, replace
from sae.lm.loss_recovered import LossRecovered
from sae.lm.probing import Probing
from sweeps import language_model as full

steps = {"n_steps": 200, "optimizer.warmup_steps": 20, "optimizer.decay_steps": 50, "dead_after": "50 steps"}
base = replace(
    full.base, {"name": "language_model_small", "data.path": "acts/language_model_small", "d_sae": 1_152, **steps}
)
KINDS = ("TopK", "BatchTopK")

sweep = Sweep(
    name="language_model_small",
    members=[
        member
        for one in (base, replace(base, {"activation": BatchTopK()}))
        for member in grid(one, {"activation.k": (16, 32)})
    ],
    answer=AtMatched(
        arms={name: full.ARMS[name] for name in KINDS}, matched="eval/l0", at=(24.0,), metrics=full.NUMBERS
    ),
    measures=[LossRecovered(n_tokens=512), Probing(n=2_048, least=20)],
    figures=[Frontier(x="eval/l0", y=y, along=("activation.k",), group=("activation",)) for y in full.NUMBERS],
)

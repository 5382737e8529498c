"""Which learning rate serves each method on SmolLM2-135M in a thousand steps? For `real_model_middle.py`.

P9 of the paper suite gives every method the better of two rates, by held-out FVU at an L0 of 32, with seed 0. Here
there are three, in half the middle tier's steps, so that it stays short.

6 methods x 3 rates = 18 members in 6 compiled programs.

Result: 4e-3 for TopK, BatchTopK and Matryoshka; 8e-3, the largest, for L1, JumpReLU and Gated. FVU at 2e-3, 4e-3, 8e-3:
L1 .247, .216, .193; TopK .179, .176, .186; BatchTopK .167, .159, .164; JumpReLU .197, .176, .174; Gated .194, .173,
.164; Matryoshka .187, .183, .198. At 2e-3 for all, JumpReLU and Gated look worse than TopK; with their own
rates they do not. (2 CPU cores: 10 min.)

    sae run sweeps/papers/real_model_middle_rates.py
"""

from sae import replace
from sweeps.papers.real_model import at_rates
from sweeps.papers.real_model_middle import base as middle

RATES = (2e-3, 4e-3, 8e-3)
base = replace(middle, {"name": "real_model_middle_rates", "n_steps": 1_000})

sweep = at_rates(base, RATES)

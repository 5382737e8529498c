"""Which of two learning rates serves each method on SmolLM2-135M? It is chosen before `real_model_cpu.py`.

P9 of the paper suite gives every method the better of two rates, by held-out FVU at an L0 of 32, with seed 0. The size
is that of `real_model_cpu.py`. 6 methods x 2 rates = 12 members in 6 compiled programs.

Result: 2e-3 for every method, by far; FVU at 5e-4 and 2e-3: L1 .418, .285; TopK .220, .176; BatchTopK .221, .167;
JumpReLU .355, .230; Gated .345, .224; Matryoshka .221, .179. A larger one was not tried. (2 CPU cores: 17 min beside
other work.)

    sae run sweeps/papers/real_model_rates.py
"""

from sae import replace
from sweeps.papers.real_model import at_rates
from sweeps.papers.real_model_cpu import base as small

RATES = (5e-4, 2e-3)
base = replace(small, {"name": "real_model_rates"})

sweep = at_rates(base, RATES)

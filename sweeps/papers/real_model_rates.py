"""Which of two learning rates serves each method on SmolLM2-135M? It is chosen before `real_model_cpu.py`.

P9 of the paper suite gives every method the better of two rates, by held-out FVU at an L0 of 32, with seed 0. The size
is that of `real_model_cpu.py`. 6 methods x 2 rates = 12 members in 6 compiled programs.

Not run yet.

    sae run sweeps/papers/real_model_rates.py
"""

from sae import Best, Sweep, grid, replace
from sweeps.papers.real_model import METHODS, along
from sweeps.papers.real_model_cpu import base as small

RATES = (5e-4, 2e-3)
base = replace(small, {"name": "real_model_rates"})

sweep = Sweep(
    name="real_model_rates",
    members=[
        member
        for name, method in METHODS.items()
        for member in grid(
            replace(base, {**method, along(name): 32.0 if along(name) == "control.l0" else 32}), {"optimizer.lr": RATES}
        )
    ],
    answer=Best(
        metric="eval/fvu",
        along="optimizer.lr",
        smallest=True,
        group=("activation", "reconstruction"),
        also=("eval/l0",),
    ),
)

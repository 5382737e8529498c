"""Which learning rate serves each method on SmolLM2-135M, where batches have 512 rows? For `real_model_middle.py`.

P9 of the paper suite gives every method the better of two rates, by held-out FVU at an L0 of 32, with seed 0. Here
there are three, at a quarter of the full tier's width and half the middle tier's steps, so that it stays short.

6 methods x 3 rates = 18 members in 6 compiled programs.

    sae run sweeps/papers/real_model_middle_rates.py
"""

from sae import Best, Sweep, grid, replace
from sweeps.papers.real_model import METHODS, WIDTH, along
from sweeps.papers.real_model_middle import base as middle

RATES = (2e-3, 4e-3, 8e-3)
base = replace(middle, {"name": "real_model_middle_rates", "d_sae": 2 * WIDTH, "n_steps": 1_000})

sweep = Sweep(
    name="real_model_middle_rates",
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

"""On handwritten digits, how many latents does L1 leave active, and how many does L2?

3 widths x (8 L1 + 8 L2) x 3 seeds = 144 members in 3 compiled programs.

Result: at FVU .2, L1 leaves 8, 9 and 12 of 64, 128 and 256 latents active; L2 leaves 31, 55 and 62. (2 CPU cores:
3 min.)

    sae run sweeps/digits_width_l1_l2.py
"""

from experiments.digits_l1 import experiment
from sae import AtMatched, Sweep, grid, replace

base = replace(experiment, {"penalty.l1": 0.0, "n_steps": 3_000, "optimizer.decay_steps": 600})

COEFFICIENTS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
WIDTHS, SEEDS = (64, 128, 256), range(3)

sweep = Sweep(
    name="digits_width_l1_l2",
    members=[
        *grid(base, {"d_sae": WIDTHS, "penalty.l1": COEFFICIENTS, "seed": SEEDS}),
        *grid(base, {"d_sae": WIDTHS, "penalty.l2": COEFFICIENTS, "seed": SEEDS}),
    ],
    answer=AtMatched(arms={"L1": "penalty.l1", "L2": "penalty.l2"}, at=(0.1, 0.2, 0.4)),
)

"""At which penalties, and from which width on, does L1 find true features in superposition?

5 widths x 9 L1 x 2 seeds = 90 members in 5 compiled programs. A small version of Sharkey et al. 2022.

Result: with at least as many latents as features, the best mmcs is .995 or above, at L1 .06 to .3. With half as many
it is .77; chance gives .29. (2 CPU cores: 3 min.)

    sae run sweeps/superposition_width_l1.py
"""

from experiments.superposition_l1 import experiment
from sae import Best, Sweep, grid, replace

base = replace(experiment, {"n_steps": 3_000, "optimizer.lr": 3e-3, "optimizer.decay_steps": 1_000, "n_eval": 8_192})

sweep = Sweep(
    name="superposition_width_l1",
    members=grid(
        base,
        {
            "d_sae": (32, 64, 128, 256, 512),
            "penalty.l1": (0.003, 0.01, 0.03, 0.06, 0.1, 0.2, 0.3, 0.6, 1.0),
            "seed": range(2),
        },
    ),
    answer=Best(
        metric="eval/mmcs",
        along="penalty.l1",
        also=("eval/mmcs_chance", "eval/mmcs_reverse", "eval/l0", "eval/fvu", "eval/dead_fraction"),
    ),
)

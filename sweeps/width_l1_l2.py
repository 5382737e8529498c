"""Does L1 silence latents that L2 leaves active, at every width?

3 widths x (6 L1 + 6 L2 + no penalty) x 3 seeds = 117 members in 3 compiled programs.

Result: yes. At FVU .2, L1 leaves 6, 9 and 14 of 64, 128 and 256 latents active; L2 leaves half of all. (2 CPU cores:
2 min.)

    sae run sweeps/width_l1_l2.py --dry-run
    sae run sweeps/width_l1_l2.py --wandb online
"""

from sae import Adam, AtMatched, ElasticNet, Experiment, ImagePatches, Sweep, UnitNorm, grid

base = Experiment(
    name="width_l1_l2",
    data=ImagePatches(size=8),
    d_sae=64,
    constraint=UnitNorm(),
    penalty=ElasticNet(),
    optimizer=Adam(lr=2e-3, warmup_steps=100, decay_steps=500),
    dead_after=100_000,
    batch_size=256,
    n_steps=2_500,
)

WIDTHS = (64, 128, 256)
L1 = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
L2 = (0.2, 0.4, 0.8, 1.6, 4.0, 10.0)
SEEDS = range(3)

sweep = Sweep(
    name="width_l1_l2",
    members=[
        *grid(base, {"d_sae": WIDTHS, "seed": SEEDS}),
        *grid(base, {"d_sae": WIDTHS, "penalty.l1": L1, "seed": SEEDS}),
        *grid(base, {"d_sae": WIDTHS, "penalty.l2": L2, "seed": SEEDS}),
    ],
    answer=AtMatched(arms={"L1": "penalty.l1", "L2": "penalty.l2"}, at=(0.1, 0.2, 0.4)),
)

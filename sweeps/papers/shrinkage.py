"""Does L1 shrink what it recovers by as much as the closed form says, λ/2 of every feature?

P5 A of the paper suite: Wright & Sharkey 2024, "Addressing feature suppression in SAEs"; γ is that of Rajamanoharan et
al. 2024 (arXiv 2404.16014). 64 orthonormal features in 64 dimensions, p = .05, magnitudes U[.5, 1.5); 64 latents, tied
weights of norm 1, an encoder bias, no decoder bias. Every feature is then a problem of its own: â = a - λ/2, and
γ = E[(a - λ/2)²] / E[a (a - λ/2)].

5 L1 x 3 seeds = 15 members in 1 compiled program. The closed form describes the optimum. Two choices help to
reach it without moving it. The penalty warms up over a third of the steps: from the start, λ = .8 would silence three
quarters of the latents before they have found a feature (measured beforehand, with other seeds). And the learning rate
falls to 0.

Result: both claims hold: γ within .007 of the closed form, the shift within .3 % of λ/2. (2 CPU cores: 37 s.)

    sae run sweeps/papers/shrinkage.py
"""

from sae import Adam, AtMost, Claim, ElasticNet, Experiment, Orthonormal, Profile, Relu, Sweep, UnitNormNoBias, grid
from sae.analysis.recovery import Shrinkage
from sae.study.quantities import Arm, AtEach

base = Experiment(
    name="shrinkage",
    data=Orthonormal(d_in=64, frequency=0.05, low=0.5, high=1.5),
    d_sae=64,
    activation=Relu(),
    penalty=ElasticNet(l1=0.1, warmup_steps=2_000),
    constraint=UnitNormNoBias(tied=True),
    optimizer=Adam(lr=3e-3, decay_steps=2_000),
    apply_b_dec_to_input=False,
    batch_size=256,
    n_steps=6_000,
)

COEFFICIENTS = (0.05, 0.1, 0.2, 0.4, 0.8)
L1 = Arm(along="penalty.l1")

CLAIMS = (
    Claim(
        "γ lies within .02 of the closed form at every coefficient",
        AtMost(AtEach(arm=L1, metric="analysis/shrinkage_error"), 0.02),
        source="Wright & Sharkey 2024; P5 A",
    ),
    Claim(
        "the mean of a - â over active features lies within 5 % of λ/2 at every coefficient",
        AtMost(AtEach(arm=L1, metric="analysis/shift_error"), 0.05),
        source="Wright & Sharkey 2024; P5 A",
    ),
)
FIGURES = tuple(
    Profile(metric=metric, x="penalty.l1")
    for metric in ("eval/shrinkage", "analysis/shift", "analysis/shrinkage_error", "analysis/shift_error", "eval/mmcs")
)

sweep = Sweep(
    name="shrinkage",
    members=grid(base, {"penalty.l1": COEFFICIENTS, "seed": (1, 2, 3)}),
    measures=[Shrinkage()],
    figures=FIGURES,
    claims=CLAIMS,
)

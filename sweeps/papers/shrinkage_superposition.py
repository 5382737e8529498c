"""In superposition, does L1 shrink what it recovers, and the more the larger its coefficient?

P5 B of the paper suite, for L1 alone: Wright & Sharkey 2024; Rajamanoharan et al. 2024 (arXiv 2404.16014). Generator B
of P2: 128 features in 64 dimensions, 3 active, magnitudes U[0, 1); 128 and 256 latents, encoder bias, ReLU, no decoder
bias, decoder rows of norm 1. γ is `eval/shrinkage`; the zone holds every coefficient at which the MMCS of a member with
the true features is at least .9.

2 widths x 13 L1 x 3 seeds = 78 members in 2 compiled programs. The other half of the claim, on Gated, TopK, BatchTopK
and JumpReLU, is in `frontier_superposition.py`.

Result: γ falls with the coefficient (Spearman -.99), but is .96 and .98 where the zone begins, not .95. (2 CPU cores:
7 min.)

    sae run sweeps/papers/shrinkage_superposition.py
"""

from sae import (
    Adam,
    AtMost,
    Best,
    Claim,
    ElasticNet,
    Experiment,
    Heatmap,
    Profile,
    Relu,
    Superposition,
    Sweep,
    UnitNormNoBias,
    grid,
)
from sae.study.quantities import Arm, Monotone, PeakInside

base = Experiment(
    name="shrinkage_superposition",
    data=Superposition(d_in=64, n_features=128, n_active=3.0, generator="B"),
    d_sae=128,
    activation=Relu(),
    penalty=ElasticNet(l1=0.1),
    constraint=UnitNormNoBias(),
    optimizer=Adam(lr=1e-3),
    apply_b_dec_to_input=False,
    batch_size=256,
    n_steps=8_000,
)

WIDTHS = (128, 256)
COEFFICIENTS = tuple(10 ** (k / 4) for k in range(-10, 3))  # .0032 to 3.2, a quarter of a decade apart
L1 = Arm(along="penalty.l1")

ZONE = {"eval/mmcs": 0.9}
SOURCE = "Rajamanoharan et al. 2024; P5 B"
CLAIMS = (
    Claim(
        "γ ≤ .95 inside the zone: the largest γ of a seed's members with MMCS ≥ .9, of a width",
        AtMost(PeakInside(arm=L1, metric="eval/shrinkage", least=ZONE), 0.95),
        source=SOURCE,
    ),
    Claim(
        "γ falls with the coefficient, Spearman ≤ -.9 over all coefficients of the sweep (all above 0; a member whose "
        "latents are all dead has γ = 0)",
        AtMost(Monotone(arm=L1, metric="eval/shrinkage"), -0.9),
        source=SOURCE,
    ),
)
FIGURES = (
    *(Profile(metric=f"eval/{name}", x="penalty.l1") for name in ("shrinkage", "mmcs", "fvu", "dead_fraction")),
    Heatmap(metric="eval/shrinkage", along=("penalty.l1",)),
    Heatmap(metric="eval/mmcs", along=("penalty.l1",)),
)
ANSWER = Best(
    metric="eval/mmcs",
    along="penalty.l1",
    also=("eval/shrinkage", "eval/mmcs_chance", "eval/l0", "eval/fvu", "eval/dead_fraction"),
)

sweep = Sweep(
    name="shrinkage_superposition",
    members=grid(base, {"d_sae": WIDTHS, "penalty.l1": COEFFICIENTS, "seed": (1, 2, 3)}),
    answer=ANSWER,
    figures=FIGURES,
    claims=CLAIMS,
)

"""In superposition, do Gated, TopK, BatchTopK and JumpReLU shrink less than L1, and err less at equal sparsity?

P5 of the paper suite, the half of B that `shrinkage_superposition.py` leaves out, and C: Rajamanoharan et al. 2024
(Gated: arXiv 2404.16014; JumpReLU: 2407.14435), Gao et al. 2024 (TopK: 2406.04093), Bussmann et al. 2024 (BatchTopK:
2412.06410), Wright & Sharkey 2024. Data and constraint are those of `shrinkage_superposition.py`: 128 features in 64
dimensions, 3 active, magnitudes U[0, 1); 128 latents. γ is `eval/shrinkage`; the zone holds every member whose MMCS
with the true features is at least .9. FVU is compared at an L0 of 4, 8 and 16, interpolated along each frontier. The
suite asks for a ratio "at >= 2 of 3": the second smallest of the three decides, for TopK and for Gated alike.

In the refit test, the active latents of an example stay and their values are chosen anew, by non-negative least
squares; it is read at the same three L0. No method has a loss for dead latents.

(7 L1 + 6 Gated + 6 TopK + 5 BatchTopK + 7 JumpReLU) x 3 seeds = 93 members in 5 compiled programs. Differs from
`shrinkage_superposition.py` in having 4,000 steps at a learning rate of .003, which falls to 0 over the last 1,000.
Coefficients were chosen in a pilot with another seed, so that they cover an L0 of 4 to 16 and the zone. L1 = .2 was
added after a first full run, in which the frontier of one seed ended just above an L0 of 4.

Result: 10 of 12 claims hold. γ of all four lies within .003 of 1 in the zone, L1's at .97 and less. Gated has .67 to
.78 of L1's FVU, TopK 1.28, .94 and .97. Refitted, L1 loses 77 to 81 % of its FVU, and TopK 27 to 75 %, where 3 % were
allowed: what is refitted here is interference, too. (2 CPU cores: 32 min beside much other work.)

    sae run sweeps/papers/frontier_superposition.py
"""

from collections.abc import Iterable, Sequence

from sae import (
    L0,
    AtLeast,
    AtMatched,
    AtMost,
    BatchTopK,
    Claim,
    ElasticNet,
    Experiment,
    Frontier,
    Gated,
    JumpRelu,
    Profile,
    Sweep,
    TopK,
    Within,
    grid,
    replace,
)
from sae.analysis.refit import Refit
from sae.study.quantities import Arm, Matched, PeakInside, Ranked, Ratio
from sweeps.papers import shrinkage_superposition

AT = (4.0, 8.0, 16.0)
ZONE = {"eval/mmcs": 0.9}
L1 = Arm(along="penalty.l1", where={"activation": ("relu",)})
GATED = Arm(along="penalty.l1", where={"activation": ("gated",)})
TOP_K = Arm(along="activation.k", where={"activation": ("top-k",)})
BATCH_TOP_K = Arm(along="activation.k", where={"activation": ("batch-top-k",)})
JUMP_RELU = Arm(along="penalty.weight", where={"activation": ("jump-relu",)})

steps = {"n_steps": 4_000, "optimizer.lr": 3e-3, "optimizer.decay_steps": 1_000}
base = replace(shrinkage_superposition.base, {"name": "frontier_superposition", "penalty": ElasticNet(), **steps})


def members(
    base: Experiment,
    *,
    l1: Sequence[float],
    gated: Sequence[float],
    k: Sequence[int],
    batch_k: Sequence[float],
    weight: Sequence[float],
    seeds: Sequence[int],
) -> list[Experiment]:
    """Members of each method, along its own coefficient."""
    with_gates = replace(base, {"activation": Gated()})
    top_k, batch_top_k = replace(base, {"activation": TopK(k=1)}), replace(base, {"activation": BatchTopK(k=1.0)})
    jump_relu = replace(base, {"activation": JumpRelu(), "penalty": L0()})
    return [
        *grid(base, {"penalty.l1": l1, "seed": seeds}),
        *grid(with_gates, {"penalty.l1": gated, "seed": seeds}),
        *grid(top_k, {"activation.k": k, "seed": seeds}),
        *grid(batch_top_k, {"activation.k": batch_k, "seed": seeds}),
        *grid(jump_relu, {"penalty.weight": weight, "seed": seeds}),
    ]


NAMED = {"Gated": GATED, "TopK": TOP_K, "BatchTopK": BATCH_TOP_K, "JumpReLU": JUMP_RELU}


def shrinks_not(methods: Iterable[str] = NAMED) -> list[Claim]:
    """The claims of P5 B about the methods that should not shrink."""
    ends = {"smallest": True, "largest": False}
    inside = lambda arm, smallest: PeakInside(arm=arm, metric="eval/shrinkage", least=ZONE, smallest=smallest)
    return [
        Claim(
            f"{name}: the {end} γ of a seed's members with MMCS ≥ .9 lies in [.97, 1.03]",
            Within(inside(NAMED[name], smallest), 0.97, 1.03),
            source="Rajamanoharan et al. 2024; P5 B",
        )
        for name in methods
        for end, smallest in ends.items()
    ]


def fidelity() -> list[Claim]:
    """The claims of P5 C."""
    at = lambda arm, metric: Matched(arm=arm, metric=metric, matched="eval/l0", at=AT)
    fvu = lambda arm: Ranked(Ratio(at(arm, "eval/fvu"), at(L1, "eval/fvu")), 2)
    drop = lambda arm: at(arm, "analysis/refit_drop")
    source = "Gao et al. 2024; Rajamanoharan et al. 2024; P5 C"
    return [
        Claim("At two of three L0 (4, 8, 16), FVU of TopK is at most .95 of L1's", AtMost(fvu(TOP_K), 0.95), source),
        Claim("At two of three L0 (4, 8, 16), FVU of Gated is at most .95 of L1's", AtMost(fvu(GATED), 0.95), source),
        Claim("Refitted on its support, L1 loses at least 10 % of its FVU", AtLeast(drop(L1), 0.1), source),
        Claim("Refitted on its support, TopK loses at most 3 % of its FVU", AtMost(drop(TOP_K), 0.03), source),
    ]  # fmt: skip


ALONG = ("penalty.l1", "activation.k", "penalty.weight")
METHOD = ("activation",)
FIGURES = (
    Frontier(x="eval/l0", y="eval/fvu", along=ALONG, group=METHOD),
    Frontier(x="eval/l0", y="eval/shrinkage", along=ALONG, group=METHOD),
    Frontier(x="eval/l0", y="analysis/refit_drop", along=ALONG, group=METHOD),
    *(Profile(metric="eval/shrinkage", x=name, group=METHOD) for name in ALONG),
)
ANSWER = AtMatched(
    arms=dict(zip(("L1 or Gated", "TopK or BatchTopK", "JumpReLU"), ALONG, strict=True)),
    matched="eval/l0",
    at=AT,
    metrics=("eval/fvu", "eval/shrinkage", "analysis/refit_drop"),
    group=METHOD,
)

sweep = Sweep(
    name="frontier_superposition",
    members=members(
        base,
        l1=(0.03, 0.04, 0.056, 0.075, 0.1, 0.14, 0.2),
        gated=(0.1, 0.14, 0.2, 0.3, 0.56, 1.0),
        k=(2, 3, 4, 8, 16, 24),
        batch_k=(2.0, 3.0, 4.0, 8.0, 16.0),
        weight=(0.001, 0.002, 0.004, 0.008, 0.016, 0.03, 0.06),
        seeds=(1, 2, 3),
    ),
    answer=ANSWER,
    measures=[Refit()],
    figures=FIGURES,
    claims=[*shrinks_not(), *fidelity()],
)

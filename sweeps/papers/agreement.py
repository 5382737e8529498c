"""Do dictionaries of different seeds agree, and does it depend on the method or on the decoder's norm?

P7 of the paper suite: Paulo & Belrose 2025 (arXiv 2501.16615) find that ReLU with L1 agrees over seeds more than TopK
does, Song et al. 2025 (arXiv 2505.20254) the opposite. Song et al.'s synthetic setting, in which decoder norms are not
constrained: 32 features in 16 dimensions, 3 active on average; here with frequencies that fall by a factor of 5. L1,
whose L0 a control holds at 3, and TopK with k = 3, each with unit and with free decoder rows; 16, 32, 64 or 128
latents.

2 methods x 2 constraints x 4 widths x 16 seeds = 256 members in 16 compiled programs. The MCC of two dictionaries
matches their latents one to one for the largest sum of absolute cosines. A member's agreement is its mean MCC with the
other 15 seeds.

Result: 5 of 8 claims hold, 1 fails, 2 are undecided. With free decoder rows TopK agrees more than L1 (by .13, not .2),
with unit rows less. (2 CPU cores: 8.5 min.)

    sae run sweeps/papers/agreement.py
"""

from collections.abc import Iterable, Mapping
from typing import Any

from sae import (
    Adam,
    AgreementMatrix,
    AtLeast,
    AtMost,
    Claim,
    ElasticNet,
    Experiment,
    Free,
    Profile,
    Relu,
    Superposition,
    Sweep,
    TargetL0,
    TopK,
    UnitNorm,
    grid,
    replace,
)
from sae.analysis.agreement import Agreement
from sae.analysis.truth import Truth
from sae.study.quantities import Arm, AtEnd, Difference, Monotone, Ratio

ACTIVE, FEATURES, WIDTHS = 3, 32, (16, 32, 64, 128)
base = Experiment(
    name="agreement",
    data=Superposition(d_in=16, n_features=FEATURES, n_active=float(ACTIVE), generator="A", decay=0.95),
    d_sae=FEATURES,
    optimizer=Adam(lr=1e-3, warmup_steps=100, decay_steps=2_000),
    batch_size=256,
    n_steps=10_000,
)
L1 = {"activation": Relu(), "penalty": ElasticNet(l1=0.1), "control": TargetL0(l0=float(ACTIVE))}
TOP_K = {"activation": TopK(k=ACTIVE)}
ALONG = {"relu": "control.l0", "top-k": "activation.k"}


def members(base: Experiment, seeds: Iterable[int], widths: Iterable[int] = WIDTHS) -> list[Experiment]:
    """Members of both methods and both constraints at every width."""
    return [
        member
        for method in (L1, TOP_K)
        for constraint in (Free(), UnitNorm())
        for member in grid(replace(base, {**method, "constraint": constraint}), {"d_sae": widths, "seed": seeds})
    ]


def at(method: str, constraint: str, width: int, metric: str = "analysis/agreement") -> AtEnd:
    """A metric of the members of one kind, per seed."""
    where: Mapping[str, Any] = {"constraint": (constraint,), "d_sae": (width,)}
    return AtEnd(arm=Arm(along=ALONG[method], group=(), where=where), metric=metric)


def gap(constraint: str) -> Difference:
    """The agreement of TopK less that of L1, with as many latents as features."""
    return Difference(at("top-k", constraint, FEATURES), at("relu", constraint, FEATURES))


def claims() -> list[Claim]:
    """The claims of P7, fixed before the run; an investigation, reported either way."""
    song, suite = "Song et al. 2025; P7", "P7"
    redundant = lambda method, constraint: Difference(
        at(method, constraint, 2 * FEATURES, "analysis/mcc"), at(method, constraint, 2 * FEATURES)
    )
    falls = lambda method: Monotone(
        arm=Arm(along="d_sae", group=(), where={"activation": (method,), "constraint": ("unit-norm",)}),
        metric="analysis/agreement",
    )
    frequent = lambda method: at(method, "unit-norm", FEATURES, "analysis/frequency_correlation")
    named = {"relu": "L1", "top-k": "TopK"}
    return [
        Claim("Free decoder: TopK agrees over seeds by .2 more than L1", AtLeast(gap("free"), 0.2), song),
        Claim("Unit decoder rows halve that gap, at least", AtMost(Ratio(gap("unit-norm"), gap("free")), 0.5), suite),
        *(
            Claim(f"{named[method]}, twice as many latents as features: MCC with truth is .1 above that of seeds",
                  AtLeast(redundant(method, "unit-norm"), 0.1), suite)
            for method in named
        ),
        *(
            Claim(f"{named[method]}: agreement falls with width, Spearman ≤ -.9", AtMost(falls(method), -0.9),
                  "Paulo & Belrose 2025; P7")
            for method in named
        ),
        *(
            Claim(f"{named[method]}: frequent features are found better, Spearman > 0", AtLeast(frequent(method), 0.0),
                  "Song et al. 2025; P7")
            for method in named
        ),
    ]  # fmt: skip


GROUP = ("activation", "constraint")
FIGURES = tuple(
    Profile(metric=metric, x="d_sae", group=GROUP)
    for metric in ("analysis/agreement", "analysis/mcc", "eval/fvu", "eval/l0")
) + (AgreementMatrix(group=("activation", "constraint", "d_sae")),)

sweep = Sweep(
    name="agreement",
    members=members(base, range(16)),
    measures=[Agreement(), Truth(n=65_536)],
    figures=FIGURES,
    claims=claims(),
)

"""Do the latents of child features absorb their parents, and do nested prefixes prevent it?

P4 of the paper suite: Chanin et al. 2024 (arXiv 2409.14507), Nabeshima 2024, Bussmann et al. 2025 (arXiv 2503.17547).
20 orthogonal features in 20 dimensions, active or not: 3 parents, each with 3 children that exclude each other and need
it, and 8 independent ones; 1.12 are active on average. 20 latents; L1 on latents times the norms of their decoder rows,
whose factor a control moves so that L0 is 1.12. Vanilla has one prefix, all latents; Matryoshka has 10 prefixes in each
step, drawn from a Pareto distribution. Two variants: children of the same frequencies that need no parent, and children
five times as large.

3 kinds of data x 2 methods x 5 seeds = 30 members in 6 compiled programs. Claims are about numbers of seeds, as the
suite asks for "at least 4 of 5". Each number is a mean over the 3 parents or 9 children of one dictionary, whose
latents are matched to the features by the largest sum of cosines. "Diagonal" is read as the cosine of parents and
children with their latents, without the independent features, which have a claim of their own.

Result: 7 of 11 claims hold. Vanilla absorbs in part (0 to 67 %, not wholly): a dictionary that absorbs wholly has an L0
of .85, and the control holds L0 near 1.12. Matryoshka absorbs nothing in the two seeds without a dead latent; in two
others a parent has no latent. Both absorb wholly where children are five times as large. (2 CPU cores: 23 min beside
much other work.)

    sae run sweeps/papers/absorption.py
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sae import (
    Adam,
    AtLeast,
    AtMost,
    Claim,
    DrawnMatryoshka,
    ElasticNet,
    Experiment,
    Free,
    Hierarchy,
    Profile,
    Relu,
    SquaredError,
    Sweep,
    TargetL0,
    Within,
    grid,
    replace,
)
from sae.analysis.absorption import Absorption
from sae.study.quantities import Arm, AtEnd, InSeeds

L0 = 1.12
base = Experiment(
    name="absorption",
    data=Hierarchy(),
    d_sae=20,
    activation=Relu(),
    penalty=ElasticNet(l1=0.1, weighted=True),
    control=TargetL0(l0=L0),
    constraint=Free(),
    optimizer=Adam(lr=3e-2, b1=0.5, b2=0.9375, warmup_steps=100, decay_steps=8_000, clip=1.0),
    batch_size=200,
    n_steps=40_000,
)


KINDS = ({}, {"data.nested": False}, {"data.child_magnitude": 5.0})


def members(base: Experiment, seeds: Iterable[int], kinds: Sequence[Mapping[str, Any]] = KINDS) -> list[Experiment]:
    """Members of both methods on each kind of data."""
    methods = (SquaredError(), DrawnMatryoshka(n_prefixes=10, blocks=20))
    return [
        member
        for kind in kinds
        for method in methods
        for member in grid(replace(base, {**kind, "reconstruction": method}), {"seed": seeds})
    ]


def claims(seeds: int) -> list[Claim]:
    """The claims of P4, each in at least so many seeds."""

    def of(method: str, *, nested: bool = True, magnitude: float = 1.0) -> Callable[[str], AtEnd]:
        where = {"reconstruction": (method,), "data.nested": (nested,), "data.child_magnitude": (magnitude,)}
        return lambda metric: AtEnd(arm=Arm(along="control.l0", where=where), metric=metric)

    vanilla, matryoshka = of("squared-error"), of("drawn-matryoshka")
    large = of("drawn-matryoshka", magnitude=5.0)
    made = lambda text, clause: Claim(f"{text}: seeds", AtLeast(InSeeds(clause), seeds), "Bussmann et al. 2025; P4")
    return [
        made("Vanilla: a child's latent writes its parent too, cosine in [.60, .78]",
             Within(vanilla("analysis/parent_cosine"), 0.6, 0.78)),
        made("Vanilla: a parent's latent is silent where a child is, active in ≤ .05",
             AtMost(vanilla("analysis/recall_with_child"), 0.05)),
        made("Vanilla: a parent's latent is active where no child is, in ≥ .95",
             AtLeast(vanilla("analysis/recall_alone"), 0.95)),
        made("Vanilla: FVU ≤ .02", AtMost(vanilla("eval/fvu"), 0.02)),
        made("Vanilla: independent features are found, cosine ≥ .98",
             AtLeast(vanilla("analysis/independent_cosine"), 0.98)),
        made("Matryoshka: parents and children have latents of their own, cosine ≥ .90",
             AtLeast(matryoshka("analysis/family_cosine"), 0.9)),
        made("Matryoshka: a child's latent does not write its parent, absolute cosine ≤ .15",
             AtMost(matryoshka("analysis/parent_cosine_size"), 0.15)),
        made("Matryoshka: a parent's latent is active where a child is, in ≥ .95",
             AtLeast(matryoshka("analysis/recall_with_child"), 0.95)),
        made("Matryoshka: independent features are found, cosine ≥ .98",
             AtLeast(matryoshka("analysis/independent_cosine"), 0.98)),
        made("Control, children that need no parent: vanilla absorption ≤ .05",
             AtMost(of("squared-error", nested=False)("analysis/absorption"), 0.05)),
        made("Expected, and reported either way: with children five times as large Matryoshka absorbs again, ≥ .5",
             AtLeast(large("analysis/absorption"), 0.5)),
    ]  # fmt: skip


GROUP = ("reconstruction", "data.nested")
FIGURES = tuple(
    Profile(metric=f"analysis/{name}", x="data.child_magnitude", group=GROUP)
    for name in ("absorption", "parent_cosine", "family_cosine", "recall_with_child")
)

sweep = Sweep(
    name="absorption",
    members=members(base, range(1, 6)),
    measures=[Absorption()],
    figures=FIGURES,
    claims=claims(4),
)

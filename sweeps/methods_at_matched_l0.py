"""Which method reconstructs best at equal L0, and which finds the true features?

15 methods x 4 targets of L0 x 3 seeds, on natural-image patches and on features in superposition (128 features in 64
dimensions, 3 active): 360 members. Methods with a penalty hold L0 by `TargetL0`; the others have k. Methods are
compared at equal held-out L0, by interpolation along each one's own frontier. All share a learning rate, a batch size
and a length, which favours those that it suits. L2, a KL penalty, and sigmoid or tanh latents set nothing to 0, so they
can reach no target; `TopAfa` finds its own L0.

It takes a quarter of an hour on two cores. At a held-out L0 of 6 the FVU of patches is lowest for BatchTopK, .087
[.086, .088], then JumpReLU, .095, and Gated, .107; L1 has .287. In superposition it is lowest for matching pursuit,
.0093, then MultiTopK and TopK, .053 and .054; L1 has .068. The true features (MMCS) are found best by matching pursuit,
.99, GroupMax, .99, and L1, .98; worst by AbsTopK, .66. On patches the held-out L0 lies up to 18 % below that of
training.

    sae run sweeps/methods_at_matched_l0.py --dry-run
    sae run sweeps/methods_at_matched_l0.py
"""

from sae import (
    L0,
    AbsTopK,
    Adam,
    Arm,
    AtMatched,
    AuxK,
    BatchTopK,
    ElasticNet,
    Experiment,
    Gated,
    GroupMax,
    Hoyer,
    ImagePatches,
    JumpRelu,
    LogPenalty,
    Lp,
    MatchingPursuit,
    Matryoshka,
    MultiTopK,
    Relu,
    SquareRoot,
    Superposition,
    Sweep,
    TanhPenalty,
    TargetL0,
    TopK,
    grid,
    replace,
)
from sae.core.definitions import kind

TARGETS = (2, 4, 8, 16)
SEEDS = range(3)
DATA = (ImagePatches(size=8), Superposition(d_in=64, n_features=128, n_active=3.0))

base = Experiment(
    name="methods_at_matched_l0",
    data=DATA[0],
    d_sae=128,
    optimizer=Adam(lr=2e-3, warmup_steps=100, decay_steps=500),
    dead_after=50_000,
    batch_size=256,
    n_steps=2_500,
)

HELD = {  # a penalty, whose factor follows a target of L0
    "L1": {"activation": Relu(), "penalty": ElasticNet(l1=0.1)},
    "Lp": {"activation": Relu(), "penalty": Lp(weight=0.1, p_start=1.0, p=0.5)},
    "square root": {"activation": Relu(), "penalty": SquareRoot(weight=0.1)},
    "log": {"activation": Relu(), "penalty": LogPenalty(weight=0.1, scale=0.1)},
    "tanh": {"activation": Relu(), "penalty": TanhPenalty(weight=0.1, weighted=False)},
    "Hoyer": {"activation": Relu(), "penalty": Hoyer(weight=0.1)},
    "JumpReLU": {"activation": JumpRelu(), "penalty": L0(weight=0.1)},
    "Gated": {"activation": Gated(), "penalty": ElasticNet(l1=0.1)},
}
KEPT = {  # so many latents
    "TopK": {"activation": TopK(), "auxiliary": AuxK()},
    "AbsTopK": {"activation": AbsTopK(), "auxiliary": AuxK()},
    "MultiTopK": {"activation": MultiTopK(), "auxiliary": AuxK()},
    "GroupMax": {"activation": GroupMax()},
    "BatchTopK": {"activation": BatchTopK(), "auxiliary": AuxK()},
    "Matryoshka": {"activation": BatchTopK(), "auxiliary": AuxK(), "reconstruction": Matryoshka()},
    "matching pursuit": {"activation": MatchingPursuit(k_max=max(TARGETS))},
}


def frontier(method: dict, along: str) -> list[Experiment]:
    """The members of a method."""
    targets = [float(target) for target in TARGETS] if along == "control.l0" else TARGETS
    return grid(replace(base, method), {"data": DATA, along: targets, "seed": SEEDS})


def arm(method: dict, along: str) -> Arm:
    """What the members of a method have."""
    kinds = {"reconstruction": "squared-error"} | {name: kind(choice) for name, choice in method.items()}
    return Arm(along=along, where={name: (one,) for name, one in kinds.items()})


sweep = Sweep(
    name="methods_at_matched_l0",
    members=[
        *(member for method in HELD.values() for member in frontier({**method, "control": TargetL0()}, "control.l0")),
        *(member for method in KEPT.values() for member in frontier(method, "activation.k")),
    ],
    answer=AtMatched(
        arms={
            **{name: arm(method, "control.l0") for name, method in HELD.items()},
            **{name: arm(method, "activation.k") for name, method in KEPT.items()},
        },
        matched="eval/l0",
        at=(3.0, 6.0, 12.0),
        metrics=("eval/fvu", "eval/mmcs", "eval/dead_fraction"),
        group="data",
    ),
)

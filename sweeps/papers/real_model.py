"""Which method serves a real language model: in reconstruction, in the model's own loss, and for probes? Full tier.

P9 of the paper suite: Gao et al. 2024 (arXiv 2406.04093), Rajamanoharan et al. 2024 (2407.14435), Bussmann et al. 2024
and 2025 (2412.06410, 2503.17547), Chanin 2026 (2605.18229), Korznikov et al. 2026 (2602.14111). SmolLM2-135M, the
residual stream after layer 9 (576 wide), contexts of 128 tokens without the first; a million tokens, prose and code in
equal parts, whole documents held out; 4,608 latents.

6 methods x 3 targets of L0 x 3 seeds, and BatchTopK with a decoder frozen at random at an L0 of 32 x 3 seeds: 57
members in 7 compiled programs. L1, JumpReLU and Gated hold L0 by `TargetL0`. Every method has the best of three
learning rates, by held-out FVU at an L0 of 32, as `real_model_middle_rates.py` chose with seed 0; see `RATES`.

Loss recovered is (CE_zero - CE_sae) / (CE_zero - CE_intact), zero ablation of the residual stream at that layer.

Not run yet: 7 PFLOP of matrix products, a minute of a GPU that is kept busy, and 15 hours of two CPU cores.

    sae harvest MODEL PROSE CODE --layer 9 --context 128 --tokens 1200000 --out acts/real_model
    sae run sweeps/papers/real_model.py
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import pandas as pd

from sae import (
    L0,
    Activations,
    Adam,
    AtLeast,
    AtMatched,
    AtMost,
    AuxK,
    BatchTopK,
    Best,
    Claim,
    ElasticNet,
    Experiment,
    Free,
    Frontier,
    Gated,
    JumpRelu,
    Matryoshka,
    Relu,
    Sweep,
    TargetL0,
    TopK,
    grid,
    replace,
)
from sae.core.definitions import kind
from sae.lm.first_letters import FirstLetterAbsorption
from sae.lm.loss_recovered import LossRecovered
from sae.lm.probing import Probing
from sae.study.quantities import Arm, AtEnd, Difference, Matched, Monotone, Ratio
from sae.study.quantities.cells import Cells, check

TARGETS, SEEDS, WIDTH = (16, 32, 64), (1, 2, 3), 576
SOURCE = "P9"

base = Experiment(
    name="real_model",
    data=Activations(path="acts/real_model"),
    d_sae=8 * WIDTH,
    optimizer=Adam(lr=1e-3, warmup_steps=200, decay_steps=800),
    dead_after="200 steps",
    batch_size=1024,
    n_steps=4_000,
)

METHODS = {
    "L1": {"activation": Relu(), "penalty": ElasticNet(l1=0.1), "control": TargetL0()},
    "TopK": {"activation": TopK(), "auxiliary": AuxK()},
    "BatchTopK": {"activation": BatchTopK(), "auxiliary": AuxK()},
    "JumpReLU": {"activation": JumpRelu(), "penalty": L0(weight=0.1), "control": TargetL0()},
    "Gated": {"activation": Gated(), "penalty": ElasticNet(l1=0.1), "control": TargetL0()},
    "Matryoshka": {"activation": BatchTopK(), "auxiliary": AuxK(), "reconstruction": Matryoshka()},
}
FROZEN = {**METHODS["BatchTopK"], "constraint": Free(frozen="decoder")}
# of 2e-3, 4e-3 and 8e-3, as `real_model_middle_rates.py` chose
RATES = {"L1": 8e-3, "TopK": 4e-3, "BatchTopK": 4e-3, "JumpReLU": 8e-3, "Gated": 8e-3, "Matryoshka": 4e-3}


def along(name: str) -> str:
    """The number that decides the L0 of a method."""
    return "control.l0" if "control" in METHODS[name] else "activation.k"


def members(
    base: Experiment, targets: Iterable[int], seeds: Iterable[int], rates: Mapping[str, float] = RATES
) -> list[Experiment]:
    """Every method at every target of L0, with its learning rate."""
    targets, seeds = list(targets), list(seeds)
    made = []
    for name, method in METHODS.items():
        aims = [float(target) for target in targets] if along(name) == "control.l0" else targets
        chosen = replace(base, {**method, "optimizer.lr": rates[name]})
        made += grid(chosen, {along(name): aims, "seed": seeds})
    return made


def frozen(base: Experiment, seeds: Iterable[int]) -> list[Experiment]:
    """BatchTopK at an L0 of 32 with a decoder frozen at random."""
    return grid(replace(base, {**FROZEN, "activation.k": 32, "optimizer.lr": RATES["BatchTopK"]}), {"seed": seeds})


def at_rates(base: Experiment, rates: Iterable[float]) -> Sweep:
    """Every method at an L0 of 32 and several learning rates; the answer is the one with the smallest FVU."""
    rates, members = list(rates), []
    for name, method in METHODS.items():
        aim = 32.0 if along(name) == "control.l0" else 32
        members += grid(replace(base, {**method, along(name): aim}), {"optimizer.lr": rates})
    group = ("activation", "reconstruction")
    answer = Best(metric="eval/fvu", along="optimizer.lr", smallest=True, group=group, also=("eval/l0",))
    return Sweep(name=base.name, members=members, answer=answer)


def arm(name: str, constraint: str = "unit-norm", **where: tuple) -> Arm:
    """The members of a method."""
    kinds = {"reconstruction": "squared-error", "constraint": constraint}
    kinds |= {field: kind(choice) for field, choice in METHODS[name].items()}
    return Arm(along=along(name), group=(), where={field: (one,) for field, one in kinds.items()} | where)


def at_32(name: str, metric: str, constraint: str = "unit-norm") -> AtEnd:
    """A metric of the members of a method that aim at an L0 of 32."""
    return AtEnd(arm=arm(name, constraint, **{along(name): (32,)}), metric=metric)


def reconstruction() -> list[Claim]:
    """Claims (a) and (b): FVU at a held-out L0 of 32."""
    fvu = lambda name: Matched(arm=arm(name), metric="eval/fvu", matched="eval/l0", at=(32.0,))
    over = lambda name: Ratio(fvu(name), fvu("TopK"))
    return [
        Claim("(a) at an L0 of 32 the FVU of L1 is at least 1.15 times TopK's", AtLeast(over("L1"), 1.15), SOURCE),
        *(Claim(f"(b) that of {name} is at most 1.05 times TopK's", AtMost(over(name), 1.05), SOURCE)
          for name in ("JumpReLU", "BatchTopK")),
    ]  # fmt: skip


def loss() -> list[Claim]:
    """Claim (c): loss recovered."""
    recovered = "analysis/loss_recovered"
    top = AtEnd(arm=arm("TopK", **{"activation.k": (64,)}), metric=recovered)
    return [
        *(Claim(f"(c) loss recovered of {name} rises with L0", AtLeast(Monotone(arm=arm(name), metric=recovered), 1.0),
                SOURCE) for name in METHODS),
        Claim("(c) and is at least .9 for TopK at 64", AtLeast(top, 0.9), SOURCE),
    ]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class BestTwo:
    """The gap between the best two methods, over the mean of their reseed noise, seed by seed."""

    metric: str
    """The metric at an L0 of 32; its noise is the column `metric`_noise."""

    def check(self, names: Collection[str]) -> None:
        """Check before training. Raises UserError."""
        for name in METHODS:
            check(at_32(name, self.metric), names)
            check(at_32(name, f"{self.metric}_noise"), names)

    def __call__(self, results: Any) -> Cells:
        """One cell; NaN for a seed that some method lacks."""
        only = lambda cells: next(iter(cells.values()))
        table = lambda metric: pd.DataFrame({name: only(at_32(name, metric)(results)) for name in METHODS})
        values, noise = table(self.metric), table(f"{self.metric}_noise")
        ratios = {}
        for seed, row in values.iterrows():
            first, second = row.nlargest(2).index
            ratios[seed] = (row[first] - row[second]) / noise.loc[seed, [first, second]].mean()
        return {"gap / noise": pd.Series(ratios, dtype=float).where(values.notna().all(axis=1))}


def knowledge() -> list[Claim]:
    """Claims (d) to (f): probing, absorption."""
    one = lambda name, constraint="unit-norm": at_32(name, "analysis/probe_1", constraint)
    absorbed = lambda name: at_32(name, "analysis/letters_absorbed")
    return [
        *(Claim(f"(d) probes on one latent of {name} exceed those of a frozen random decoder by .02",
                AtLeast(Difference(one(name), one("BatchTopK", "free")), 0.02), SOURCE) for name in METHODS),
        Claim("(e) FVU of Matryoshka is at least TopK's",
              AtLeast(Ratio(at_32("Matryoshka", "eval/fvu"), at_32("TopK", "eval/fvu")), 1.0), SOURCE),
        Claim("(e) and its absorption at most .7 times BatchTopK's",
              AtMost(Ratio(absorbed("Matryoshka"), absorbed("BatchTopK")), 0.7), SOURCE),
        Claim("(f) the best two methods differ by less than the reseed noise in probes on five latents",
              AtMost(BestTwo("analysis/probe_5"), 1.0), SOURCE),
    ]  # fmt: skip


def figures() -> list[Frontier]:
    """Reconstruction, loss recovered and probing against L0."""
    both = ("activation.k", "control.l0")
    numbers = ("eval/fvu", "analysis/loss_recovered", "analysis/probe_1")
    return [Frontier(x="eval/l0", y=y, along=both, group=("activation", "reconstruction")) for y in numbers]


ANSWER = AtMatched(
    arms={name: arm(name) for name in METHODS},
    matched="eval/l0",
    at=(32.0,),
    metrics=("eval/fvu", "analysis/loss_recovered", "eval/dead_fraction"),
)

sweep = Sweep(
    name="real_model",
    members=[*members(base, TARGETS, SEEDS), *frozen(base, SEEDS)],
    answer=ANSWER,
    measures=[LossRecovered(n_tokens=8_192), Probing(), FirstLetterAbsorption()],
    figures=figures(),
    claims=[*reconstruction(), *loss(), *knowledge()],
)

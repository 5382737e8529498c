"""What does sparsity cost inside a language model, by method? 9 autoencoders of 2,304 latents on SmolLM2-135M.

L1, TopK and BatchTopK at an L0 of 16, 32 and 64, on the residual stream after layer 9 (576 wide), of prose and of
code. The answer gives FVU, loss recovered and the accuracy of probes on one latent at an equal held-out L0; the report
links a page on which the latents can be read. `make lm` makes the environment, gets the model from the package index,
harvests 300,000 tokens and runs this file.

3 methods x 3 targets of L0 = 9 members in 3 compiled programs; one seed, so differences have no interval.

Every method has its learning rate, of those that `papers/real_model_middle_rates.py` tried. Result, at an L0 of 48: FVU
.195 for L1, .154 for TopK, .143 for BatchTopK; loss recovered .971, .985, .987; probes on one latent .618, .691, .691,
with a noise of .01 to .02 between divisions of documents. (2 idle CPU cores: 12 min with the harvest.)

    make lm
    sae run sweeps/language_model.py --dry-run
"""

from sae import (
    Activations,
    Adam,
    Arm,
    AtMatched,
    AuxK,
    BatchTopK,
    ElasticNet,
    Experiment,
    Frontier,
    NoAuxiliary,
    Relu,
    Sweep,
    TargetL0,
    TopK,
    grid,
    replace,
)
from sae.lm.loss_recovered import LossRecovered
from sae.lm.probing import Probing

L0 = (16, 32, 64)

base = Experiment(
    name="language_model",
    data=Activations(path="acts/language_model"),
    d_sae=2_304,
    activation=TopK(),
    auxiliary=AuxK(),
    optimizer=Adam(lr=4e-3, warmup_steps=100, decay_steps=200),
    dead_after="200 steps",
    batch_size=512,
    n_steps=800,
)
penalized = {"activation": Relu(), "auxiliary": NoAuxiliary(), "penalty": ElasticNet(l1=0.1), "control": TargetL0()}
l1 = replace(base, {**penalized, "optimizer.lr": 8e-3})


def members(base: Experiment, l1: Experiment, targets: tuple[int, ...]) -> list[Experiment]:
    """The three methods at every target of L0."""
    return [
        *grid(l1, {"control.l0": [float(target) for target in targets]}),
        *grid(base, {"activation.k": targets}),
        *grid(replace(base, {"activation": BatchTopK()}), {"activation.k": targets}),
    ]


ARMS = {
    "L1": Arm(along="control.l0", group=(), where={"activation": ("relu",)}),
    "TopK": Arm(along="activation.k", group=(), where={"activation": ("top-k",)}),
    "BatchTopK": Arm(along="activation.k", group=(), where={"activation": ("batch-top-k",)}),
}

NUMBERS = ("eval/fvu", "analysis/loss_recovered", "analysis/probe_1")

sweep = Sweep(
    name="language_model",
    members=members(base, l1, L0),
    answer=AtMatched(arms=ARMS, matched="eval/l0", at=(24.0, 48.0), metrics=(*NUMBERS, "eval/dead_fraction")),
    measures=[LossRecovered(n_tokens=2_048), Probing(splits=3)],
    figures=[Frontier(x="eval/l0", y=y, along=("activation.k", "control.l0"), group=("activation",)) for y in NUMBERS],
)

"""One common test for every choice of a method, the project's own and those that a file brings: each has a line.

Each case trains three members of different seeds and numbers, in one program, and is asked: are all numbers finite; is
a member in lanes the member alone, whose latents lie over four devices; is a restored checkpoint the same to a bit; do
the weights that are kept give the same latents; are dead latents revived; does bfloat16 train; does the program lower
for GPUs and TPUs? Published numbers are in the tests of each kind.

The devices are four threads of a CPU, which must be asked for before jax starts, so this file runs itself in a process
of its own, which prints a line for each case.
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys
import tempfile
import traceback
import typing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import sae
from sae import Adam, Digits, ElasticNet, Experiment, UserError, replace, train
from sae.core import model
from sae.core.definitions import choices, flatten, is_own, unflatten
from sae.core.metrics import Moments, Sums
from sae.engine import cohort, programs, rehearsal
from sae.engine.checkpoints import Checkpoints
from sae.engine.placement import Placement, fetch, make_mesh
from sae.experiment import method, validate

PROCESSES = 2  # the cases are divided between so many, one for each core
BASE = Experiment(
    name="common", data=Digits(), d_sae=48, n_steps=40, batch_size=64, penalty=ElasticNet(l1=0.1),
    optimizer=Adam(lr=3e-3), dead_after=128, n_eval=128,
)  # fmt: skip


@sae.definition
class Shifted(sae.Activation):
    """relu(z - t), a trained t for each latent: a class as a file may bring it."""

    start: float = sae.leaf(0.05, min=0)

    def init(self, d_sae):
        return {"t": jnp.full(d_sae, self.start, jnp.float32)}

    def __call__(self, one, pre_acts):
        return jnp.maximum(pre_acts - one.own["t"][...][:, None], 0)


@sae.definition
class Pull(sae.Auxiliary):
    """Dead latents are pulled up: a class as a file may bring it."""

    weight: float = sae.leaf(0.1, min=0)

    def cost(self, out):
        return self.weight * jnp.sum(jnp.where(out.dead[:, None], jnp.maximum(1 - out.pre_acts, 0), 0)) / out.batch


FOLDER = tempfile.TemporaryDirectory()
GIVEN = Path(FOLDER.name) / "given.safetensors"
ROWS = np.random.default_rng(0).normal(size=(BASE.d_sae, 64)).astype("float32")
ROWS = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)
safetensors.numpy.save_file({"W_enc": ROWS, "W_dec": ROWS}, GIVEN)


@sae.definition
class Logits(sae.Through):
    """A linear map and a tanh follow: a class as a file may bring it."""

    def follows(self, x_hat):
        return 3 * jnp.tanh(jnp.sin(jnp.arange(5 * D_IN)).reshape(5, D_IN) @ x_hat)


NONE = {"penalty": ElasticNet()}
SMALL_ROWS = sae.RandomRows(decoder_norm=0.5, encoder="random", encoder_scale=2.0)
# A class needs one line. Classes of kinds that do not meet in a formula share one: what a case costs is its compiling.
CASES = {
    "what an experiment has unless told": {},
    "TopK, AuxK": {"activation": sae.TopK(k=5), "auxiliary": sae.AuxK(k=6), **NONE},
    "AbsTopK, Cosine": {"activation": sae.AbsTopK(k=5), "reconstruction": sae.Cosine(), **NONE},
    "MultiTopK, Fvu": {"activation": sae.MultiTopK(k=5, form="fvu"), "reconstruction": sae.Fvu(), **NONE},
    "GroupMax, NormalizedMse": {"activation": sae.GroupMax(k=6), "reconstruction": sae.NormalizedMse(), **NONE},
    "BatchTopK, Matryoshka": {
        "activation": sae.BatchTopK(k=5.0), "reconstruction": sae.Matryoshka(widths=(8, 16)), **NONE,
    },
    "TopAfa": {"activation": sae.TopAfa(), **NONE},
    "MatchingPursuit": {"activation": sae.MatchingPursuit(k=5), **NONE},
    "JumpRelu, L0, PrincipalRows": {
        "activation": sae.JumpRelu(),
        "penalty": sae.L0(weight=0.1),
        "initialization": sae.PrincipalRows(),
        "b_dec_init": "mean",
    },
    "JumpRelu, QuadraticL0, PreActivationLoss": {
        "activation": sae.JumpRelu(),
        "penalty": sae.QuadraticL0(target=5.0),
        "auxiliary": sae.PreActivationLoss(weight=0.1),
    },
    "Gated, TargetL0": {"activation": sae.Gated(), "control": sae.TargetL0(l0=5.0)},
    "Sigmoid, FiringRateKL, AxisRows": {
        "activation": sae.Sigmoid(), "penalty": sae.FiringRateKL(), "initialization": sae.AxisRows(),
    },
    "Tanh, ElasticNet, Free, DataRows": {
        "activation": sae.Tanh(),
        "penalty": ElasticNet(l1=0.1, l2=0.1, weighted=True, warmup_steps=3, anneal_steps=38),
        "constraint": sae.Free(b_enc=False),
        "initialization": sae.DataRows(),
        "b_dec_init": "mean",
    },
    "SoftThreshold, SaeLensTargetL0": {
        "activation": sae.SoftThreshold(trained=True), "control": sae.SaeLensTargetL0(l0=5.0),
    },
    "Lp, Muon, UnitNorm": {
        "penalty": sae.Lp(rescaled=True),
        "optimizer": sae.Muon(lr=3e-3, weight_decay=0.1, decay_steps=5, decay="1-sqrt"),
        "constraint": sae.UnitNorm(cosine=0.99),
    },
    "NormalizedL1, Lion, AtMostUnitNorm": {
        "penalty": sae.NormalizedL1(),
        "optimizer": sae.Lion(decay_steps=5, decay="cosine", restarts=1),
        "constraint": sae.AtMostUnitNorm(frozen="encoder"),
    },
    "SquareRoot, Adam, UnitNormNoBias": {
        "penalty": sae.SquareRoot(),
        "optimizer": Adam(lr=3e-3, weight_decay=0.1, clip=1.0, warmup_steps=3, decay_steps=5),
        "constraint": sae.UnitNormNoBias(tied=True),
    },
    "LogPenalty, ScheduleFree, RandomRows": {
        "penalty": sae.LogPenalty(),
        "optimizer": sae.ScheduleFree(lr=3e-4, warmup_steps=3, width_rule="inverse-sqrt"),
        "constraint": sae.Free(),
        "initialization": SMALL_ROWS,
    },
    "TanhPenalty, Ema, GivenWeights": {
        "penalty": sae.TanhPenalty(),
        "average": sae.Ema(decay=0.5),
        "initialization": sae.GivenWeights(path=str(GIVEN)),
    },
    "Hoyer, Resample": {"penalty": sae.Hoyer(), "revival": sae.Resample(every=10, n_candidates=128)},
    "DrawnMatryoshka, SquaredWeights": {
        "reconstruction": sae.DrawnMatryoshka(n_prefixes=4), "auxiliary": sae.SquaredWeights(weight=0.01),
    },
    "GhostGradients": {"auxiliary": sae.GhostGradients()},
    "Transcoder": {"task": sae.Transcoder(skip=True), "apply_b_dec_to_input": False},
    "Crosscoder": {"task": sae.Crosscoder(), "penalty": ElasticNet(l1=0.1, weighted=True)},
    "of a file: an activation, what follows": {"activation": Shifted(), "reconstruction": Logits(weight=0.1)},
    "of a file: an auxiliary": {"auxiliary": Pull()},
}  # fmt: skip


EXAMPLES = BASE.data.load()
D_IN = EXAMPLES.d_in
SAMPLE = jnp.asarray(EXAMPLES.train[:128]).T
BATCHES = jnp.asarray(EXAMPLES.examples(EXAMPLES.train[: 4 * 64])).reshape(4, 64, D_IN).transpose(0, 2, 1)


def parts(one: Experiment) -> tuple[int, ...]:
    """How the task of an experiment divides a row."""
    return (D_IN,) if one.task == sae.Autoencoder() else (40, D_IN - 40)


def varied(one: Experiment) -> Experiment:
    """The experiment with every float leaf a little smaller, and another seed."""
    smaller = jax.tree.map(lambda leaf: 0.97 * leaf if isinstance(leaf, float) else leaf, one)
    return dataclasses.replace(smaller, seed=1)


def apart(a, b) -> float:
    """The largest difference of two trees, relative to 1 + |b|."""
    difference = lambda a, b: float(np.max(np.abs(np.float64(a) - b) / (1 + np.abs(b)), initial=0))
    return max(jax.tree.leaves(jax.tree.map(difference, a, b)))


def finite(tree) -> bool:
    return all(bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves(jax.device_get(tree)))


class Trained:
    """A cohort after some steps, each one call of a compiled program."""

    def __init__(self, members, lanes=1, mesh=None):
        self.plan = cohort.plan(members)
        self.placement = self.plan[0].placement(D_IN, lanes, mesh)
        self.experiments = self.plan[0].stacked(self.placement)
        start = lambda experiment: train.init(experiment, SAMPLE, parts(members[0]))
        state = jax.device_get(jax.vmap(start)(self.plan[0].stacked(Placement(1))))
        self.state, self.n = self.placement.members(state), len(members)
        step = lambda experiments, state, i, x: programs.over_members(
            lambda one: train.step(*one, i, x), (experiments, state), self.placement
        )
        self.step = jax.jit(step)

    @property
    def arguments(self):
        return self.experiments, self.state, jnp.int32(0), BATCHES[0]

    def steps(self, at, n):
        for i in range(at, at + n):
            self.state, self.sums = self.step(self.experiments, self.state, jnp.int32(i), BATCHES[i])
        return self

    @property
    def host(self):
        return fetch(self.state, self.n)


def examine(changes) -> dict:
    base = validate(replace(BASE, changes))
    members = [base, varied(base), dataclasses.replace(base, seed=2)]
    together = Trained(members, lanes=3)
    found: dict = {"programs": len(together.plan)}
    # a program that does not lower for a platform raises here
    together.step.trace(*together.arguments).lower(lowering_platforms=("cuda", "tpu"))

    first = together.steps(0, 2).host
    nothing = Sums.zero(D_IN, BASE.d_sae), Moments.zero(D_IN)
    with tempfile.TemporaryDirectory() as folder:
        kept, state = Checkpoints(Path(folder), print), programs.CohortState(first, *nothing)
        kept.save(2, jax.device_get(state), [])
        kept.close()
        _, restored, _ = Checkpoints(Path(folder), print).restore(
            jax.eval_shape(lambda: jax.tree.map(jnp.asarray, state))
        )
    whole = together.steps(2, 2).host
    found["finite"] = finite((whole, together.sums)) and not whole.diverged.any()
    together.state = jax.tree.map(jnp.asarray, restored.train)
    found["resumed"] = apart(together.steps(2, 2).host, whole)

    second = lambda state: jax.tree.map(lambda leaf: leaf[1:2], state)
    found["alone on four devices"] = apart(
        Trained(members[1:2], mesh=make_mesh(jax.devices(), 4)).steps(0, 4).host, second(whole)
    )

    one = train.trained(members[1], jax.tree.map(jnp.asarray, cohort.unstack(whole, 1)))
    x = np.asarray(SAMPLE.T)[:, : one.d_in]
    own = is_own(type(base.activation))
    activation = members[1].activation if own else unflatten(Experiment, "activation", flatten(members[1]))
    named = jax.tree.map(np.asarray, model.parameters(one))
    latents = np.asarray(one.encode(x))
    again = model.from_parameters(named, activation, base.apply_b_dec_to_input)
    found["read back"] = apart(np.asarray(again.encode(x)), latents)
    found["each example alone"] = apart(np.asarray(one.encode(x[:5])), latents[:5])

    state = jax.tree.map(jnp.asarray, cohort.unstack(whole, 0))
    rough, fine = (losses(base, state, precision) for precision in ("bfloat16", "float32"))
    found["bfloat16"] = apart(rough, fine) if finite((rough, fine)) else None
    found["revived"] = revived(base, jax.tree.map(jnp.asarray, cohort.unstack(whole, 0)))
    return found


def losses(one: Experiment, state, precision: str) -> tuple:
    """The loss of a batch and the norm of its gradient; not compiled as a whole, so that cases share the parts."""
    given = jax.tree.map(lambda leaf: leaf, state.sae)
    given.precision = precision
    value, gradient = jax.value_and_grad(lambda given: train.loss(given, one, jnp.int32(4), BATCHES[0])[0])(given)
    return value, jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))


def revived(base: Experiment, state) -> str | bool:
    """Whether half of the latents, said to be dead, are brought back: all at once, or by a gradient."""
    dead = jnp.arange(BASE.d_sae) % 2 == 0
    if not isinstance(base.auxiliary, sae.NoAuxiliary | sae.SquaredWeights):  # which know of no dead latent
        cost = lambda one: base.auxiliary.cost(train.terms(one, base, jnp.int32(4), BATCHES[0], 1.0, dead)[1])
        gradient = jax.grad(cost)(state.sae)
        reached = jnp.abs(gradient.b_enc[...]) > 0
        return bool(jnp.mean(reached[dead]) > 0.5) and finite(gradient)
    try:
        base = validate(replace(base, {"revival": sae.Resample(every=10, n_candidates=128)}))
    except UserError as error:
        return str(error)
    state = dataclasses.replace(state, silent=jnp.where(dead, 10**6, 0))
    after = train.revive(base, state, jnp.int32(10), BATCHES[:2])
    moved = jnp.any(after.sae.W_dec[...] != state.sae.W_dec[...], axis=1)
    return bool(jnp.all(moved == dead)) and bool(jnp.all(after.silent == 0)) and finite(after)


def main(part: int) -> None:
    for name in list(CASES)[part::PROCESSES]:
        try:
            found = examine(CASES[name])
        except Exception:
            found = {"failed": traceback.format_exc()}
        print(json.dumps({"case": name, **found}), flush=True)


@pytest.fixture(scope="module")
def found():
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling is nearly all that this costs
    }
    command = lambda part: [sys.executable, __file__, str(part)]
    parts = [subprocess.Popen(command(i), env=environment, stdout=subprocess.PIPE, text=True) for i in range(PROCESSES)]
    lines = [line for part in parts for line in part.communicate()[0].splitlines()]
    return {line["case"]: line for line in map(json.loads, lines)}


@pytest.mark.parametrize("case", CASES)
def test_a_choice_trains_like_every_other(found, case):
    one = found[case]
    assert "failed" not in one, one["failed"]
    assert one["programs"] == 1, "a number that may vary starts another program"
    assert one["finite"] and one["resumed"] == 0
    assert one["alone on four devices"] < 1e-3
    assert one["read back"] == 0 and one["each example alone"] < 1e-5
    assert one["bfloat16"] is not None and one["bfloat16"] < 0.05
    assert one["revived"] is True or "revival" in one["revived"], one["revived"]


@pytest.mark.parametrize("case", CASES)
def test_a_choice_is_read_back_from_its_names_and_rehearsed(case):
    """Every leaf may be a tracer, and every method gives the shapes that the contract wants."""
    one = validate(replace(BASE, CASES[case]))
    for name, choice in method(one).items():
        if not is_own(type(choice)):
            assert unflatten(Experiment, name, flatten(one)) == choice
    traced = jax.tree.unflatten(jax.tree.structure(one), range(len(jax.tree.leaves(one))))
    assert [type(choice) for choice in method(traced).values()] == [type(choice) for choice in method(one).values()]
    jax.eval_shape(functools.partial(rehearsal._method, parts=parts(one)), one)


def test_every_choice_has_its_line():
    hints = typing.get_type_hints(Experiment)
    known = {cls for name in method(BASE) for cls in choices(hints[name]) if not is_own(cls)}
    assert all(len(cls.__doc__) > 10 for cls in known)
    found = {type(choice) for changes in CASES.values() for choice in method(replace(BASE, changes)).values()}
    assert known <= found, f"a line in CASES is missing for {sorted(cls.__name__ for cls in known - found)}"


if __name__ == "__main__":
    main(int(sys.argv[1]))

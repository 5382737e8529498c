"""A user's own class for every choice, in a definition file: trained, swept, measured, saved, resumed, read back."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import sae
from sae import Experiment, Sweep, UserError
from sae.analysis.small_latents import SmallLatents
from sae.cli.main import main
from sae.core import model
from sae.core.definitions import kind
from sae.experiment import own_files
from sae.study.definition_files import load_file
from sae.study.sweep import as_sweep

ROOT = Path(__file__).parents[1]

FILE = '''
"""Do nine choices of one's own train? One class each.

sae run own.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sae


@sae.definition
class Offset(sae.Activation):
    """relu(z - t) for a trained t per latent, and a trained scale for all."""

    start: float = sae.leaf(0.05, min=0)

    def init(self, d_sae):
        return {"t": jnp.full(d_sae, self.start, jnp.float32), "scale": jnp.ones(())}

    def __call__(self, one, pre_acts):
        return one.own["scale"][...] * jnp.maximum(pre_acts - one.own["t"][...][:, None], 0)


@sae.definition
class Absolute(sae.Reconstruction):
    """Σ sqrt(e² + ε), ε a leaf."""

    epsilon: float = sae.leaf(1e-3, min=0)

    def __call__(self, one, latents, y, step):
        x_hat = one.W_dec[...].T @ latents + one.b_dec[...][:, None]
        return jnp.sum(jnp.sqrt((x_hat - y) ** 2 + self.epsilon)) / y.shape[1], x_hat


@sae.definition
class Log(sae.Penalty):
    """Σ log(1 + f), mean over examples."""

    weight: float = sae.leaf(0.1, min=0, arm=True)

    def cost(self, out):
        return self.weight * jnp.sum(jnp.log1p(out.charged)) / out.batch


@sae.definition
class Halving(sae.Control):
    """Half the penalty in the first steps."""

    steps: int = sae.leaf(5, min=0)

    def init(self):
        return {"seen": jnp.zeros((), jnp.int32)}

    def factor(self, state):
        return jnp.where(state["seen"] < self.steps, 0.5, 1.0)

    def settle(self, state, out):
        return {"seen": state["seen"] + 1}

    def numbers(self, state):
        return {"halving": self.factor(state)}


@sae.definition
class Shrink(sae.Auxiliary):
    """The mean of squared pre-activations of dead latents."""

    weight: float = sae.leaf(1e-3, min=0)

    def cost(self, out):
        return self.weight * jnp.sum(jnp.where(out.dead[:, None], out.pre_acts, 0.0) ** 2) / out.batch


@sae.definition
class AtMostOne(sae.Constraint):
    """Decoder norms of at most 1."""

    def project(self, one):
        W = one.W_dec[...]
        norms = jnp.linalg.norm(W, axis=1, keepdims=True)
        return sae.core.model.replace(one, W_dec=W / jnp.maximum(norms, 1.0))


@sae.definition
class Redraw(sae.Revival):
    """Random directions for the dead."""

    every: int = sae.static(20, min=1)

    def steps(self):
        return (self.every, 2 * self.every)

    def candidates(self):
        return 64

    def __call__(self, key, one, opt_state, dead, candidates):
        rows = jax.random.normal(key, one.W_dec.shape) / one.W_dec.shape[1] ** 0.5
        return sae.core.model.replace(one, W_dec=jnp.where(dead[:, None], rows, one.W_dec[...])), opt_state


@sae.definition
class Mean(sae.Average):
    """The mean of all steps from a share of training on is too simple: of all steps."""

    def init(self, one):
        return jax.tree.map(jnp.zeros_like, one), jnp.zeros(())

    def settle(self, state, one):
        return jax.tree.map(jnp.add, state[0], one), state[1] + 1

    def weights(self, state, one):
        return jax.tree.map(lambda total: total / state[1], state[0])


@sae.definition
class Momentum(sae.Optimizer):
    """SGD with momentum."""

    lr: float = sae.leaf(0.01, min=0)
    momentum: float = sae.leaf(0.9, min=0, max=1)

    def transform(self, n_steps):
        return optax.chain(optax.trace(self.momentum), optax.scale(-1.0), optax.scale_by_learning_rate(-self.lr))


@sae.definition
class Noise:
    """Gaussian rows."""

    n: int = sae.static(300)

    def load(self):
        x = np.random.default_rng(0).normal(size=(self.n, 16)).astype(np.float32)
        return sae.rows(x[:-50], x[-50:], "none", "noise")


base = sae.Experiment(
    name="own", data=Noise(), d_sae=24, n_steps=N_STEPS, batch_size=32, dead_after=64,
    activation=Offset(), reconstruction=Absolute(), penalty=Log(), control=Halving(), auxiliary=Shrink(),
    constraint=AtMostOne(), revival=Redraw(), average=Mean(), optimizer=Momentum(),
)
axes = {"activation.start": (0.0, 0.1), "penalty.weight": (0.0, 0.2), "optimizer.lr": (0.001, 0.003)}
sweep = sae.Sweep(name="own", members=sae.grid(base, axes))
'''


def write(folder: Path, n_steps: int = 60) -> Path:
    path = folder / "own.py"
    path.write_text(FILE.replace("N_STEPS", str(n_steps)))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The run of a file whose nine choices, and its data, are its own."""
    folder = tmp_path_factory.mktemp("own")
    assert main(["run", str(write(folder)), "--out", str(folder / "run"), "--wandb", "off"]) == 0
    return folder


def test_it_trains_in_one_program_and_its_leaves_are_swept(folder):
    results = sae.load(folder / "run")
    members = results.members
    assert list(members.status) == ["finished"] * 8 and len(results.cohorts) == 1
    assert set(members["activation"]) == {"offset"} and set(members["activation.start"]) == {0.0, 0.1}
    assert np.isfinite(members["eval/fvu"]).all() and members["eval/fvu"].nunique() == 8
    halving = results.history.groupby("step")["train/halving"].first()
    assert halving.iloc[0] == 0.5 and halving.iloc[-1] == 1.0


def test_its_penalty_is_an_arm_of_the_report(folder):
    assert (folder / "run/report.html").stat().st_size > 10_000
    assert "penalty.weight" in sae.load(folder / "run").definition["arms"]


def test_its_parameters_are_kept_by_name_and_read_back(folder):
    one = sae.load(folder / "run").sae(3)
    assert kind(one.activation) == "offset" and one.activation.start == 0.0
    parameters = model.parameters(one)
    assert {"own.t", "own.scale"} < parameters.keys() and parameters["own.t"].shape == (24,)
    assert not np.array_equal(parameters["own.t"], np.zeros(24)), "thresholds were trained"
    x = np.random.default_rng(1).normal(size=(5, 16)).astype(np.float32)
    z = x @ np.asarray(parameters["W_enc"]).T - np.asarray(parameters["W_enc"] @ parameters["b_dec"])
    latents = parameters["own.scale"] * np.maximum(z + parameters["b_enc"] - parameters["own.t"], 0)
    np.testing.assert_allclose(one.encode(x), latents, atol=1e-5)


def test_a_folder_is_data_and_its_file_must_be_loaded_by_hand(folder):
    """Another process knows the class only after it has run the file itself."""
    code = f"""
    import sae
    results = sae.load({str(folder / "run")!r})
    print(len(results.members))
    try:
        results.sae(0)
    except sae.UserError as error:
        print(error)
    from sae.study.definition_files import load_file
    load_file(__import__("pathlib").Path({str(folder / "own.py")!r}))
    print(type(results.sae(0).activation).__name__, type(results.source(0)).__name__)
    """
    run = [sys.executable, "-c", textwrap.dedent(code)]
    lines = subprocess.run(run, capture_output=True, text=True, check=True, cwd=ROOT).stdout.splitlines()
    assert lines[0] == "8" and lines[2] == "Offset Noise"
    missing = f"'offset' is a class of {folder / 'own.py'}, which is not loaded"
    assert lines[1] == f"activation: {missing}; import it first, or name it after the folder"


def test_a_report_in_another_process_takes_the_file_and_without_it_says_which_is_missing(folder):
    command = [sys.executable, "-m", "sae.cli", "report", str(folder / "run")]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    pages, said = [], []
    for more in ([], [str(folder / "own.py")]):
        done = subprocess.run(
            [*command, *more, "-o", "page.html"], env=env, cwd=folder, check=True, capture_output=True
        )
        pages.append((folder / "page.html").read_text())
        said.append(done.stdout.decode())
    assert f"is a class of {folder / 'own.py'}, which is not loaded, so the page lacks dictionaries\n" in said[0]
    assert f"to show them, name it: sae report {folder / 'run'} {folder / 'own.py'}\n" in said[0]
    assert "not loaded" not in said[1]
    missing = "which is not loaded; import it first, or name it after the folder"
    assert missing in pages[0] and missing not in pages[1]


@pytest.mark.long
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path):
    """SIGTERM after the first checkpoint, and the same command again, beside a run that was not stopped."""
    write(tmp_path, n_steps=6_000)
    command = [
        sys.executable,
        "-m",
        "sae.cli",
        "run",
        "own.py",
        "--wandb",
        "off",
        "--no-report",
        "--optimizer.lr",
        "0.001",
    ]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    start = lambda out: subprocess.Popen(
        [*command, "--out", out, "--checkpoint-minutes", "0.0005"], cwd=tmp_path, env=env, stdout=-3, stderr=-3
    )
    stopped = start("stopped")
    for _ in range(1_200):
        if any((tmp_path / "stopped/cohorts/000/checkpoints").glob("[0-9]*")) or stopped.poll() is not None:
            break
        time.sleep(0.05)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait() == 143, "it was stopped while it trained"
    assert start("stopped").wait() == 0 and start("whole").wait() == 0
    load_file(tmp_path / "own.py")
    one, two = sae.load(tmp_path / "stopped"), sae.load(tmp_path / "whole")
    for i in range(4):
        a, b = model.parameters(one.sae(i)), model.parameters(two.sae(i))
        assert all(np.array_equal(a[name], b[name]) for name in b) and a.keys() == b.keys()
    assert one.history.equals(two.history)


def test_a_bare_function_of_the_pre_activations_is_an_activation(tmp_path, tiny, quiet):
    @sae.definition
    class Shift:
        """relu(z - t)"""

        t: float = sae.leaf(0.1, min=0)

        def __call__(self, z):
            return jnp.maximum(z - self.t, 0)

    members = sae.grid(sae.replace(tiny, {"activation": Shift()}), {"activation.t": (0.1, 1)})
    sweep = Sweep(name="shift", members=members, measures=[SmallLatents()])
    results = sae.run(sweep, out=tmp_path / "run", wandb="off", console=quiet, report=True)
    assert (
        np.isfinite(results.members.filter(like="analysis/")).all(axis=None)
        and "no report" not in quiet.file.getvalue()
    )
    assert (results.folder / "report.html").stat().st_size > 10_000
    assert len(results.cohorts) == 1 and results.members["eval/l0"].is_monotonic_decreasing
    assert results.sae(1).activation.t == 1.0


@sae.definition
class BatchLargest(sae.Activation):
    """The k · batch largest of whatever batch it sees."""

    k: int = sae.leaf(4)

    def __call__(self, one, pre_acts):
        f = jnp.maximum(pre_acts, 0)
        least = jnp.sort(f.ravel())[f.size - self.k * f.shape[1]]
        return jnp.where(f >= least, f, 0.0)


def test_held_out_batches_are_never_padded(tiny, tmp_path, quiet):
    """397 held-out digits are less than a batch: as many latents are active as k says, and fvu is that of the rows."""
    one = sae.replace(tiny, {"activation": BatchLargest(), "penalty.l1": 0.0})
    results = sae.run(one, out=tmp_path / "run", wandb="off", console=quiet)
    member = results.members.iloc[0]
    assert member["eval/l0"] == pytest.approx(4.0, abs=1e-6)
    data = one.data.load()
    x = data.held_out
    error = float(np.sum((results.sae(0)(x) - x) ** 2) / np.sum((x - x.mean(0)) ** 2))
    assert member["eval/fvu"] == pytest.approx(error, rel=1e-4)


@sae.definition
class OldPenalty:
    """The contract of before: no base class, three arguments."""

    def __call__(self, latents, norms, step):
        return jnp.sum(latents)


@sae.definition
class WrongBase(sae.Penalty):
    """A penalty in the place of an activation."""


@sae.definition
class TwoArguments:
    """A bare function of two arguments."""

    def __call__(self, one, pre_acts):
        return pre_acts


@dataclasses.dataclass
class NotFrozen:
    """A plain dataclass that can change."""

    def __call__(self, pre_acts):
        return pre_acts


@dataclasses.dataclass(frozen=True)
class Plain(sae.Activation):
    """A plain dataclass derived from a kind: no pytree."""

    def __call__(self, sae, pre_acts):
        return pre_acts


class Undecorated(sae.Activation):
    """No sae.definition."""


@sae.definition
class Relu(sae.Activation):
    """A name of the project's."""


def made(base: type, name: str, function) -> object:
    return sae.definition(type("Mine", (base,), {name: function, "__module__": __name__}))()


def numbers(found) -> object:
    return made(sae.Control, "numbers", lambda self, state: found)


WRONG = {
    "control: Mine.numbers gave {l0: .*, allowed: names that no metric has, such as my_l0": (
        "control", lambda: numbers({"l0": jnp.zeros(())}),
    ),
    r"control: Mine.numbers gave .*, allowed: a dict of numbers \[\] by name": (
        "control", lambda: numbers({"mine": jnp.zeros(3)}),
    ),
    r"activation: Mine.init gave {t: 1.0}, allowed: a dict of arrays": (
        "activation", lambda: made(sae.Activation, "init", lambda self, d_sae: {"t": 1.0}),
    ),
    "penalty: Mine.cost is not written; see Penalty in sae/methods/contract.py": (
        "penalty", lambda: made(sae.Penalty, "costs", lambda self, out: 0.0),
    ),
    "penalty: got OldPenalty.., allowed: .*ElasticNet, .*, or a class of your own .* derived from sae.Penalty": (
        "penalty", lambda: OldPenalty(),
    ),
    "activation: TwoArguments.__call__ failed on a batch of 4 .* missing 1 required positional argument: 'pre_acts'": (
        "activation", lambda: TwoArguments(),
    ),
    "activation: got NotFrozen.., allowed: .* made with sae.definition and derived from sae.Activation": (
        "activation", lambda: NotFrozen(),
    ),
    "data: got .*, allowed: .* made with sae.definition and derived from sae.Source": (
        "data", lambda: Undecorated(),
    ),
    "activation: got WrongBase.*, allowed: .* derived from sae.Activation": ("activation", lambda: WrongBase()),
    "activation: got Plain.*, allowed: .* or Plain decorated with sae.definition": ("activation", lambda: Plain()),
    "activation: got .*, allowed: .* or Undecorated decorated with sae.definition": (
        "activation", lambda: Undecorated(),
    ),
    "activation: got .*Relu.*, allowed: .*, or an instance, Relu": ("activation", lambda: sae.Relu),
    "activation: Relu is a name of the project's": ("activation", lambda: Relu()),
    "activation: Mine.__call__ takes .z., allowed: .sae, pre_acts": (
        "activation", lambda: made(sae.Activation, "__call__", lambda self, z: z),
    ),
    r"activation: Mine.__call__ gave an array \[4\] of float32, allowed: an array \[d_sae, batch\] = \[48, 4\]": (
        "activation", lambda: made(sae.Activation, "__call__", lambda self, one, z: z[0]),
    ),
    r"activation: Mine.init gave .*, allowed: a dict of arrays \[d_sae, ...\] or \[\] by name, d_sae = 48": (
        "activation", lambda: made(sae.Activation, "init", lambda self, d_sae: {"t": jnp.zeros(3)}),
    ),
    r"penalty: Mine.cost gave an array \[48\] of float32, allowed: an array \[\]": (
        "penalty", lambda: made(sae.Penalty, "cost", lambda self, out: jnp.sum(out.latents, axis=1)),
    ),
    "penalty: Mine.cost failed on a batch of 4 .*, test_own_choices.py, line .*: it needs the value of a number": (
        "penalty", lambda: made(sae.Penalty, "cost", lambda self, out: 1.0 if out.latents[0, 0] > 0 else 0.0),
    ),
    "penalty: Mine.cost failed on a batch of 4 .*, test_own_choices.py, line .*: ZeroDivisionError: division by zero": (
        "penalty", lambda: made(sae.Penalty, "cost", lambda self, out: 1 / 0),
    ),
    "auxiliary: Mine.cost takes .a, b., allowed: .out": (
        "auxiliary", lambda: made(sae.Auxiliary, "cost", lambda self, a, b: 0.0),
    ),
    "control: Mine.settle gave {}, allowed: the same as it was given, {s: an array": (
        "control", lambda: sae.definition(
            type("Mine", (sae.Control,), {
                "init": lambda self: {"s": jnp.zeros(())},
                "settle": lambda self, state, out: {},
                "__module__": __name__,
            })
        )(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_base_arity_or_shape_is_one_line_before_anything_is_written(message, tiny, tmp_path, quiet):
    name, make = WRONG[message]
    with pytest.raises(UserError, match=message) as raised:
        sae.run(sae.replace(tiny, {name: make()}), out=tmp_path / "run", wandb="off", console=quiet)
    assert "\n" not in str(raised.value) and not (tmp_path / "run").exists()


def test_own_files_are_known_by_field_and_kind(folder):
    definition = load_file(folder / "own.py")
    member = as_sweep(definition).members[0]
    assert isinstance(member, Experiment)
    assert own_files(member)["activation offset"] == str(folder / "own.py")
    assert len(own_files(member)) == 10


def test_a_normalisation_that_does_not_exist_is_refused():
    x = np.random.default_rng(0).normal(size=(20, 4))
    with pytest.raises(UserError, match="mine: normalize: got 'center'; close names: centre"):
        sae.rows(x[:10], x[10:], "center", "mine")
    with pytest.raises(UserError, match="Undecorated is not a definition; decorate the class with sae.definition"):
        sae.replace(Undecorated(), {"t": 1.0})


def test_two_classes_of_one_name_in_one_sweep_are_refused(tiny):
    one, two = (made(sae.Penalty, "cost", lambda self, out, n=n: jnp.sum(out.latents) * n) for n in (1, 2))
    members = [sae.replace(tiny, {"penalty": one}), sae.replace(tiny, {"penalty": two})]
    with pytest.raises(UserError, match="penalty: two classes are called Mine; rename one of them"):
        as_sweep(Sweep(name="twice", members=members))


def test_a_class_that_was_defined_again_is_the_one_that_reads(folder, tmp_path):
    """As in a notebook whose cell has run twice, or after the file was edited and loaded again."""
    edited = tmp_path / "own.py"
    edited.write_text((folder / "own.py").read_text().replace("jnp.maximum(pre_acts -", "2 * jnp.maximum(pre_acts -"))
    x = np.random.default_rng(1).normal(size=(5, 16)).astype(np.float32)
    load_file(folder / "own.py")
    before = sae.load(folder / "run").sae(0).encode(x)
    shutil.copy(edited, folder / "own.py")
    load_file(folder / "own.py")
    np.testing.assert_allclose(sae.load(folder / "run").sae(0).encode(x), 2 * before, rtol=1e-6)


def test_files_of_one_name_in_two_folders_are_two(tmp_path):
    files = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        member = as_sweep(load_file(write(tmp_path / name))).members[0]
        files.append(own_files(member)["penalty log"])
    assert files == [str(tmp_path / "a/own.py"), str(tmp_path / "b/own.py")]

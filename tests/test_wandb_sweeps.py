"""Sweeps that W&B steers: the YAML, the one run of an agent by its environment, and wandb's own agent end to end."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from test_cli import SWEEP, TINY
from wandb_server import WandbServer

import sae
import sae.cli.main
import sae.cli.run
from sae import ElasticNet, Experiment, Sweep, TopK, grid
from sae.cli.overrides import override
from sae.core.definitions import flatten
from sae.core.types import UserError
from sae.study.definition_files import load_file
from sae.study.sweep import as_sweep
from sae.wandb import sink
from sae.wandb import sweeps as wandb_sweeps
from sae.wandb.sweeps import Options, read_trial, sweep_yaml

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
FILE = Path("sweep.py")


@pytest.fixture(autouse=True)
def no_agent(monkeypatch, tmp_path):
    """A folder with a sweep file, and no key, settings or agent of the person who runs the tests."""
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", f"{BIN}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    FILE.write_text(SWEEP.replace("0.0, 0.1, 0.5", "0.01, 1.0"))
    Path("tiny.py").write_text(TINY)


def command(*argv, env=None) -> subprocess.CompletedProcess:
    done = subprocess.run([*map(str, argv)], env=os.environ | (env or {}), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture
def fails(capsys, monkeypatch):
    """The one line with which a command fails, exit code 1."""

    def fails(*argv, env=None) -> str:
        with monkeypatch.context() as patch:
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            assert sae.cli.main.main([*map(str, argv)]) == 1
        out, err = capsys.readouterr()
        (line,) = [line for line in err.splitlines() if line]
        assert line.startswith("sae: ") and "Traceback" not in out
        return line

    return fails


def parsed(sweep, **options) -> dict:
    return yaml.safe_load(sweep_yaml(sweep, FILE, Options(**options), "Why?"))


@pytest.fixture
def sweep(tiny):
    axes = {
        "d_sae": (32, 48),
        "penalty.l1": (0.01, 0.1, 1.0),
        "optimizer.lr": (1e-3, 3e-3),
        "b_dec_init": ("zero", "mean"),
    }
    return Sweep(name="axes", members=grid(tiny, axes))


# the YAML


def test_a_grid_has_every_value_of_every_axis(sweep):
    assert parsed(sweep) == {
        "name": "axes",
        "project": "sparsity-lab",
        "description": "Why?",
        "program": "sweep.py",
        "method": "grid",
        "command": ["${env}", "sae", "agent-run", "sweep.py", "${args}"],
        "parameters": {
            "d_sae": {"values": [32, 48]},
            "b_dec_init": {"values": ["zero", "mean"]},
            "penalty.l1": {"values": [0.01, 0.1, 1.0]},
            "optimizer.lr": {"values": [1e-3, 3e-3]},
        },
    }


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_floats_become_ranges_and_all_else_stays_values(sweep, method):
    config = parsed(sweep, method=method, metric="eval/mmcs", goal="maximize", project="mine")
    assert config["method"] == method and config["project"] == "mine" and config["run_cap"] == len(sweep.members) == 24
    assert config["metric"] == {"name": "eval/mmcs", "goal": "maximize"}
    assert config["parameters"] == {
        "d_sae": {"values": [32, 48]},
        "b_dec_init": {"values": ["zero", "mean"]},
        "penalty.l1": {"distribution": "log_uniform_values", "min": 0.01, "max": 1.0},
        "optimizer.lr": {"distribution": "uniform", "min": 1e-3, "max": 3e-3},  # less than a factor of 10
    }


def test_a_range_that_holds_zero_is_not_logarithmic(tiny):
    config = parsed(Sweep(name="zero", members=grid(tiny, {"penalty.l1": (0.0, 0.1, 10)})), method="random")
    assert config["parameters"] == {"penalty.l1": {"distribution": "uniform", "min": 0.0, "max": 10.0}}
    assert "metric" not in config


def test_what_is_not_a_number_survives_the_yaml(tiny):
    axes = {"n_eval": (None, 100), "apply_b_dec_to_input": (True, False), "penalty.l1": (1e-9, 3e-5), "seed": range(2)}
    parameters = parsed(Sweep(name="odd", members=grid(tiny, axes)))["parameters"]
    assert {name: tuple(axis["values"]) for name, axis in parameters.items()} == {**axes, "seed": (0, 1)}


def test_a_sweep_of_arms_is_no_grid_but_can_be_sampled(tiny):
    arms = [
        *grid(tiny, {"penalty.l1": (0.1, 1.0)}),
        *grid(sae.replace(tiny, {"penalty.l1": 0.0}), {"penalty.l2": (0.1, 2.0)}),
    ]
    sweep = Sweep(name="arms", members=arms)
    with pytest.raises(UserError, match=r"4 members.* all of 3 penalty.l1 x 3 penalty.l2 = 9; use --method random"):
        sweep_yaml(sweep, FILE, Options())
    text = sweep_yaml(sweep, FILE, Options(method="random"))
    assert "# The 4 members of that file are not a full grid of these axes.\n" in text
    assert set(yaml.safe_load(text)["parameters"]) == {"penalty.l1", "penalty.l2"}


def test_what_wandb_cannot_express_is_refused(tiny):
    with pytest.raises(UserError, match="varies nothing"):
        sweep_yaml(tiny, FILE, Options())
    mixed = Sweep(name="mixed", members=[tiny, sae.replace(tiny, {"activation": TopK(k=5)})])
    with pytest.raises(UserError, match="only some members have 'activation.k'"):
        sweep_yaml(mixed, FILE, Options(method="random"))


def test_at_a_target_l0_the_coefficient_is_no_axis_and_the_metric_fines_a_miss(sweep):
    text = sweep_yaml(sweep, FILE, Options(method="bayes", target_l0=12.0))
    config = yaml.safe_load(text)
    assert config["metric"] == {"name": "sweep/fvu_at_l0", "goal": "minimize"}
    assert config["run_cap"] == 8 and "until L0 is 12. " in text
    assert config["parameters"] == {
        "d_sae": {"values": [32, 48]},
        "b_dec_init": {"values": ["zero", "mean"]},
        "optimizer.lr": {"distribution": "uniform", "min": 1e-3, "max": 3e-3},
        "control": {"value": "target-l0"},
        "control.l0": {"value": 12.0},
        "penalty.l1": {"value": 0.1},  # the middle one
    }


def test_two_coefficients_and_a_control_of_the_files_own(tiny):
    controlled = sae.replace(tiny, {"control": sae.TargetL0(l0=5.0, gain=2.0)})
    sweep = Sweep(name="two", members=grid(controlled, {"penalty.l1": (0.1, 0.2), "penalty.l2": (0.0, 0.2)}))
    parameters = parsed(sweep, target_l0=9.0)["parameters"]
    assert parameters == {
        "penalty.l1": {"values": [0.1, 0.2]},
        "penalty.l2": {"values": [0.0, 0.2]},
        "control": {"value": "target-l0"},
        "control.l0": {"value": 9.0},
    }


def test_a_target_l0_that_no_control_can_reach_is_refused(tiny):
    def fails(base, axes):
        with pytest.raises(UserError) as error:
            sweep_yaml(Sweep(name="x", members=grid(base, axes)), FILE, Options(target_l0=9.0))
        return str(error.value)

    assert "top-k sets L0 by activation.k" in fails(sae.replace(tiny, {"activation": TopK(k=4)}), {"seed": (0, 1)})
    zero = sae.replace(tiny, {"penalty.l1": 0.0})
    assert "multiplies penalty.l1 and penalty.l2, and all are 0" in fails(zero, {"seed": (0, 1)})
    assert "nothing else varies" in fails(tiny, {"penalty.l1": (0.1, 0.2)})


def test_the_least_fvu_is_said_to_be_the_least_sparse(sweep):
    said = "# The least FVU has the least sparsity; --target-l0 L0 compares at one L0.\n"
    assert said in sweep_yaml(sweep, FILE, Options(method="bayes", metric="eval/fvu"))
    assert said not in sweep_yaml(sweep, FILE, Options(method="bayes", metric="eval/dead"))


def test_the_fvu_at_a_target_is_worth_no_miss():
    configs = [{"control": "target-l0", "control.l0": 20.0}] * 4
    values = {"eval/fvu": np.array([0.2, 0.15, 0.3, np.nan]), "eval/l0": np.array([20.0, 40.0, 0.0, np.nan])}
    (key, got), *none = sink.at_target(values, configs).items()
    assert key == "sweep/fvu_at_l0" and not none
    np.testing.assert_allclose(got, [0.2, 0.15 + np.log(2), 0.3 + np.log(2000), np.nan])
    assert sink.at_target(values, [{"control": "as-written"}] * 4) == {}


PUBLISHED = sorted((ROOT / "sweeps").glob("*.py"))


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda p: p.stem)
def test_every_published_sweep_has_a_yaml(path):
    """A sweep over methods has none: W&B gives every run all names, and methods have different ones."""
    definition = load_file(path)
    if path.stem in ("methods_at_matched_l0", "language_model", "language_model_small"):
        with pytest.raises(sae.UserError, match="only some members have .*; use a file for each choice"):
            sweep_yaml(definition, path, Options(method="bayes", metric="eval/fvu"))
        return
    config = yaml.safe_load(sweep_yaml(definition, path, Options(method="bayes", metric="eval/fvu")))
    fields = flatten(as_sweep(definition).members[0])
    assert config["parameters"] and set(config["parameters"]) <= set(fields)


def test_sweep_config_prints_or_writes(capsys):
    assert sae.cli.main.main(["sweep-config", "sweep.py"]) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["parameters"] == {"penalty.l1": {"values": [0.01, 1.0]}, "seed": {"values": [0, 1]}}
    assert yaml.safe_load(text)["description"] == "Is a tiny run tiny?"
    assert sae.cli.main.main(["sweep-config", "sweep.py", "--out", "grid.yaml"]) == 0
    assert Path("grid.yaml").read_text() == text and "next: wandb sweep grid.yaml" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["tiny.py"], "'tiny' varies nothing, so it has no axes; allowed: a file that defines a sweep"),
        ([FILE, "--method", "bayes"], "--method bayes needs a metric to optimise: --target-l0 20"),
        ([FILE, "--metric", "eval/fvy"], "--metric: got 'eval/fvy'; close names: eval/fvu"),
        ([FILE, "--metric", "fvu"], "close names: eval/fvu"),
        ([FILE, "--method", "gird"], "'gird'"),
        ([FILE, "--metod", "grid"], "sweep-config has no option '--metod'; close names: --method"),
        (
            [FILE, "--target-l0", "20", "--metric", "eval/fvu"],
            "got eval/fvu with --target-l0, allowed: one of the two",
        ),
        ([FILE, "--target-l0", "0"], "control.l0: got 0.0, allowed: at least 0.01"),
        ([FILE, "--project", "t5/large"], "W&B project: got 't5/large', allowed: 1 to 128 characters"),
        ([FILE, "--out", "sweep.py"], "--out: got sweep.py, allowed: a .yaml file"),
        (["sweeep.py"], "close names: sweep.py"),
    ],
)
def test_bad_input_of_sweep_config_is_one_line(fails, argv, said):
    assert said in fails("sweep-config", *argv)
    assert FILE.read_text().startswith('"""')


# what an agent asks for


def agent_env(values=None, **more) -> dict[str, str]:
    """The environment that `wandb agent` gives to the program, and the file it writes."""
    env = {"WANDB_SWEEP_ID": "swp", "WANDB_RUN_ID": "r1", **more}
    if values is not None:
        path = Path("wandb/sweep-swp/config-r1.yaml").absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"wandb_version": 1} | {name: {"value": value} for name, value in values.items()}
        path.write_text(yaml.safe_dump(content))
        env["WANDB_SWEEP_PARAM_PATH"] = str(path)
    return env


def asked(tiny, monkeypatch, values=None, *argv) -> Experiment:
    for name, value in agent_env(values).items():
        monkeypatch.setenv(name, value)
    base, tokens, _ = read_trial(tiny, argv)
    definition, _ = override(base, tokens, prog="test", options=sae.cli.run.Options())
    return as_sweep(definition).members[0]


@pytest.mark.parametrize("how", ["file", "argv"])
@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("penalty.l1", 3e-4, 3e-4),
        ("penalty.l1", 1, 1.0),
        ("penalty.l1", 1e-05, 1e-5),
        ("d_sae", 32.0, 32),
        ("d_sae", 32, 32),
        ("seed", 3.0, 3),
        ("n_eval", None, None),
        ("n_eval", 100.0, 100),
        ("apply_b_dec_to_input", False, False),
        ("apply_b_dec_to_input", True, True),
        ("b_dec_init", "geometric-median", "geometric-median"),
        ("constraint", "free", "free"),
    ],
)
def test_a_value_has_the_type_of_its_field(tiny, monkeypatch, how, name, value, field):
    given = ({name: value}, ()) if how == "file" else (None, (f"--{name}={value}",))
    got = flatten(asked(tiny, monkeypatch, given[0], *given[1]))[name]
    assert got == field and type(got) is type(field)


def test_arguments_count_where_both_have_a_name(tiny, monkeypatch):
    member = asked(tiny, monkeypatch, {"penalty.l1": 0.5, "seed": 4}, "--penalty.l1=0.25", "--d-sae", "32")
    assert (member.penalty.l1, member.seed, member.d_sae) == (0.25, 4, 32)
    member = asked(tiny, monkeypatch, {"penalty.l1": 0.5}, "--penalty.l1", "0.125")
    assert member.penalty.l1 == 0.125


def test_a_sweeps_first_member_is_the_base(tiny, monkeypatch):
    sweep = Sweep(name="two", members=grid(tiny, {"penalty.l1": (0.2, 0.4), "seed": (7, 8)}))
    monkeypatch.setenv("WANDB_SWEEP_ID", "swp")
    monkeypatch.setenv("WANDB_RUN_ID", "r1")
    base, tokens, trial = read_trial(sweep, ["--penalty.l1=0.3", "--lanes=1"])
    assert base == sae.replace(tiny, {"name": "two", "penalty": ElasticNet(l1=0.2), "seed": 7})
    assert tokens == ["--penalty.l1=0.3", "--lanes=1"]
    assert trial == wandb_sweeps.Trial("swp", "r1", "penalty.l1=0.3")
    assert wandb_sweeps.folder("two", trial) == Path("runs/two-swp/r1")


@pytest.mark.parametrize(
    ("values", "argv", "said"),
    [
        (None, ["--penalty.l3=1"], "'tiny_sweep' has no field or option '--penalty.l3'; close names: --penalty.l"),
        (
            {"penalty.l3": 1},
            ["--penalty.l3=1"],
            "'tiny_sweep' has no field or option '--penalty.l3'; close names: --penalty.l",
        ),
        ({"penaltyl1": 1}, [], "close names: --penalty.l1"),
        (None, ["--d_sae=3.5"], "'tiny_sweep': d_sae: got 3.5, allowed: int"),
        (None, ["--d_sae=many"], "d_sae: got many, allowed: int"),
        (None, ["--penalty.l1=-1"], "penalty.l1: got -1.0, allowed: at least 0"),
        ({"seed": "x"}, [], "seed: got x, allowed: int"),
    ],
)
def test_a_bad_value_is_one_line(fails, values, argv, said):
    assert said in fails("agent-run", FILE, *argv, env=agent_env(values))
    assert not Path("runs").exists()


def test_an_environment_that_is_no_agents_is_one_line(fails):
    assert "and WANDB_SWEEP_ID is not set; to train by hand: sae run" in fails("agent-run", FILE)
    assert "and WANDB_RUN_ID is not set" in fails("agent-run", FILE, env={"WANDB_SWEEP_ID": "swp"})
    assert "No such file" in fails("agent-run", FILE, env=agent_env() | {"WANDB_SWEEP_PARAM_PATH": "gone.yaml"})
    env = agent_env({})
    Path(env["WANDB_SWEEP_PARAM_PATH"]).write_text("- a list")
    assert "is not what an agent writes" in fails("agent-run", FILE, env=env)
    assert "needs an API key" in fails("agent-run", FILE, env=agent_env({}))
    env = agent_env({}, WANDB_PROJECT="t5/large", WANDB_API_KEY="0" * 40)
    assert "W&B project: got 't5/large'" in fails("agent-run", FILE, env=env)
    assert not Path("runs").exists()


def test_a_long_name_of_a_run_has_short_names_of_fields(monkeypatch):
    values = {"penalty.l1": 0.123456789, "optimizer.lr": 0.00123456789, "optimizer.weight_decay": 0.000123456789}
    values |= {"optimizer.warmup_steps": 100, "dead_after": 123456, "seed": 1}
    for name, value in agent_env(values).items():
        monkeypatch.setenv(name, value)
    name = read_trial(load_file(FILE), [])[2].name
    assert len(name) <= 128
    assert {"l1=0.123456789", "lr=0.00123456789", "weight_decay=0.000123456789", "seed=1"} < set(name.split())


def test_one_run_of_an_agent_arrives_in_its_sweep():
    """By the environment alone, in a server that answers as W&B does."""
    values = {"penalty.l1": 1, "seed": 1}
    with WandbServer() as server:
        env = agent_env(values, WANDB_PROJECT="the-sweeps", WANDB_MODE="offline", WANDB_RUN_GROUP="no") | server.env
        command("sae", "agent-run", FILE, "--penalty.l1=1", "--seed=1", "--chunk-steps=20", env=env)
        assert server.unknown == []
        assert list(server.runs) == ["r1"]
        run = server.runs["r1"]
    results = sae.load("runs/tiny_sweep-swp/r1")
    row = results.members.iloc[0]
    assert (run.bucket["sweep"], run.bucket["project"]) == ("swp", "the-sweeps")
    assert run.bucket["displayName"] == "penalty.l1=1 seed=1"
    assert run.bucket["groupName"] == "tiny_sweep"
    assert run.config == results.definition["members"][0] | {"member": 0, "cohort": 0}
    assert type(row["penalty.l1"].item()) is float and row["penalty.l1"] == 1.0
    assert run.config["seed"] == row["seed"] == 1 and run.config["d_sae"] == 48
    assert [line["train/step"] for line in run.history[:3]] == [20, 40, 60]
    assert run.summary["eval/fvu"] == row["eval/fvu"] and run.summary["status"] == "finished"
    assert run.exit_code == 0


@pytest.mark.long
def test_wandbs_own_agent_runs_at_a_target_l0():
    """The YAML's fixed parameters make the control, and the run's summary has the metric that the YAML names."""
    FILE.write_text(FILE.read_text().replace("n_steps=60", "n_steps=400").replace("(0, 1)", "(0,)"))
    FILE.write_text(FILE.read_text().replace('"seed": (0,)', '"optimizer.lr": (3e-3, 4e-3)'))
    command("sae", "sweep-config", FILE, "--method", "grid", "--target-l0", "12", "--out", "target.yaml")
    config = yaml.safe_load(Path("target.yaml").read_text())
    with WandbServer() as server:
        env = server.env | {"WANDB_AGENT_MAX_INITIAL_FAILURES": "1"}
        command("wandb", "sweep", "target.yaml", env=env)
        done = command("wandb", "agent", "tester/sparsity-lab/sweep0", env=env)
        assert server.unknown == [] and sorted(server.runs) == ["trial0", "trial1"], done.stdout + done.stderr
        for name, lr in (("trial0", 3e-3), ("trial1", 4e-3)):
            run, row = server.runs[name], sae.load(f"runs/tiny_sweep-sweep0/{name}").members.iloc[0]
            assert (row["control"], row["control.l0"], row["penalty.l1"]) == ("target-l0", 12.0, 1.0)
            assert row["optimizer.lr"] == lr and 10 < row["eval/l0"] < 14
            score = row["eval/fvu"] + abs(math.log(row["eval/l0"] / 12))
            assert run.summary[config["metric"]["name"]] == pytest.approx(score, rel=1e-6)


def test_a_run_without_an_agent_is_in_no_sweep():
    """`sae run` inside an agent's environment is a sweep of its own, as before."""
    with WandbServer() as server:
        command("sae", "run", "tiny.py", "--wandb", "online", "--no-report", env=agent_env({}) | server.env)
        (name,) = server.runs
        assert name != "r1" and "sweep" not in server.runs[name].bucket


def test_wandbs_own_agent_runs_the_grid():
    """`wandb sweep` registers the YAML, `wandb agent` starts `sae agent-run` for each of two combinations."""
    FILE.write_text(FILE.read_text().replace("(0, 1)", "(0, 3)").replace("0.01, 1.0", "1.0,"))
    command("sae", "sweep-config", FILE, "--project", "steered", "--out", "grid.yaml")
    with WandbServer() as server:
        env = server.env | {"WANDB_AGENT_MAX_INITIAL_FAILURES": "1"}
        said = command("wandb", "sweep", "grid.yaml", env=env).stderr
        assert "Run sweep agent with: wandb agent tester/steered/sweep0" in said
        assert server.sweeps["sweep0"].config == yaml.safe_load(Path("grid.yaml").read_text())
        done = command("wandb", "agent", "tester/steered/sweep0", env=env)
        assert server.unknown == [], server.unknown
        assert sorted(server.runs) == ["trial0", "trial1"], done.stdout + done.stderr
        for i, seed in enumerate((0, 3)):
            run = server.runs[f"trial{i}"]
            assert (run.bucket["sweep"], run.bucket["project"], run.exit_code) == ("sweep0", "steered", 0)
            row = sae.load(f"runs/tiny_sweep-sweep0/trial{i}").members.iloc[0]
            assert (row["seed"], row["penalty.l1"]) == (seed, 1.0)
            assert run.summary["eval/fvu"] == row["eval/fvu"]

"""Sweeps that W&B steers: a sweep file's axes as W&B's YAML, and the one run that a `wandb agent` asks for.

    sae sweep-config sweeps/superposition_width_l1.py --method bayes --target-l0 20 --out sweep.yaml
    wandb sweep sweep.yaml
    wandb agent ENTITY/PROJECT/SWEEP    # on as many machines as there are; each run is a `sae agent-run`

Every such run is one member in a program of its own. To train many members in one program, use `sae run`.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml

from sae.core.definitions import flatten, kind, replace
from sae.core.metrics import EVALUATED
from sae.core.text import nearest, one_line, printable
from sae.core.types import UserError
from sae.experiment import Experiment
from sae.methods.controls import TargetL0
from sae.study.arms import marked
from sae.study.sweep import Sweep, as_sweep, varying
from sae.wandb import settings
from sae.wandb.client import Trial
from sae.wandb.settings import is_id
from sae.wandb.sink import AT_TARGET

LOG_FACTOR = 10  # a float axis that spans this factor or more is sampled by its logarithm


@dataclasses.dataclass(frozen=True)
class Options:
    """How W&B shall sweep."""

    method: Literal["grid", "random", "bayes"] = "grid"
    """How W&B chooses values."""
    metric: str | None = None
    """The held-out number to optimise, such as eval/fvu; bayes needs one."""
    goal: Literal["minimize", "maximize"] = "minimize"
    """Whether a small or a large metric is better."""
    target_l0: float | None = None
    """Compare at this L0: a control sets the factor of the penalty, and the metric is the FVU there, with a fine for a
    target that was missed."""
    project: str = "sparsity-lab"
    """The W&B project."""
    out: Path | None = None
    """The .yaml file to write; by default the terminal."""


def sweep_yaml(definition: Experiment | Sweep, path: Path, options: Options, question: str = "") -> str:
    """The axes of a file's sweep as the YAML for `wandb sweep`. Raises UserError for what W&B cannot express."""
    settings.check_place(options.project)
    sweep = as_sweep(definition)
    fixed: dict[str, Any] = {}
    if options.target_l0 is not None:
        if options.metric is not None:
            raise UserError(f"--metric: got {options.metric} with --target-l0, allowed: one of the two")
        sweep, fixed = _at_target(sweep, options.target_l0)
        options = dataclasses.replace(options, metric=AT_TARGET, goal="minimize")
    axes = _axes(sweep)
    size, combinations = " x ".join(f"{len(axes[name])} {name}" for name in axes), math.prod(map(len, axes.values()))
    whole = combinations == len(sweep.members)
    if options.method == "grid" and not whole:
        raise UserError(
            f"sweep {sweep.name!r} has {len(sweep.members)} members, and W&B's grid would run all of {size} = "
            f"{combinations}; use --method random or bayes, or a file for each part that is a full grid"
        )
    names = [f"eval/{metric}" for metric in EVALUATED]
    if options.metric is not None and options.metric not in (AT_TARGET, *names):
        raise UserError(f"--metric: got {options.metric!r}; {nearest(options.metric, names)}")
    if options.method == "bayes" and options.metric is None:
        raise UserError(
            "--method bayes needs a metric to optimise: --target-l0 20 for the FVU at that L0, or --metric eval/dead, "
            "with --goal maximize where more is better"
        )

    config: dict[str, Any] = {"name": sweep.name, "project": options.project}
    if question:
        config["description"] = question
    config |= {"program": str(path), "method": options.method}
    config["command"] = ["${env}", "sae", "agent-run", str(path), "${args}"]
    if options.metric is not None:
        config["metric"] = {"name": options.metric, "goal": options.goal}
    if options.method != "grid":
        config["run_cap"] = len(sweep.members)  # the file's number of members; W&B would go on for ever
    continuous = options.method != "grid"
    config["parameters"] = {name: _parameter(values, continuous) for name, values in axes.items()}
    config["parameters"] |= {name: {"value": _plain(value)} for name, value in fixed.items()}

    comments = [  # a name with a line's end would end the comment
        f"The axes of {path} for W&B: {size}.",
        "`wandb sweep` with this file prints the `wandb agent` command. Start it in the folder of the path below.",
    ]
    if not whole:
        comments += [
            f"The {len(sweep.members)} members of that file are not a full grid of these axes.",
            "W&B also samples combinations that are not among them.",
        ]
    if options.target_l0 is not None:
        comments += [
            f"A control moves the factor of the penalty until L0 is {options.target_l0:g}. The metric is",
            "eval/fvu + |log(eval/l0 / target)|: a run that misses its target by 5 % pays .05 of FVU.",
        ]
    if options.metric == "eval/fvu" and any(name in axes for name in marked(sweep.members)):
        comments += ["The least FVU has the least sparsity; --target-l0 L0 compares at one L0."]
    dump = functools.partial(yaml.safe_dump, config, sort_keys=False, width=110)
    text = dump(allow_unicode=True)
    if printable(text) != text:
        text = dump(allow_unicode=False)
    return "".join(f"# {one_line(line)}\n" for line in comments) + text


def _at_target(sweep: Sweep, l0: float) -> tuple[Sweep, dict[str, Any]]:
    """(the sweep under a control that reaches this L0, parameters that are the same in every run). Raises UserError.

    The control sets the factor of the penalty. So a coefficient that varies alone is no axis: it is fixed at the middle
    of its values.
    """
    names = marked(sweep.members)
    if own := [name for name in names if name.startswith("activation.")]:
        activation = kind(sweep.members[0].activation)
        raise UserError(f"--target-l0: {activation} sets L0 by {own[0]}, not by a penalty; sweep at one {own[0]}")
    arms = [name for name in names if name.startswith("penalty.")]
    given = {name: sorted({value for m in sweep.members if (value := flatten(m).get(name))}) for name in arms}
    if not any(given.values()):
        raise UserError(f"--target-l0: a control multiplies {' and '.join(arms)}, and all are 0; give one a value")
    varied = [name for name in varying(sweep.members) if name in arms]
    fixed = {name: given[name][len(given[name]) // 2] for name in varied} if len(varied) == 1 else {}
    members: dict[str, Experiment] = {}
    for member in sweep.members:
        control = {"control.l0": l0} if hasattr(member.control, "l0") else {"control": TargetL0(l0=l0)}
        member = replace(member, control | fixed)
        members[repr(member)] = member
    if len(members) == 1:
        raise UserError("--target-l0: a control does what the coefficient did, and nothing else varies; vary more")
    controlled = as_sweep(Sweep(name=sweep.name, members=list(members.values())))
    return controlled, {"control": kind(controlled.members[0].control), "control.l0": l0} | fixed


def _axes(sweep: Sweep) -> dict[str, list[Any]]:
    """{name: its values, in the order of the members} of every name that varies. Raises UserError."""
    flats = [flatten(member) for member in sweep.members]
    axes = {name: list(dict.fromkeys(flat.get(name, ...) for flat in flats)) for name in varying(sweep.members)}
    if not axes:
        raise UserError(f"{sweep.name!r} varies nothing, so it has no axes; allowed: a file that defines a sweep")
    for name, values in axes.items():
        if ... in values:
            raise UserError(
                f"sweep {sweep.name!r}: only some members have {name!r}, and W&B sets every name in every run; "
                "use a file for each choice"
            )
        for value in values:
            if not isinstance(value, bool | int | float | str | None):
                raise UserError(
                    f"sweep {sweep.name!r}: {name}: got {value!r}, and W&B sweeps over numbers and words only"
                )
    return axes


def _parameter(values: list[Any], continuous: bool) -> dict[str, Any]:
    plain = [_plain(value) for value in values]
    if not continuous or not all(isinstance(value, float) for value in plain):
        return {"values": plain}
    low, high = min(plain), max(plain)
    log = low > 0 and high / low >= LOG_FACTOR
    return {"distribution": "log_uniform_values" if log else "uniform", "min": low, "max": high}


def _plain(value: Any) -> Any:
    """The value as a plain bool, int, float or str: YAML cannot write a subclass, such as numpy's float64."""
    for plain in (bool, int, float, str):
        if isinstance(value, plain):
            return plain(value)
    return value


def read_trial(definition: Experiment | Sweep, argv: Sequence[str]) -> tuple[Experiment, list[str], Trial]:
    """What a `wandb agent` asks for, by its environment and arguments -> (base, overrides, the run's place in W&B).

    The base is the file's experiment, or its sweep's first member under the sweep's name. Values come as
    `--name=value` and in the file WANDB_SWEEP_PARAM_PATH; where both give a name, the argument counts.
    Raises UserError.
    """
    sweep = as_sweep(definition)
    base = replace(sweep.members[0], {"name": sweep.name})
    if missing := [name for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID") if not os.environ.get(name)]:
        raise UserError(
            f"agent-run is for `wandb agent` to start, and {missing[0]} is not set; to train by hand: sae run"
        )
    for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID"):  # they name a folder
        if not is_id(os.environ[name]):
            raise UserError(f"{name}: got {os.environ[name]!r}, allowed: letters, digits, '_' and '-'")
    fields = flatten(base)
    given = {_field(token): token.split("=", 1)[1] for token in argv if token.startswith("--") and "=" in token}
    spelled = {_field(token) for token in argv if token.startswith("--")}
    values = {name: value for name, value in _from_file().items() if _field(f"--{name}") not in spelled}
    values |= {name: value for name, value in given.items() if name in fields}
    rest = [token for token in argv if not ("=" in token and _field(token) in values)]
    overrides = [token for name, value in values.items() for token in _override(base, name, value)]
    return base, overrides + rest, Trial(os.environ["WANDB_SWEEP_ID"], os.environ["WANDB_RUN_ID"], _name(values, sweep))


def _name(values: Mapping[str, Any], sweep: Sweep) -> str:
    """The name of a run: all that the agent has set, under the last parts of dotted names where it is long."""
    whole = " ".join(f"{name}={value}" for name, value in values.items())
    short = " ".join(f"{name.rpartition('.')[2]}={value}" for name, value in values.items())
    return (whole if len(whole) <= settings.LONGEST else short) or sweep.name


def folder(name: str, trial: Trial) -> Path:
    """The folder of a trial's results."""
    return Path("runs") / f"{name}-{trial.sweep_id}" / trial.run_id


def _from_file() -> Mapping[str, Any]:
    """{name: value} from the file that the agent writes: `{wandb_version: 1, penalty.l1: {value: 3e-4}}`."""
    path = os.environ.get("WANDB_SWEEP_PARAM_PATH")
    if not path:
        return {}
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        return {name: entry["value"] for name, entry in content.items() if name != "wandb_version"}
    except OSError as error:
        raise UserError(f"WANDB_SWEEP_PARAM_PATH: {path}: {error.strerror}") from None
    except (AttributeError, KeyError, TypeError, UnicodeDecodeError, yaml.YAMLError):
        raise UserError(f"WANDB_SWEEP_PARAM_PATH: {path} is not what an agent writes, 'name: {{value: ...}}'") from None


def _field(token: str) -> str:
    return token.removeprefix("--").split("=", 1)[0].replace("-", "_")


def _override(base: Experiment, name: str, value: Any) -> list[str]:
    """A sweep's value as a flag of `sae run`. W&B's numbers are JSON's: 3.0 may come as 3, and 1 as 1.0."""
    hint, text = _hint(base, name), str(value)
    flag = f"--{name}"
    if hint is bool and text.lower() in ("true", "false"):
        head, dot, last = name.rpartition(".")
        return [flag if text.lower() == "true" else f"--{head}{dot}no_{last}"]
    if hint in (int, int | None) and text != "None":
        try:
            number = float(text)
            whole = int(number) if number.is_integer() else None
        except ValueError:
            whole = None
        if whole is None:
            raise UserError(f"{base.name!r}: {name}: got {text}, allowed: int")
        text = str(int(text)) if text.lstrip("+-").isdigit() else str(whole)
    return [f"{flag}={text}"]


def _hint(base: Any, name: str) -> Any:
    """The type of a dotted name's field; None where there is no such field."""
    *parents, last = name.split(".")
    for parent in parents:
        base = getattr(base, parent, None)
    return get_type_hints(type(base)).get(last) if dataclasses.is_dataclass(base) else None

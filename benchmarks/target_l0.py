"""Does a control reach its target L0? Methods by data by targets: when each arrives, how it holds, and held-out L0.

    python benchmarks/target_l0.py [--steps N] [--lr LR] [--batch N] [--decay N] [--control NAME] [--methods NAME ...]

A row per member. `arrival` is the share of training after which the mean L0 of every tenth of it stays within 5 % of
the target, `first` that after which a fiftieth is there once. `off` is the mean over the last tenth, relative to the
target; `swing` the standard deviation over fiftieths of the last third; `held out` the held-out L0 relative to the last
tenth.
"""

import argparse
import io
import tempfile

import numpy as np
import pandas as pd
from rich.console import Console

import sae
from sae import L0, Adam, Digits, ElasticNet, Experiment, Gated, ImagePatches, JumpRelu, Lp, Superposition

DATA = {
    "digits": Digits(),
    "patches": ImagePatches(n_train=50_000, n_held_out=4_000),
    "superposition": Superposition(n_held_out=4_000),
}
METHODS = {
    "l1": {"penalty": ElasticNet(l1=0.1)},
    "jumprelu": {"activation": JumpRelu(), "penalty": L0(weight=0.1)},
    "gated": {"activation": Gated(), "penalty": ElasticNet(l1=0.1)},
    "lp": {"penalty": Lp(weight=0.1, p=0.5)},
}
PARTS = 50


def main() -> None:
    """Train every combination, and print its rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=3_000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--decay", type=int, default=0, help="final steps over which the learning rate falls")
    parser.add_argument("--d_sae", type=int, default=96)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--control", default="TargetL0")
    parser.add_argument("--targets", type=float, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--data", nargs="+", default=list(DATA))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    options = parser.parse_args()
    for data in options.data:
        for method in options.methods:
            rows = trained(data, method, options)
            print(rows.to_string(index=False, float_format=lambda value: f"{value:.3g}"), flush=True)


def trained(data: str, method: str, options: argparse.Namespace) -> pd.DataFrame:
    """A row per target and seed of a method on a source."""
    base = Experiment(
        name=f"{data} {method}",
        data=DATA[data],
        d_sae=options.d_sae,
        batch_size=options.batch,
        n_steps=options.steps,
        optimizer=Adam(lr=options.lr, warmup_steps=100, decay_steps=options.decay),
        control=getattr(sae, options.control)(),
    )
    axes = {"control.l0": tuple(options.targets), "seed": tuple(range(options.seeds))}
    sweep = sae.Sweep(name="targets", members=sae.grid(sae.replace(base, METHODS[method]), axes))
    quiet = Console(file=io.StringIO())
    with tempfile.TemporaryDirectory() as folder:
        chunk = options.steps // PARTS
        results = sae.run(sweep, out=f"{folder}/run", wandb="off", console=quiet, chunk_steps=chunk)
        assert results is not None  # only a part of a run has none
        members, history = results.members, results.history
    return pd.DataFrame([{"data": data, "method": method} | row(one, history) for _, one in members.iterrows()])


def row(one: pd.Series, history: pd.DataFrame) -> dict[str, float]:
    """The numbers of one member."""
    mine = history[history["member"] == one["member"]].sort_values("step")
    ratio = mine["train/l0"].to_numpy() / one["control.l0"]
    n = len(ratio)
    near = np.abs(np.log(ratio)) < 0.05
    tenths = np.convolve(ratio, np.full(n // 10, 10 / n), "valid")  # a log point alone is a mean of few examples
    away = np.flatnonzero(np.abs(np.log(tenths)) > 0.05)
    last = ratio[-n // 10 :].mean()
    return {
        "l0": one["control.l0"],
        "seed": one["seed"],
        "arrival": (away[-1] + 1) / n if len(away) else 0.0,
        "first": (np.argmax(near) + 1) / n if near.any() else np.nan,
        "off": last - 1,
        "swing": ratio[-n // 3 :].std(),
        "held out": one["eval/l0"] / one["control.l0"] / last,
        "fvu": one["eval/fvu"],
        "factor": mine["train/penalty_factor"].iloc[-1],
    }


if __name__ == "__main__":
    main()

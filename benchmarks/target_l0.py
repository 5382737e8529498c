"""Does TargetL0 reach its targets? Methods x data x targets x seeds, and how each arrives, holds and generalizes.

    python benchmarks/target_l0.py [--steps 4000] [--lr 1e-3] [--batch 256] [--decay 0] [--data digits,...] [--methods l1,...]

One row per method and data, the worst over targets and seeds of: arrival (share of training after which the mean L0 of
every chunk stays within 5 % of its target), error (relative, over the last tenth), swing (standard deviation of the
logarithm of chunk means over the last third), and held-out L0 over training L0.
"""

import argparse
import io
import tempfile

import numpy as np
import pandas as pd
from rich.console import Console

import sae
from sae import (
    Adam,
    Digits,
    ElasticNet,
    Experiment,
    Gated,
    ImagePatches,
    JumpRelu,
    L0,
    Lp,
    Relu,
    Superposition,
    TargetL0,
)

DATA = {"digits": Digits(), "patches": ImagePatches(n_train=50_000, n_held_out=4_000), "superposition": Superposition(n_held_out=4_000)}
METHODS = {
    "l1": {"penalty": ElasticNet(l1=0.1)},
    "jumprelu": {"activation": JumpRelu(), "penalty": L0(weight=0.1)},
    "gated": {"activation": Gated(), "penalty": ElasticNet(l1=0.1)},
    "lp": {"penalty": Lp(weight=0.1, p=0.5)},
}
CHUNKS = 100


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--steps", type=int, default=4000)
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--batch", type=int, default=256)
    p.add_argument("--decay", type=int, default=0)
    p.add_argument("--data", default=",".join(DATA))
    p.add_argument("--methods", default=",".join(METHODS))
    p.add_argument("--targets", default="4,8,16,32")
    p.add_argument("--seeds", type=int, default=1)
    p.add_argument("--d_sae", type=int, default=128)
    p.add_argument("--set", default="", help="rate=.01;damping=1")
    p.add_argument("--vary", default="", help="rate=.01,.02")
    p.add_argument("--curve", type=int, default=0)
    p.add_argument("--override", default="")
    p.add_argument("--control", default="TargetL0")
    a = p.parse_args()
    fixed = {k: float(v) for k, v in (s.split("=") for s in a.set.split(";") if s)}
    vary = {f"control.{k}": tuple(map(float, v.split(","))) for k, v in (s.split("=") for s in a.vary.split(";") if s)}
    over = {k: eval(v) for k, v in (s.split("=", 1) for s in a.override.split(";") if s)}
    for d in a.data.split(","):
        for m in a.methods.split(","):
            base = Experiment(
                name=f"{d}-{m}", data=DATA[d], d_sae=a.d_sae, batch_size=a.batch, n_steps=a.steps,
                optimizer=Adam(lr=a.lr, warmup_steps=100, decay_steps=a.decay), control=getattr(sae, a.control)(**fixed),
            )
            base = sae.replace(base, {**METHODS[m], **over})
            members = sae.grid(base, {"control.l0": tuple(map(float, a.targets.split(","))), "seed": tuple(range(a.seeds)), **vary})
            with tempfile.TemporaryDirectory() as folder:
                r = sae.run(sae.Sweep(name="t", members=members), out=folder + "/run", wandb="off", console=Console(file=io.StringIO()), chunk_steps=a.steps // CHUNKS)
                table(d, m, r, vary, a)


def table(d, m, r, vary, a):
    rows = []
    for _, one in r.members.iterrows():
        h = r.history[r.history.member == one.member].sort_values("step")
        e = np.log(h["train/l0"].to_numpy() / one["control.l0"])
        n = len(e)
        bad = np.flatnonzero(np.abs(e) > 0.05)
        arrival = 0 if not len(bad) else (bad[-1] + 1) / n
        first = np.flatnonzero(np.abs(e) < 0.05)
        rows.append({"data": d, "method": m, **{k.split(".")[1]: one[k] for k in vary}, "l0": one["control.l0"], "seed": one.seed,
            "arrival": arrival, "first": (first[0] + 1) / n if len(first) else np.nan,
            "error": 100 * (h["train/l0"].tail(n // 10).mean() / one["control.l0"] - 1), "swing": 100 * e[-n // 3:].std(),
            "eval/train": one["eval/l0"] / h["train/l0"].tail(n // 10).mean(), "fvu": one["eval/fvu"], "dead": one["eval/dead_fraction"],
            "factor": h["train/penalty_factor"].iloc[-1]})
        if a.curve:
            print(one["control.l0"], one.seed, [one[k] for k in vary], np.round(h["train/l0"].to_numpy()[::a.curve], 2), np.round(np.log(h["train/penalty_factor"].to_numpy()[::a.curve]), 2))
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda v: f"{v:.3g}"), flush=True)


if __name__ == "__main__":
    main()

"""What the tables say against a sweep's own conclusions: each check gives sentences, with its threshold in them."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from sae.report.data import Line, label, lines
from sae.types import ranges

DEAD = 0.5  # of the latents
COLLAPSED = 0.5  # active latents per example
SPARSE = 0.1  # of d_sae: above it, a frontier's sparse end is not in sight
FALLS = 0.1  # of the FVU, between the two least coefficients: the dense end is not in sight
RISES = 0.02  # of the FVU, against the order of coefficients
REBOUND = 1.5  # times the least FVU of training
CONVERGED = 0.02  # of the FVU, over the last tenth of training


def warnings(members: pd.DataFrame, history: pd.DataFrame, along: Sequence[str], group: Sequence[str]) -> list[str]:
    """Sentences on members (those that diverged included) and their histories."""
    sound = members[members["status"] == "finished"]
    found = [*_diverged(members), *_of_members(sound), *_of_training(sound, history)]
    if along:
        found += [sentence for line in lines(sound, along, group) for sentence in _of_line(line)]
    return found


def _diverged(members: pd.DataFrame) -> Iterator[str]:
    bad = members[members["status"] == "diverged"]
    if len(bad):
        yield f"{_who(bad, members)} diverged and are left out of every figure: a lower learning rate, or clipping."


def _of_members(members: pd.DataFrame) -> Iterator[str]:
    collapsed = members[members["eval/l0"] < COLLAPSED]
    if len(collapsed):
        yield f"L0 collapsed in {_who(collapsed, members)}: fewer than {COLLAPSED:g} active latents per example."
    dead = members[members["eval/dead_fraction"] > DEAD]
    if len(dead):
        yield (
            f"Over {DEAD:.0%} of the latents are dead in {_who(dead, members)}: their L0 and their width are not what "
            "they seem; see revival, or a longer run."
        )


def _of_training(members: pd.DataFrame, history: pd.DataFrame) -> Iterator[str]:
    if "train/fvu" not in history or not len(history):
        return
    fvu = history.pivot_table(index="step", columns="member", values="train/fvu")
    fvu = fvu[[member for member in members["member"] if member in fvu]]
    n = int(fvu.notna().sum().min()) if len(fvu.columns) else 0
    if n < 10:
        return
    tails = {member: fvu[member].dropna().to_numpy() for member in fvu}
    rebound = [m for m, values in tails.items() if values[-1] > REBOUND * values[len(values) // 10 :].min()]
    chosen = members[members["member"].isin(rebound)]
    if len(chosen):
        yield (
            f"Training FVU of {_who(chosen, members)} ends above {REBOUND:g} times its least: the learning rate may be "
            "too high, or a penalty's warm-up ends there."
        )
    tenth = lambda values, k: np.mean(values[len(values) - k * (len(values) // 10) :][: len(values) // 10])
    falling = [m for m, values in tails.items() if tenth(values, 1) < (1 - CONVERGED) * tenth(values, 2)]
    chosen = members[members["member"].isin(falling)]
    if len(chosen):
        yield (
            f"Training of {_who(chosen, members)} has not converged: FVU still fell by more than {CONVERGED:.0%} over "
            "the last tenth of the steps (a decay of the learning rate makes it fall too)."
        )


def _of_line(line: Line) -> Iterator[str]:
    coefficients = line.members[line.along].astype(float)
    means = line.members.assign(along=coefficients).groupby("along")[["eval/fvu", "eval/l0"]].mean()
    positive = means[means.index > 0]
    if len(positive) < 3:
        return
    widths = line.members["d_sae"].max()
    name = f"{line.name}: at {label(line.along)}"
    # of activation.k a smaller value is the sparser one
    sparse_last = positive["eval/l0"].iloc[-1] < positive["eval/l0"].iloc[0]
    ordered = positive if sparse_last else positive[::-1]
    l0, fvu = ordered["eval/l0"], ordered["eval/fvu"]
    if l0.iloc[-1] > max(SPARSE * widths, 2) and fvu.iloc[-1] < 0.5:
        yield (
            f"{name} = {l0.index[-1]:g}, the last, l0 is still {l0.iloc[-1]:.3g} of {widths} and FVU {fvu.iloc[-1]:.2g}: "
            "the sparse end of the frontier is not reached."
        )
    if fvu.iloc[0] < (1 - FALLS) * fvu.iloc[1] and fvu.iloc[0] > 0.02:
        yield (
            f"{name} = {fvu.index[0]:g}, the first, FVU still falls by {1 - fvu.iloc[0] / fvu.iloc[1]:.0%} from the one "
            "before: the dense end of the frontier is not reached."
        )
    back = fvu[fvu < (1 - RISES) * fvu.shift(1)]
    if len(back):
        at = ", ".join(f"{value:g}" for value in back.index)
        yield f"{name} = {at} the mean FVU falls where sparsity rises, by more than {RISES:.0%}: not monotone."


def _who(some: pd.DataFrame, all_members: pd.DataFrame) -> str:
    """ "members 3–5 and 9", or how many where they are many."""
    if len(some) == len(all_members) > 1:
        return f"all {len(some)} members"
    if len(some) > 12:
        return f"{len(some)} of {len(all_members)} members"
    names = list(some["member"])
    text = ranges(names) if all(isinstance(name, int | np.integer) for name in names) else ", ".join(map(str, names))
    return f"member{'' if len(some) == 1 else 's'} {text}"

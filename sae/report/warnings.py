"""Reasons to doubt a sweep's conclusions, read off its tables: each check gives sentences that state its threshold."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from sae.core.text import ranges
from sae.report.data import Line, label, lines, number

DEAD = 0.5  # share of latents that may be dead
COLLAPSED = 0.5  # active latents per example: below, L0 has collapsed
SPARSE = 0.1  # share of d_sae: a frontier whose L0 stays above it does not reach its sparse end
FALLS = 0.1  # relative fall of FVU between the two least coefficients: the dense end is not reached
DENSE = 0.02  # FVU below which the dense end counts as reached anyway
RISES = 0.02  # relative fall of FVU where sparsity rises: the frontier is not monotone
REBOUND = 1.5  # factor between the last and the least FVU of training
CONVERGED = 0.02  # relative fall of FVU over the last tenth of training
EXPLAINED, SHARE = 0.3, 0.5  # an FVU below the first, with a median r2 of input dimensions below the second
HUGE = 20  # norm of the longest row over that of the median row
OFF, OFF_TRAINED = 0.03, 0.05  # relative distance of training L0 from its target; with thresholds that train
TARGETS = ("activation.k", "control.l0")  # an L0 that was asked for, so no end of a frontier is missing
LISTED = 3  # lines of a frontier that a sentence names
GENERALIZES = 0.1  # relative distance of held-out L0 from training L0
REMEDY = "try a lower optimizer.lr, a longer optimizer.warmup_steps, or optimizer.clip"


def warnings(members: pd.DataFrame, history: pd.DataFrame, along: Sequence[str], group: Sequence[str]) -> list[str]:
    """Sentences about members and their histories. `members` includes those that diverged."""
    sound = members[members["status"] == "finished"]
    found = [*_diverged(members), *idle(members), *_of_members(sound), *_of_data(sound), *_of_training(sound, history)]
    found += off_target(sound, history)
    if along and {"eval/fvu", "eval/l0", "d_sae"} <= set(members):
        found += _of_lines(lines(sound, along, group))
    return [sentence[:1].upper() + sentence[1:] for sentence in found]


def idle(members: pd.DataFrame) -> Iterator[str]:
    """Sentences about remedies for dead latents that cannot act in training of this length, and a count of them that
    cannot begin. `members` may be untrained: their numbers and hyper-parameters alone are read.
    """
    if not {"dead_after", "n_steps", "batch_size"} <= set(members):
        return
    column = lambda name: members.get(name, pd.Series(index=members.index, dtype=object))
    window, n_steps, batch = (members[name].astype(float) for name in ("dead_after", "n_steps", "batch_size"))
    long = members[window > n_steps * batch]
    if len(long):
        yield (
            f"No latent of {_who(long, members)} can count as dead while it trains (train/dead_fraction stays 0): "
            f"dead_after is {_some(long['dead_after'])} examples, the training {_some((n_steps * batch)[long.index])}."
        )
    resampled = (column("revival") == "resample") & column("revival.every").notna()
    every, times = (pd.to_numeric(column(f"revival.{name}"))[resampled] for name in ("every", "times"))
    rounds = np.minimum(times, (n_steps[resampled] - 1) // every)  # after the last step nothing is revived
    late = members.loc[rounds.index[rounds < 1]]
    if len(late):
        yield (
            f"Resample never acts on {_who(late, members)}: its first time would be after step "
            f"{_some(late['revival.every'])}, and training has {_some(late['n_steps'])} steps."
        )
    last = (rounds * every)[rounds >= 1] * batch
    early = members.loc[last.index[last < window[last.index]]]
    if len(early):
        yield (
            f"Resample finds no dead latent in {_who(early, members)}: its last time comes after "
            f"{_some(last[early.index])} examples, and dead_after is {_some(early['dead_after'])}."
        )
    for kind, name in {"aux-k": "AuxK", "ghost-gradients": "GhostGradients"}.items():
        helped = members[(column("auxiliary") == kind) & (window > (n_steps - 1) * batch)]
        if len(helped):
            yield (
                f"{name} never acts on {_who(helped, members)}: no latent is dead before the last step, as dead_after "
                f"is {_some(helped['dead_after'])} examples."
            )


def off_target(members: pd.DataFrame, history: pd.DataFrame) -> Iterator[str]:
    """Sentences about members whose control has a target L0 and whose training or held-out L0 is elsewhere."""
    if "control.l0" not in members or not {"n_steps", "eval/l0"} <= set(members) or "train/l0" not in history:
        return
    aimed = members[members["control.l0"].notna()].set_index("member", drop=False)
    target, held_out = aimed["control.l0"].astype(float), aimed["eval/l0"].astype(float)
    end = history["step"] > 0.9 * history["member"].map(aimed["n_steps"]).astype(float)
    trained = history[end].groupby("member")["train/l0"].mean().reindex(aimed.index)
    trains = aimed.get("activation", pd.Series("", aimed.index)) == "jump-relu"
    missed = aimed[(trained / target - 1).abs() > np.where(trains, OFF_TRAINED, OFF)]
    if len(missed):
        cases = _cases(missed, {"": trained, "for ": target, "held-out ": held_out})
        yield (
            f"Training L0 of {_who(missed, members)} is over {OFF:.0%} (trained thresholds: {OFF_TRAINED:.0%}) from "
            f"its target in the last tenth of the steps: {cases}; try more steps, or a higher optimizer.lr."
        )
    apart = aimed[(held_out / trained - 1).abs() > GENERALIZES]
    if len(apart):
        cases = _cases(apart, {"": held_out, "for ": trained})
        yield (
            f"Held-out L0 of {_who(apart, members)} differs by over {GENERALIZES:.0%} from training L0, which the "
            f"control follows: {cases}; there may be too few training examples, or held-out ones of another kind."
        )


def _cases(members: pd.DataFrame, numbers: Mapping[str, pd.Series]) -> str:
    """The numbers of the first members, "4.3 for 4 (held-out 5.1), ..."."""
    row = lambda member: ", ".join(f"{words}{number(float(values[member]))}" for words, values in numbers.items())
    return "; ".join(row(member) for member in members.index[:4]) + ("; ..." if len(members) > 4 else "")


def _some(values: pd.Series) -> str:
    """The values of a few members, or their range."""
    low, high = float(values.min()), float(values.max())
    return f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"


def _diverged(members: pd.DataFrame) -> Iterator[str]:
    bad = members[members["status"] == "diverged"]
    if len(bad):
        causes = "" if len(bad) < len(members) else "; if that does not help, look for huge values in the data"
        verb = "is" if len(bad) == 1 else "are"
        yield f"{_who(bad, members)} diverged and {verb} left out of every figure; {REMEDY}{causes}."


def _of_members(members: pd.DataFrame) -> Iterator[str]:
    column = lambda name: members.get(name, pd.Series(np.nan, index=members.index))  # of another program, say
    collapsed = members[column("eval/l0") < COLLAPSED]
    if len(collapsed):
        yield f"L0 collapsed in {_who(collapsed, members)}: fewer than {COLLAPSED:g} active latents per example."
    dead = members[column("eval/dead_fraction") > DEAD]
    if len(dead):
        yield (
            f"Over {DEAD:.0%} of the latents are dead in {_who(dead, members)}: compare their L0 and width with care; "
            "try revival, or a longer run."
        )


def _of_data(members: pd.DataFrame) -> Iterator[str]:
    """What the tables say about the data. Those of older runs lack these columns."""
    if "eval/r2_median" in members:
        few = members[(members["eval/fvu"] < EXPLAINED) & (members["eval/r2_median"] < SHARE)]
        if len(few):
            standardized = "data.normalize" in few and few["data.normalize"].eq("standardize").all()
            advice = "" if standardized else '; try normalize="standardize", which gives all dimensions one variance'
            yield (
                f"A few dimensions carry most of the variance: FVU is below {EXPLAINED:g} in {_who(few, members)}, but "
                f"in half of the input's dimensions less than {SHARE:.0%} of the variance is explained{advice}."
            )
    if "eval/norm_max_ratio" in members:
        long = members[members["eval/norm_max_ratio"] > HUGE]
        if len(long):
            times = number(float(long["eval/norm_max_ratio"].max()))
            yield (
                f"Some rows are huge: the longest row is {times} times as long as the median row "
                f"({_who(long, members)}), so that few rows can decide the error; the source's max_norm leaves out "
                "longer rows."
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
    # a controller makes FVU rise on purpose, while it brings L0 down to its target
    held = set(members["member"][members["control"] != "as-written"]) if "control" in members else set()
    settled = {m: values[len(values) // (2 if m in held else 10) :] for m, values in tails.items()}
    rebound = [m for m, values in settled.items() if values[-1] > REBOUND * values.min()]
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


def _of_lines(drawn: Sequence[Line]) -> Iterator[str]:
    sparse, dense, back = [], [], []
    for line in drawn:
        coefficients = line.members[line.along].astype(float)
        means = line.members.assign(along=coefficients).groupby("along")[["eval/fvu", "eval/l0"]].mean()
        means = means[means.index > 0]
        if len(means) < 3:
            continue
        if means["eval/l0"].iloc[-1] > means["eval/l0"].iloc[0]:
            means = means[::-1]  # the smallest activation.k is the sparsest
        l0, fvu, width = means["eval/l0"], means["eval/fvu"], line.members["d_sae"].max()
        if line.along not in TARGETS and l0.iloc[-1] > max(SPARSE * width, 2) and fvu.iloc[-1] < 0.5:
            sparse.append(f"{line.name} (l0 {number(l0.iloc[-1])} at {label(line.along)} {l0.index[-1]:g})")
        if line.along not in TARGETS and fvu.iloc[0] < (1 - FALLS) * fvu.iloc[1] and fvu.iloc[0] > DENSE:
            dense.append(f"{line.name} (FVU {fvu.iloc[0]:.2g} at {label(line.along)} {fvu.index[0]:g})")
        falls = fvu[fvu < (1 - RISES) * fvu.shift(1)]
        if len(falls):
            back.append(f"{line.name} (at {label(line.along)} {', '.join(f'{value:g}' for value in falls.index)})")
    if sparse:
        yield (
            f"The sparse end of the frontier is not reached: l0 stays above {SPARSE:.0%} of d_sae, FVU below .5, in "
            f"{_listed(sparse)}."
        )
    if dense:
        yield (
            f"The dense end of the frontier is not reached: FVU still falls by more than {FALLS:.0%} to the least "
            f"coefficient, in {_listed(dense)}."
        )
    if back:
        yield f"FVU is not monotone: its mean falls by more than {RISES:.0%} where sparsity rises: {_listed(back)}."


def _listed(found: Sequence[str]) -> str:
    more = f"; and {len(found) - LISTED} more" if len(found) > LISTED else ""
    return "; ".join(found[:LISTED]) + more


def _who(some: pd.DataFrame, all_members: pd.DataFrame) -> str:
    """ "members 3-5, 9", or their number where they are many."""
    if len(some) == len(all_members) > 1:
        return f"all {len(some)} members"
    if len(some) > 12:
        return f"{len(some)} of {len(all_members)} members"
    names = list(some["member"])
    text = ranges(names) if all(isinstance(name, int | np.integer) for name in names) else ", ".join(map(str, names))
    return f"member{'' if len(some) == 1 else 's'} {text}"

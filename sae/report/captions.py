"""The title and the caption of a figure: what its lines, bands and axes are, with units and definitions."""

import re
from collections.abc import Mapping

import pandas as pd

from sae.core.metrics import OF_A_STEP
from sae.core.text import count
from sae.report.data import along, label, meaning, others_along
from sae.study.answers import AtMatched
from sae.study.figures import (
    AgreementMatrix,
    Curves,
    Dictionaries,
    Figure,
    FiringRates,
    Frontier,
    Heatmap,
    Parallel,
    Profile,
)
from sae.study.frontiers import Arm, arms_along
from sae.study.replicates import over_seeds

DICTIONARIES = (
    "Images are rows of the decoder, each scaled by its own largest value. The most active latent comes first; latents "
    "that no held-out example activates come last and are pale."
)


def title(figure: Figure) -> str:
    """The title, a few words."""
    match figure:
        case Frontier():
            return f"{_upper(figure.y)} against {_upper(figure.x)}"
        case Profile():
            return f"{_upper(figure.metric)} along {figure.x}"
        case Heatmap():
            along = figure.along[0] if len(figure.along) == 1 else "each coefficient"
            return f"{_upper(figure.metric)} over {label(figure.y)} and {along}"
        case Parallel():
            return "All members at once"
        case AtMatched():
            return f"{', '.join(map(_upper, figure.metrics))} at matched {_upper(figure.matched)}"
        case Curves():
            return "Training"
        case FiringRates():
            return "Firing rates"
        case Dictionaries():
            return "Dictionaries"
        case AgreementMatrix():
            return f"Agreement of dictionaries, by {' and '.join(map(label, figure.group))}"


def caption(figure: Figure, members: pd.DataFrame) -> str:
    """The caption, whole sentences. members: the members table that the figure is drawn from."""
    match figure:
        case Frontier():
            hidden = int((~(members[[figure.x, figure.y]] > 0).all(axis=1)).sum())
            off = f" The log axes leave out {count(hidden, 'member')} at 0." if hidden else ""
            best = "; lower and further left is better" if (figure.x, figure.y) == ("eval/fvu", "eval/l0") else ""
            step = f"A step along a line is a step of {' or '.join(figure.along)}"
            step = "No line joins them" if set(figure.along) <= set(figure.group) else step  # autoencoders side by side
            at_each = f"{_band(members)} {step}{best}."
            also = (
                " Diamonds are the autoencoders that the sweep is compared with." if members.attrs.get("others") else ""
            )
            shown = f"{at_each}{also}{off}{_no_arm(members, arms_along(figure.along))}"
            return f"{shown} {_held_out(members)} {meaning([figure.y, figure.x], members)}"
        case Profile():
            only = f" All members have {' and '.join(figure.others)} at 0." if figure.others else ""
            _, log = along(members, figure)
            off = " The log axis leaves out members at 0." if log and (members[figure.x] == 0).any() else ""
            there = bool(others_along(members, figure.metric))
            also = " Dashed lines are the autoencoders that the sweep is compared with." if there else ""
            return f"{_band(members)}{also}{only}{off} {_held_out(members)} {meaning([figure.metric], members)}"
        case Heatmap():
            panels = " In each panel the other coefficients are 0." if len(figure.along) > 1 else ""
            means = sentence(over_seeds(members)) + _no_arm(members, arms_along(figure.along))
            return f"{means}{panels} {_held_out(members)} {meaning([figure.metric], members)}"
        case Parallel():
            colour = label(figure.metrics[0])
            note = f"A line is a member, coloured by its {colour}. Numbers that span much have a logarithmic axis."
            return f"{note} {_held_out(members)} {meaning(figure.metrics, members)}"
        case AtMatched():
            matched = label(figure.matched)
            method = f"Each frontier is interpolated, log-log, to the same {matched}; nothing is extrapolated."
            several = over_seeds(members).startswith("means")
            bars = (
                "Dots are means over the seeds that reach it, bars bootstrap 95 % intervals."
                if several
                else "One seed."
            )
            shown = f"{method} {bars}{_no_arm(members, figure.lines)}"
            return f"{shown} {_held_out(members)} {meaning([*figure.metrics, figure.matched], members)}"
        case Curves():
            window = "A log point covers the training examples since the one before it. The x axis is optimizer steps."
            last = [label(name) for name in figure.metrics if label(name) in OF_A_STEP]
            but = f" {' and '.join(last)}: of its last step alone." if last else ""
            return f"{window}{but} {meaning(figure.metrics)}"
        case FiringRates():
            n = _examples(members)
            return (
                f"The share of a member's latents by firing rate: the share of {n} held-out examples on which a latent "
                "is active. The axis is logarithmic, four bins to a decade; dead latents stand at the left edge."
            )
        case Dictionaries():
            return DICTIONARIES
        case AgreementMatrix():
            return (
                "MCC: absolute cosine of decoder rows, matched one to one for the largest sum; mean over the pairs of "
                "rows, and over the members of two groups. In brackets: the same of random dictionaries of these "
                "widths. On the diagonal, a group's own members are compared, never one with itself. At most "
                f"{count(figure.most, 'member')} of a group."
            )


def _band(members: pd.DataFrame) -> str:
    """What the lines, bands and dots of a figure are."""
    means = over_seeds(members)
    if not means.startswith("means"):
        return "Dots are members, of one seed; lines join them." if means == "one seed" else "Dots are members."
    return f"Lines are {means}, bands their bootstrap 95 % intervals, dots members."


def _no_arm(members: pd.DataFrame, arms: Mapping[str, Arm]) -> str:
    """A sentence on the members that belong to no arm."""
    shown = {row for arm in arms.values() for row in arm.members(members).index}
    n = len(members) - len(shown)
    return f" {count(n, 'member')} in no arm {'is' if n == 1 else 'are'} not shown." if n else ""


def sentence(words: str) -> str:
    """Words as a sentence."""
    return f"{words[:1].upper()}{words[1:]}."


def slug(figure: Figure) -> str:
    """A name for files and links, of the characters a-z, 0-9 and "-": "heatmap-fvu"."""
    named = {Heatmap: ("metric",), Profile: ("metric", "x"), AtMatched: ("matched",), Frontier: ("y", "x")}
    grouped = map(label, figure.group) if isinstance(figure, AgreementMatrix) else ()
    words = [type(figure).__name__, *grouped, *(label(getattr(figure, name)) for name in named.get(type(figure), ()))]
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower())


def _upper(name: str) -> str:
    return {"l0": "L0", "fvu": "FVU"}.get(label(name), label(name))


def _held_out(members: pd.DataFrame) -> str:
    return f"On {_examples(members)} held-out examples."


def _examples(members: pd.DataFrame) -> str:
    counts = members["eval/examples"].dropna() if "eval/examples" in members else []
    low, high = (int(min(counts)), int(max(counts))) if len(counts) else (0, 0)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"

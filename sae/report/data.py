"""From tables to the contents of figures: lines with their bands, grids, labels and colours. Nothing is drawn."""

import dataclasses
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sae.core.metrics import EVALUATED, metric
from sae.core.text import abbreviated, unquoted
from sae.experiment import window_follows
from sae.study import replicates
from sae.study.answers import AtMatched
from sae.study.figures import Profile, arm_names
from sae.study.frontiers import bootstrap, of_arm, short
from sae.study.measures import PREFIX
from sae.study.replicates import is_seed, over_seeds

ARMS = ("#3b76c4", "#d9722e", "#2f9e6e", "#a45cb8", "#b89b2b", "#4aa8c0")  # one hue per arm, for light and dark pages
GROUPS = ("#5578d8", "#2f9fb8", "#3fa860", "#a9a52c", "#dd8a30", "#d4553d")  # a scale over the groups of a single arm
SWATCHES = (*ARMS, *GROUPS)  # one per chosen member
LONG = 20  # characters of the longest word of a hyper-parameter that is shown in full
WIDE = 30  # values that span a larger factor are shown on a log scale


@dataclasses.dataclass(frozen=True)
class Line:
    """Some members, in the order of the coefficient (or another hyper-parameter) that is swept along the line."""

    name: str
    along: str
    colour: str
    strength: float  # opacity, by which the groups of one arm differ
    mark: int | None  # the number of the line's group, the same in all arms; None where its arm has one group
    members: pd.DataFrame

    def means(self, x: str, y: str) -> pd.DataFrame:
        """A row per value along the line.

        `x` and `y` are means over seeds, `low` and `high` the bootstrap 95 % interval of y, `seeds` their number.
        """
        rows = [
            (value, seeds[x].mean(), seeds[y].mean(), *bootstrap(seeds[y].to_numpy()), len(seeds))
            for value, seeds in self.members.dropna(subset=list({x, y})).groupby(self.along)
        ]
        table = pd.DataFrame(rows, columns=["along", "x", "y", "low", "high", "seeds"])
        return table.astype(dict.fromkeys(("x", "y", "low", "high"), float))  # also where no member has both numbers


def others(members: pd.DataFrame, x: str, y: str) -> dict[str, tuple[float, float]]:
    """{name: (x, y)} of the autoencoders that a sweep is compared with, for log axes."""
    found = {name: (row.get(x), row.get(y)) for name, row in members.attrs.get("others", {}).items()}
    above = lambda value: isinstance(value, int | float) and value > 0
    return {name: (a, b) for name, (a, b) in found.items() if above(a) and above(b)}


def others_along(members: pd.DataFrame, metric: str) -> dict[str, float]:
    """{name: the metric} of the autoencoders that a sweep is compared with, which have no place along a number."""
    found = {name: row.get(metric) for name, row in members.attrs.get("others", {}).items()}
    return {name: value for name, value in found.items() if isinstance(value, int | float) and np.isfinite(value)}


def lines(members: pd.DataFrame, along: Sequence[str], group: Sequence[str]) -> list[Line]:
    """A line per arm and per combination of values of the names in `group`; the names that vary name it."""
    group = varied(group, members)
    found: list[Line] = []
    marks: dict[tuple[str, ...], int] = {}
    choices = [name for name in members if name in {*along, *(name.rpartition(".")[0] for name in along)}]
    arms = arm_names(along, members[choices].to_dict("records"))
    for i, coefficient in enumerate(along):
        combinations = groups(of_arm(members, coefficient, along), group)
        for k, (words, on_line) in enumerate(combinations):
            place = 0.4 + 0.6 * (k + 1) / len(combinations)
            if len(along) > 1:
                name, colour, strength = ", ".join([arms[coefficient], *words]), ARMS[i % len(ARMS)], place
            else:
                name, strength = ", ".join(words) or arms[coefficient], 1.0
                colour = between(GROUPS, (k + 0.5) / len(combinations)) if len(combinations) > 1 else ARMS[0]
            mark = marks.setdefault(words, len(marks)) if len(combinations) > 1 else None
            found.append(Line(name, coefficient, colour, strength, mark, on_line))
    return found


def groups(members: pd.DataFrame, names: Sequence[str]) -> list[tuple[tuple[str, ...], pd.DataFrame]]:
    """(("d_sae 64", ...), its members) for each combination of values of those names that the table has.

    Without such a name, all members are one group, of no words.
    """
    names = [name for name in names if name in members]
    if not names:
        return [((), members)]
    found = [(key if isinstance(key, tuple) else (key,), group) for key, group in members.groupby(names, dropna=False)]
    columns = [numbers(column) for column in zip(*(values for values, _ in found), strict=True)]
    words = [
        tuple(f"{label(n)} {text}" for n, text in zip(names, row, strict=True)) for row in zip(*columns, strict=True)
    ]
    return [(of_group, group) for of_group, (_, group) in zip(words, found, strict=True)]


def wide(values: np.ndarray | pd.Series) -> bool:
    """Whether all finite values are positive and span more than the factor WIDE."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    return bool(values.size and values.min() > 0 and values.max() > WIDE * values.min())


def grids(
    members: pd.DataFrame, metric: str, along: Sequence[str], y: str, group: Sequence[str] = ()
) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """A panel per arm and group: its title, its coefficient, and means of a metric.

    The means have a row per value of `y` and a column per value of the coefficient.
    """
    for coefficient in along:
        for words, panel in groups(of_arm(members, coefficient, along), group):
            yield ", ".join(words), coefficient, panel.pivot_table(index=y, columns=coefficient, values=metric)


def along(members: pd.DataFrame, figure: Profile) -> tuple[pd.DataFrame, bool]:
    """(the members that a profile shows, whether its x axis is logarithmic). A log axis leaves out members at 0."""
    members = of_arm(members, figure.x, [figure.x, *figure.others])
    x = members[figure.x].astype(float)
    log = wide(x[x > 0])
    return members[x > 0] if log else members, log


def hyper(members: pd.DataFrame) -> list[str]:
    """The hyper-parameters that differ between members, without what follows from others."""
    follows = all(map(window_follows, members.to_dict("records")))
    names = [name for name in replicates.hyper(members) if not (follows and name == "dead_after")]
    return varied(names, members)


def brief(members: pd.DataFrame) -> pd.DataFrame:
    """The table as figures show it: long words of hyper-parameters are abbreviated, lists are words."""
    texts: dict[str, pd.Series] = {}
    is_word = lambda value: isinstance(value, str | list | tuple | np.ndarray)
    for name in replicates.hyper(members):
        if not pd.api.types.is_numeric_dtype(members[name]) and members[name].map(is_word).any():
            short = abbreviated((str(value) for value in members[name] if is_word(value)), LONG)
            texts[name] = members[name].map(lambda value, short=short: short[str(value)] if is_word(value) else value)
    return members.assign(**texts)


def held_out(members: pd.DataFrame, names: Sequence[str]) -> tuple[str, pd.DataFrame]:
    """(what its numbers are, a row of these metrics for each combination of hyper-parameters, or for each seed)."""
    names_of_rows = hyper(members)
    axes, metrics = [name for name in names_of_rows if not is_seed(name)], list(names)
    if axes:
        return over_seeds(members), members.groupby(axes, dropna=False)[metrics].mean()
    return "each member", members.set_index(names_of_rows or ["member"])[metrics]


def metrics(members: pd.DataFrame) -> list[str]:
    """The columns of held-out numbers, in the order in which metrics and measures are defined."""
    evaluated = [f"eval/{name}" for name in EVALUATED if f"eval/{name}" in members]
    # a control's number tells no member from another: it is the same for all members on its data
    return evaluated + [name for name in members if name.startswith(PREFIX) and members[name].nunique() > 1]


def typical(members: pd.DataFrame, along: Sequence[str], group: Sequence[str], most: int = 6) -> list[int]:
    """The rows of the members shown at first: the middle member of each line, `most` of them."""
    sets = [line.members for line in lines(members, along, group)] if along else [members]
    rows = list(dict.fromkeys(int(some.index[len(some) // 2]) for some in sets if len(some)))
    return rows if len(rows) <= most else [rows[i] for i in np.linspace(0, len(rows) - 1, most).round().astype(int)]


def label(name: str) -> str:
    """A column's name as figures show it: without its window ("eval/l0" -> "l0")."""
    return short(name).removeprefix("train/")


def meaning(names: Iterable[str], members: pd.DataFrame | None = None) -> str:
    """The definitions of these metrics and columns of measures, as sentences for a caption."""
    measured = {} if members is None else members.attrs.get("meanings", {})
    caption = lambda name: known.caption if (known := metric(name)) else None
    lines = {label(name): measured.get(name) or caption(label(name)) for name in names}
    return unquoted(" ".join(f"{name}: {line}." for name, line in lines.items() if line))


def number(value: Any, digits: int = 3) -> str:
    """A value as a person reads it: numbers with a few digits, "–" for what is missing."""
    if value is None or value is pd.NA:
        return "–"
    if isinstance(value, float | np.floating):
        large = 100 <= abs(value) < 1e15 and digits <= 3
        return "–" if value != value else f"{value:,.0f}" if large else f"{value:.{digits}g}"
    return str(value)


def numbers(values: Iterable[Any]) -> list[str]:
    """Values as `number` writes them, with as many digits as tell them apart."""
    values = list(values)
    different = len({repr(value) for value in values})
    written = ([number(value, digits) for value in values] for digits in (3, 6, 17))
    return next((texts for texts in written if len(set(texts)) == different), [str(value) for value in values])


def between(colours: Sequence[str], t: float) -> str:
    """The colour at t in [0, 1] along a scale of colours."""
    at = t * (len(colours) - 1)
    i = min(int(at), len(colours) - 2)
    pair = [[int(colour[k : k + 2], 16) for k in (1, 3, 5)] for colour in colours[i : i + 2]]
    mixed = [round(a + (at - i) * (b - a)) for a, b in zip(*pair, strict=True)]
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def rgba(colour: str, alpha: float) -> str:
    """ "#3b76c4", 0.5 -> "rgba(59,118,196,0.5)"."""
    return f"rgba({','.join(str(int(colour[k : k + 2], 16)) for k in (1, 3, 5))},{alpha:g})"


def swatch(i: int) -> str:
    """The colour of the i-th chosen member."""
    return SWATCHES[i % len(SWATCHES)]


def log_ticks(values: np.ndarray | pd.Series) -> list[float]:
    """The ticks of a log axis, some of them beyond the values on both sides.

    They are 1, 2 and 5 times the powers of ten, or the powers alone where the values span much. Where these are fewer
    than three, the ticks are equally spaced round numbers.
    """
    values = np.asarray(values, float)
    values = values[np.isfinite(values) & (values > 0)]
    least, most = (values.min(), values.max()) if values.size else (1, 10)
    low, high = np.log10([least, most])
    digits = (1, 2, 5) if high - low < 2.5 else (1,)
    ticks = [digit * 10.0**power for power in range(int(low) - 2, int(high) + 3) for digit in digits]
    if sum(least <= tick <= most for tick in ticks) > 2:
        return ticks
    rough = max(most - least, 0.05 * least) / 3
    power = 10.0 ** np.floor(np.log10(rough))
    step = max(digit * power for digit in (1, 2, 5) if digit * power <= rough)
    places = np.arange(np.floor(least / step) - 3, np.ceil(most / step) + 4) * step
    return [float(f"{tick:.12g}") for tick in places if tick > 0]


def thin(history: pd.DataFrame, points: int = 200) -> pd.DataFrame:
    """A history with at most so many log points per member, the last one among them."""
    place = history.groupby("member").cumcount(ascending=False)
    every = -(-int(place.max() + 1) // points) if len(history) else 1
    return history[place % every == 0]


def in_lines(text: str, width: int) -> list[str]:
    """A text of words between commas in lines of about this width, which end at commas where they can."""
    kept = re.sub(r"(?<!,) ", "\u00a0", text)  # wrap takes no such space for one
    return [line.replace("\u00a0", " ") for line in textwrap.wrap(kept, width)] or [""]


def varied(names: Sequence[str], table: pd.DataFrame) -> list[str]:
    """Those of the names whose columns hold several values."""
    return [name for name in names if name in table and table[name].map(str).nunique() > 1]


def rows_of(compared: pd.DataFrame, figure: AtMatched) -> list[str]:
    """What the rows of a comparison are, "d_sae 64, l0 = 20", by the names that vary."""
    names = varied(figure.groups, compared)
    words = [[f"{label(name)} {text}" for text in numbers(compared[name])] for name in names]
    words.append([f"{label(figure.matched)} = {value:g}" for value in compared["value"]])
    return [", ".join(row) for row in zip(*words, strict=True)]


def places(n: int, arm: int, arms: int) -> np.ndarray:
    """Where the dots of an arm stand at n ticks: beside those of the other arms, which share a tick."""
    return np.arange(n) + min(0.16, 0.8 / arms) * (arm - (arms - 1) / 2)


def interval(low: float, high: float) -> str:
    """ " [0.11, 0.13]", or "" where there is no interval (NaN)."""
    return "" if low != low else f" [{number(low)}, {number(high)}]"


def unique(names: Iterable[str]) -> list[str]:
    """Names, a repeated one with its count: ["a", "a"] -> ["a", "a (2)"]."""
    seen: dict[str, int] = {}
    counted = [(name, seen.setdefault(name, 0), seen.update({name: seen[name] + 1})) for name in names]
    return [name if not i else f"{name} ({i + 1})" for name, i, _ in counted]


def firing_histogram(rates: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Firing rates [d_sae] -> shares of latents [1 + bins]: the dead, then the latents in each bin of log10 rate."""
    alive = np.log10(rates[rates > 0])
    counts = np.histogram(np.clip(alive, edges[0], edges[-1]), bins=edges)[0]
    return np.array([np.sum(rates == 0), *counts]) / max(len(rates), 1)


def firing_edges(rates: Iterable[np.ndarray]) -> np.ndarray:
    """The edges of bins of log10 firing rate, four bins to a decade, down to the least positive rate or 1e-8."""
    least = min((float(r[r > 0].min()) for r in rates if np.any(r > 0)), default=0.1)
    low = max(np.floor(4 * np.log10(least)) / 4, -8)
    return np.arange(low, 0.125, 0.25)

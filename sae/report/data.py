"""From tables to what figures show: lines with their bands, grids, labels and colours. No drawing."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd

from sae.core.metrics import METRICS
from sae.store.storage import NUMBERS, OWN
from sae.study.answers import bootstrap, of_arm, short
from sae.study.figures import Profile, arm_name
from sae.study.measures import PREFIX

ARMS = ("#3b76c4", "#d9722e", "#2f9e6e", "#a45cb8", "#b89b2b", "#4aa8c0")  # one hue per arm, on light and on dark
GROUPS = ("#5578d8", "#2f9fb8", "#3fa860", "#a9a52c", "#dd8a30", "#d4553d")  # in order, where there is one arm
WIDE = 30  # values that span a larger factor than this are shown on a log scale


@dataclasses.dataclass(frozen=True)
class Line:
    """Some members in the order of the coefficient (or hyper-parameter) that is swept along the line."""

    name: str
    along: str
    colour: str
    strength: float  # opacity: groups of one arm differ in it
    mark: int | None  # the number of its group, the same in all arms; None where its arm has one group
    members: pd.DataFrame

    def means(self, x: str, y: str) -> pd.DataFrame:
        """A row per value along the line: means over seeds `x`, `y`, the 95 % interval `low`, `high` of y, `seeds`."""
        rows = [
            (value, of_value[x].mean(), of_value[y].mean(), *bootstrap(of_value[y].to_numpy()), len(of_value))
            for value, of_value in self.members.dropna(subset=list({x, y})).groupby(self.along)
        ]
        table = pd.DataFrame(rows, columns=["along", "x", "y", "low", "high", "seeds"])
        return table.astype(dict.fromkeys(("x", "y", "low", "high"), float))  # also where no member has both numbers


def lines(members: pd.DataFrame, along: Sequence[str], group: Sequence[str]) -> list[Line]:
    """A line per arm and combination of the group's values, those with fewer members than two points left out."""
    group = [name for name in group if name in members]
    found, places = [], {}
    for i, coefficient in enumerate(along):
        arm = of_arm(members, coefficient, along)
        combinations = list(arm.groupby(group, dropna=False)) if group else [((), arm)]
        for k, (values, of_line) in enumerate(combinations):
            place = 0.4 + 0.6 * (k + 1) / len(combinations)
            words = [f"{label(name)} {number(value)}" for name, value in zip(group, values, strict=True)]
            if len(along) > 1:
                name, colour, strength = ", ".join([arm_name(coefficient), *words]), ARMS[i % len(ARMS)], place
            else:
                name, strength = ", ".join(words) or arm_name(coefficient), 1.0
                colour = between(GROUPS, (k + 0.5) / len(combinations)) if len(combinations) > 1 else ARMS[0]
            mark = places.setdefault(tuple(words), len(places)) if len(combinations) > 1 else None
            found.append(Line(name, coefficient, colour, strength, mark, of_line))
    return found


def grids(
    members: pd.DataFrame, metric: str, along: Sequence[str], y: str, group: Sequence[str] = ()
) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Per panel: title, coefficient, means of a metric (a row per value of y, a column per one of the coefficient)."""
    group = [name for name in group if name in members]
    for coefficient in along:
        arm = of_arm(members, coefficient, along)
        for values, panel in arm.groupby(group, dropna=False) if group else [((), arm)]:
            words = [f"{label(name)} {number(value)}" for name, value in zip(group, values, strict=True)]
            yield ", ".join(words), coefficient, panel.pivot_table(index=y, columns=coefficient, values=metric)


def along(members: pd.DataFrame, figure: Profile) -> tuple[pd.DataFrame, bool]:
    """(the members that a profile shows, whether its x axis is logarithmic: then those at 0 have no place on it)."""
    members = of_arm(members, figure.x, [figure.x, *figure.others])
    x = members[figure.x].astype(float)
    log = bool((x > 0).any() and x.max() > WIDE * x[x > 0].min())
    return members[x > 0] if log else members, log


def hyper(members: pd.DataFrame) -> list[str]:
    """The hyper-parameters that differ between members."""
    own = (*OWN, "name", "number")
    names = [name for name in members if name not in own and not name.startswith(NUMBERS)]
    return [name for name in names if members[name].astype(str).nunique() > 1]


def metrics(members: pd.DataFrame) -> list[str]:
    """The columns of held-out numbers, in the order of their definitions."""
    evaluated = [f"eval/{name}" for name in METRICS if f"eval/{name}" in members]
    # a control's number is the same for every member of its data
    return evaluated + [name for name in members if name.startswith(PREFIX) and members[name].nunique() > 1]


def hover(members: pd.DataFrame) -> list[str]:
    """A few lines on each member: what it is, and its main numbers."""
    names = [*hyper(members)[:8], *(f"eval/{name}" for name in ("fvu", "l0", "dead_fraction", "mmcs"))]
    names = [name for name in names if name in members]
    columns = [[f"{label(name)} {number(value)}" for value in members[name]] for name in names]
    heads = [f"<b>member {member}</b>" for member in members["member"]]
    return ["<br>".join(words) for words in zip(heads, *columns, strict=True)]


def typical(members: pd.DataFrame, along: Sequence[str], group: Sequence[str], most: int = 6) -> list[int]:
    """Rows of the members to begin with: of each line the one in the middle, at the first seed."""
    of_lines = [line.members for line in lines(members, along, group)] if along else [members]
    rows = dict.fromkeys(int(of_line.index[len(of_line) // 2]) for of_line in of_lines if len(of_line))
    rows = list(rows)
    return rows if len(rows) <= most else [rows[i] for i in np.linspace(0, len(rows) - 1, most).round().astype(int)]


def label(name: str) -> str:
    """A column's name as figures show it: as it is in the tables, but for the window."""
    return short(name).removeprefix("train/")


def meaning(names: Iterable[str], members: pd.DataFrame | None = None) -> str:
    """Definitions of metrics, and of the columns that measures gave the members table, for a caption."""
    measured = {} if members is None else members.attrs.get("meanings", {})
    known = {name: metric.caption for name, metric in METRICS.items()}
    lines = {label(name): measured.get(name) or known.get(label(name)) for name in names}
    return " ".join(f"{name}: {line}." for name, line in lines.items() if line)


def number(value, digits: int = 3) -> str:
    """A value for a person."""
    if value is None or value is pd.NA:
        return "–"
    if isinstance(value, float | np.floating):
        return "–" if value != value else f"{value:,.0f}" if 100 <= abs(value) < 1e15 else f"{value:.{digits}g}"
    return str(value)


def between(colours: Sequence[str], t: float) -> str:
    """The colour at t in [0, 1] along a row of colours."""
    at = t * (len(colours) - 1)
    i = min(int(at), len(colours) - 2)
    pair = [[int(colour[k : k + 2], 16) for k in (1, 3, 5)] for colour in colours[i : i + 2]]
    mixed = [round(a + (at - i) * (b - a)) for a, b in zip(*pair, strict=True)]
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def rgba(colour: str, alpha: float) -> str:
    """ "#3b76c4", 0.5 -> "rgba(59,118,196,0.5)"."""
    return f"rgba({','.join(str(int(colour[k : k + 2], 16)) for k in (1, 3, 5))},{alpha:g})"


def log_ticks(values: Iterable[float]) -> list[float]:
    """The ticks of a log axis: 1, 2, 5, or powers of ten where there are many; beyond the values on both sides."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values) & (values > 0)]
    low, high = np.log10([values.min(), values.max()]) if values.size else (0, 1)
    digits = (1, 2, 5) if high - low < 2.5 else (1,)
    return [digit * 10.0**power for power in range(int(low) - 2, int(high) + 3) for digit in digits]


def thin(history: pd.DataFrame, points: int = 200) -> pd.DataFrame:
    """A history with at most so many log points of each member, the last among them."""
    place = history.groupby("member").cumcount(ascending=False)
    every = -(-int(place.max() + 1) // points) if len(history) else 1
    return history[place % every == 0]


def pairs(low: float, high: float) -> str:
    """An interval, or nothing where there is none."""
    return "" if low != low else f" [{number(low)}, {number(high)}]"


def unique(names: Iterable[str]) -> list[str]:
    """Names, each made different from those before it."""
    seen: dict[str, int] = {}
    counted = [(name, seen.setdefault(name, 0), seen.update({name: seen[name] + 1})) for name in names]
    return [name if not i else f"{name} ({i + 1})" for name, i, _ in counted]


def firing_histogram(rates: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Rates [d_sae] -> shares [1 + bins] of latents: the dead, then those whose log10 rate lies in each bin."""
    alive = np.log10(rates[rates > 0])
    counts = np.histogram(np.clip(alive, edges[0], edges[-1]), bins=edges)[0]
    return np.array([np.sum(rates == 0), *counts]) / max(len(rates), 1)


def firing_edges(rates: Iterable[np.ndarray]) -> np.ndarray:
    """Bins of log10 firing rate, four to a decade, down to the least rate there is."""
    least = min((float(r[r > 0].min()) for r in rates if np.any(r > 0)), default=0.1)
    low = max(np.floor(4 * np.log10(least)) / 4, -8)
    return np.arange(low, 0.125, 0.25)

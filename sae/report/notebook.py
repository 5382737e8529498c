"""Results as a notebook uses them: the tables and weights of a run, and its figures.

results = sae.load("runs/width_l1_l2")
results.members                  # a pandas table
results.frontier()               # a plotly figure
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sae.core.types import UserError
from sae.store import results
from sae.study import figures
from sae.study.answers import AtMatched
from sae.study.figures import Figure
from sae.study.measures import PREFIX

if TYPE_CHECKING:
    import plotly.graph_objects as go


class Results(results.Results):
    """The results of a run, read from its folder, finished or not; each figure is a method."""

    def frontier(self, **fields) -> "go.Figure":
        """L0 against FVU, a line per arm and group (`sae.Frontier`); fields replace those of the sweep's."""
        return self.draw(figures.Frontier, **fields)

    def profile(self, **fields) -> "go.Figure":
        """A metric along a hyper-parameter (`sae.Profile`)."""
        return self.draw(figures.Profile, **fields)

    def heatmap(self, **fields) -> "go.Figure":
        """A metric over two hyper-parameters (`sae.Heatmap`)."""
        return self.draw(figures.Heatmap, **fields)

    def parallel(self, **fields) -> "go.Figure":
        """Every member through parallel axes (`sae.Parallel`)."""
        return self.draw(figures.Parallel, **fields)

    def matched(self, **fields) -> "go.Figure":
        """Arms compared where one metric is equal (`sae.AtMatched`)."""
        return self.draw(AtMatched, **fields)

    def curves(self, members: Sequence[int] = (), **fields) -> "go.Figure":
        """Metrics over training of some members (`sae.Curves`)."""
        return self.draw(figures.Curves, members, **fields)

    def firing_rates(self, members: Sequence[int] = (), **fields) -> "go.Figure":
        """Histograms of firing rates of some members (`sae.FiringRates`)."""
        return self.draw(figures.FiringRates, members, **fields)

    def draw(self, figure: Figure | type[Figure], members: Sequence[int] = (), **fields) -> "go.Figure":
        """A figure in plotly: a definition, or the first of its kind that the sweep shows, with some fields replaced.

        Raises UserError for names that are not there.
        """
        from sae.report import draw  # importing plotly takes a second, which only figures need

        if isinstance(figure, type):
            shown = next((known for known in self.figures if isinstance(known, figure)), None)
            try:
                figure = dataclasses.replace(shown, **fields) if shown else figure(**fields)
            except TypeError as error:
                names = ", ".join(field.name for field in dataclasses.fields(figure))
                raise UserError(f"{figure.__name__}: {' '.join(str(error).split())}; fields: {names}") from None
        table = self.members
        names = [name for flat in self.definition["members"] for name in flat]
        figure.check(dict.fromkeys([*names, *(name for name in table if name.startswith(PREFIX))]))
        sound = table[table["status"] == "finished"]
        rates = {m: of for cohort in self.cohorts if cohort.finished for m, of in cohort.firing_rates().items()}
        chosen = [int(row) for member in members for row in sound.index[sound["member"] == member]]
        return draw.draw(figure, sound, self.history, rates, chosen).update_layout(template="simple_white")


def load(folder: str | Path) -> Results:
    """Open a run's folder. Raises UserError if the folder holds no run."""
    return Results(folder)

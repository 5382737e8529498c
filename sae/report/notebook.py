"""A run's results in a notebook: its tables, its weights, and its figures in plotly.

results = sae.load("runs/width_l1_l2")
results.members                        # a pandas table
results.frontier(y="eval/n_eff")       # a plotly figure; the fields of sae.Frontier may be replaced
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.core.text import ranges
from sae.core.types import UserError
from sae.store import results
from sae.study import figures
from sae.study.answers import AtMatched
from sae.study.figures import Figure
from sae.study.measures import PREFIX

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from sae.report.features import Features


class Results(results.Results):
    """The results of a run, read from its folder, finished or not; each kind of figure is a method.

    A method draws the sweep's first figure of its kind, or the default one where the sweep shows none. Its arguments
    replace fields of that figure. `members` are the numbers of the members to show; without them, the first six.
    """

    def frontier(self, **fields: Any) -> "go.Figure":
        """L0 against FVU, a line per arm and group (`sae.Frontier`)."""
        return self.draw(figures.Frontier, **fields)

    def profile(self, **fields: Any) -> "go.Figure":
        """A metric along a hyper-parameter (`sae.Profile`)."""
        return self.draw(figures.Profile, **fields)

    def heatmap(self, **fields: Any) -> "go.Figure":
        """A metric over two hyper-parameters (`sae.Heatmap`)."""
        return self.draw(figures.Heatmap, **fields)

    def agreement_matrix(self, **fields: Any) -> "go.Figure":
        """The MCC of members of every two groups, beside that of random dictionaries (`sae.AgreementMatrix`)."""
        return self.draw(figures.AgreementMatrix, **fields)

    def parallel(self, **fields: Any) -> "go.Figure":
        """Every member through parallel axes (`sae.Parallel`)."""
        return self.draw(figures.Parallel, **fields)

    def matched(self, **fields: Any) -> "go.Figure":
        """Arms compared where one metric is equal (`sae.AtMatched`)."""
        return self.draw(AtMatched, **fields)

    def curves(self, members: int | Sequence[int] = (), **fields: Any) -> "go.Figure":
        """Metrics of some members during training (`sae.Curves`)."""
        return self.draw(figures.Curves, members, **fields)

    def firing_rates(self, members: int | Sequence[int] = (), **fields: Any) -> "go.Figure":
        """Histograms of firing rates of some members (`sae.FiringRates`)."""
        return self.draw(figures.FiringRates, members, **fields)

    def features(self, member: int, *, split: str = "held-out", examples: int = 16_384) -> "Features":
        """What the latents of a member do on text, where it was trained on `sae.Activations`.

        A notebook shows it as a table; `.table` has all latents, and `[120]` is latent 120 with its contexts.
        `examples` of a split, "held-out" or "train", are looked at. Raises UserError for other data, and for a member
        that the run does not have.
        """
        from sae.report.features import gather

        return gather(self, [member], split=split, examples=examples)[0]

    def draw(self, figure: Figure | type[Figure], members: int | Sequence[int] = (), **fields: Any) -> "go.Figure":
        """Draw a definition, or a kind of figure as the methods above do, with some fields replaced.

        Raises UserError for a field that the figure does not have; for hyper-parameters, metrics and members that the
        run does not have; and for `sae.Dictionaries`, which only the report draws.
        """
        from sae.report import agreements, draw  # importing plotly takes a second, which only figures need

        figure = self._definition(figure, fields)
        if isinstance(figure, figures.AgreementMatrix):
            figure.check([name for flat in self.definition["members"] for name in flat])
            drawn = draw.agreement(agreements.look(self, figure), figure, self.members)
            return drawn.update_layout(template="simple_white")
        if isinstance(figure, figures.Dictionaries):
            raise UserError("got Dictionaries, allowed: the other figures; `sae report` shows dictionaries")
        table = self.members
        names = [name for flat in self.definition["members"] for name in flat]
        figure.check(dict.fromkeys([*names, *(name for name in table if name.startswith(PREFIX))]))
        sound = table[table["status"] == "finished"]
        rows = {int(member): int(row) for row, member in sound["member"].items()}
        wanted: list[int] = [members] if isinstance(members, int) else [*members]
        unknown = [member for member in wanted if member not in rows]
        if not rows or unknown:
            got = f"member {', '.join(map(str, unknown))}" if unknown else "no member"
            raise UserError(
                f"{self.folder}: got {got}, allowed: those that finished and did not diverge: {ranges(rows) or 'none'}"
            )
        rates = {m: found for cohort in self.cohorts if cohort.finished for m, found in cohort.firing_rates().items()}
        chosen = [rows[member] for member in wanted]
        return draw.draw(figure, sound, self.history, rates, chosen).update_layout(template="simple_white")

    def _definition(self, figure: Figure | type[Figure], fields: Mapping[str, Any]) -> Figure:
        """The figure, or the sweep's first one of that kind, with some fields replaced."""
        kind = figure if isinstance(figure, type) else type(figure)
        known = [figure, *self.figures]
        shown = next((one for one in known if not isinstance(one, type) and isinstance(one, kind)), None)
        try:
            return dataclasses.replace(shown, **fields) if shown else kind(**fields)
        except TypeError as error:
            names = ", ".join(field.name for field in dataclasses.fields(kind))
            raise UserError(f"{kind.__name__}: {' '.join(str(error).split())}; fields: {names}") from None


def load(folder: str | Path) -> Results:
    """Open a run's folder. Raises UserError if it holds no run."""
    return Results(folder)

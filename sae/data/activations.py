"""Activations of a language model, from the folder that `sae harvest` wrote."""

from sae.core.files import located
from sae.core.text import count
from sae.core.types import UserError, definition, static
from sae.data import harvested
from sae.data.harvested import Harvested
from sae.data.rows import Rows, rows, table_fingerprint
from sae.data.source import Normalize, Source


@definition
class Activations(Source):
    """Activations of a language model that `sae harvest` wrote, a row for every token that it kept.

    The folder's card gives the width of rows and their split: held-out rows are of documents that training never sees.
    Row i of the folder's held-out half is held-out example i. Rows are memory-mapped and may be larger than memory.
    """

    path: str = static(path=True)
    """The folder. A relative path in a definition file is looked for beside that file first, then from the working
    directory."""
    hook: str | tuple[str, ...] | None = static(None)
    """Where in the model, such as resid-post.9; None where the folder has one hook only. Two are a transcoder's input
    and its target, several are the sources of a crosscoder."""
    normalize: Normalize = static("mean-norm-sqrt-d")
    """What is done to rows: none, centre, unit-mean-norm, mean-norm-sqrt-d, centre-unit-mean-norm or standardize (see
    `sae.rows`). The default makes the mean norm of a row sqrt(d), as Anthropic's updates and SAELens do. Norms differ
    between models and layers, and one learning rate and one coefficient then serve all."""

    def load(self) -> Rows:
        """Map the shards and measure their rows in one pass. Raises UserError for a folder that is no whole harvest."""
        folder = self.harvested()
        train, held_out = ([folder.part(name).rows(hook) for hook in self._hooks(folder)] for name in harvested.SPLITS)
        one = lambda tables: tables if len(tables) > 1 else tables[0]
        return rows(one(train), one(held_out), self.normalize, f"Activations {self.path}")

    def harvested(self) -> Harvested:
        """The folder, with the tokens that rows stand on. Raises UserError."""
        return harvested.open_folder(located(self.path))

    def hooks(self) -> tuple[str, ...]:
        """The names of the hooks whose rows stand side by side in an example. Raises UserError."""
        return self._hooks(self.harvested())

    def fingerprint(self) -> dict[str, str]:
        """The model of the card, and shapes and the hash of a fixed sample of the rows of every hook."""
        folder = self.harvested()
        found = {"model": str(folder.card.get("revision") or folder.card.get("model"))}
        for hook in self._hooks(folder):
            for name, what in zip(harvested.SPLITS, ("training", "held-out"), strict=True):
                found |= table_fingerprint(folder.part(name).rows(hook), what, of=f" at {hook}")
        return found

    def _hooks(self, folder: Harvested) -> tuple[str, ...]:
        if self.hook is None:
            if len(folder.hooks) > 1:
                there = ", ".join(folder.hooks)
                raise UserError(f"{self.path}: holds {count(len(folder.hooks), 'hook')}; set hook to one of: {there}")
            return folder.hooks
        hooks = (self.hook,) if isinstance(self.hook, str) else self.hook
        if not hooks:
            raise UserError(f"{self.path}: hook: got none, allowed: one or more of: {', '.join(folder.hooks)}")
        for hook in hooks:
            folder.part("train").rows(hook)  # raises the line that names the hooks
        return hooks

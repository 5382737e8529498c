"""How a run is carried out."""

import dataclasses
from pathlib import Path
from typing import Any, Literal, Self

from sae.core.files import expanded
from sae.core.text import nearest
from sae.core.types import UserError
from sae.data.feed import RESIDENT_BYTES
from sae.engine.plan import parse_shard


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How a run is carried out. No field changes a result; `lanes` and `mesh` change how sums are rounded."""

    out: Path | None = None
    """Folder of the results; runs/<name> if not given."""
    fresh: bool = False
    """Move an older run in that folder aside and start again."""
    only: tuple[int, ...] = ()
    """Train only the cohorts with these numbers in the plan; other processes may train others in the same folder."""
    shard: str | None = None
    """Train part i of n, as 2/4, with the cohorts shared out by their cost."""
    pieces: int = 1
    """Cut the sweep into at least this many cohorts, one process or job each with --launcher."""
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """Weights & Biases; auto is online if a key is configured, else offline."""
    wandb_project: str = "sparsity-lab"
    """The W&B project."""
    wandb_images: int = 0
    """How often W&B gets the dictionaries of image data during training, beside the end."""
    wandb_artifacts: bool = False
    """Give W&B the weights too, as an artifact of the sweep's run."""
    chunk_steps: int | None = None
    """Steps between two log points."""
    lanes: int | None = None
    """Members computed at once; the fastest number is measured if not given."""
    mesh: str | None = None
    """Several devices: member=2,latent=4 divides members over 2 groups of 4, and each member's latents over 4; members
    over all devices if not given."""
    resident_bytes: int = RESIDENT_BYTES
    """Data of up to this many bytes is kept on the device; larger data is streamed from the host."""
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints; a stopped run resumes from the last."""
    keep_every: int | None = None
    """Keep the weights of all members after every so many steps, to watch latents form; `Results.sae` reads them."""
    keep_state: bool = False
    """Keep the last state of the training too, 3 times the weights: with it the run can be trained for longer."""
    report: bool = False
    """Write report.html, and its figures for a paper, when every member is finished."""

    def replace(self, **fields: Any) -> Self:
        """These options with some fields replaced. Raises UserError for a field that does not exist."""
        names = [field.name for field in dataclasses.fields(self)]
        for name in fields:
            if name not in names:
                raise UserError(f"run has no option {name!r}; {nearest(name, names)}")
        return dataclasses.replace(self, **fields)

    def validate(self) -> None:
        """Raise UserError for values that are not allowed."""
        for name, least in (("chunk_steps", 1), ("lanes", 1), ("wandb_images", 0), ("keep_every", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name}: got {value}, allowed: at least {least}")
        if self.fresh and (self.only or self.shard):
            raise UserError(
                "fresh: got it with a part of the sweep, allowed: the whole sweep, as it moves all parts aside"
            )

    def folder(self, name: str) -> Path:
        """The folder of the results of a sweep with this name."""
        return expanded(self.out) if self.out is not None else Path("runs") / name

    @property
    def least_cohorts(self) -> int:
        """The least number of cohorts to cut a sweep into. Raises UserError for a shard that is none."""
        return parse_shard(self.shard)[1] if self.shard else self.pieces

"""Parts of a sweep in processes of their own: several at once on this machine, or each as a Slurm job.

A part is a command that saves and exits at SIGTERM, and that goes on from there when it is given again. So nothing here
knows what a part does: a launcher starts the commands, passes signals on, waits, and tells which of them failed.
"""

from collections.abc import Sequence
from pathlib import Path

from sae.runner.launchers import local, slurm
from sae.runner.launchers.parts import Failure, Options, Part, Say

__all__ = ["Failure", "Options", "Part", "launch"]


def launch(parts: Sequence[Part], folder: Path, options: Options, say: Say) -> list[Failure]:
    """Run parts with the launcher that the options name, local or slurm -> those that failed. Raises as these do."""
    if options.launcher == "slurm":
        return slurm.run(parts, folder, options, say)
    return local.run(parts, folder, options.workers, say)

"""Parts of a sweep in processes of their own: several at once on this machine, or each as a Slurm job.

A part is a command that saves and exits at SIGTERM, and that resumes when it is started again. A launcher knows nothing
else of it: it starts the commands, passes signals on, waits, and tells which of them failed.
"""

from collections.abc import Sequence
from pathlib import Path

from sae.runner.launchers import local, slurm
from sae.runner.launchers.parts import Failure, LaunchOptions, Part, Say

__all__ = ["Failure", "LaunchOptions", "Part", "launch"]


def launch(parts: Sequence[Part], folder: Path, options: LaunchOptions, say: Say) -> list[Failure]:
    """Run parts with the launcher that the options name, local or slurm -> those that failed. Raises as these do."""
    launcher = slurm if options.launcher == "slurm" else local
    return launcher.run(parts, folder, options, say)

"""`sae lambda`: a coefficient of one library in the convention of another."""

import dataclasses
from typing import Annotated

from tyro.conf import arg

from sae.cli.command import Command, read
from sae.core.console import show
from sae.core.types import UserError
from sae.interop.coefficients import CONVENTIONS, Given, convert


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The coefficient, and what its conversion needs."""

    from_: Annotated[tuple[str, float], arg(name="from", metavar="LIBRARY NUMBER")] = ("", 0.0)
    """The convention and the coefficient in it."""
    to: str = ""
    """The convention to convert to; all of them if not given."""
    d_in: int | None = None
    """Width of an input, where a convention takes the mean over it."""
    batch: int | None = None
    """Examples in a batch, where a convention sums over them."""
    variance: float | None = None
    """The mean of ‖x - x̄‖², summed over d_in, of --from's inputs, where a convention divides by it."""
    input_scale: float = 1.0
    """What the inputs of --from are multiplied by to give those of --to."""


def main(argv: list[str]) -> int:
    """Print the coefficient, or a table of all conventions."""
    options = read(Options, argv, COMMAND)
    name, value = options.from_
    if not name:
        raise UserError(f"lambda: got no --from, allowed: sae {COMMAND.usage}")
    given = Given(options.d_in, options.batch, options.variance)
    if options.to:
        found = convert(value, name, options.to, given, options.input_scale)
        there = CONVENTIONS[options.to]
        show(f"{there.coefficient} = {found:.10g}")
        show(f"in {options.to}: {there.form}\n{value:.10g} in {name}: {CONVENTIONS[name].form}")
        return 0
    lines = []
    for other, convention in CONVENTIONS.items():
        try:
            number = f"{convert(value, name, other, given, options.input_scale):.10g}"
        except UserError as error:
            if name not in CONVENTIONS or not str(error).startswith(("no conversion", "d-in", "batch", "variance")):
                raise
            number = f"–  {error}"
        lines.append(f"{other}: {convention.coefficient} = {number}")
    show("\n".join(lines))
    return 0


COMMAND = Command(
    "lambda --from LIBRARY NUMBER [--to LIBRARY] [--d-in N] [--batch N]",
    "Convert a sparsity coefficient between the conventions of libraries.",
    main,
)

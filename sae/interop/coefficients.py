"""Coefficients of sparsity between the conventions of libraries, at an equal trade-off.

A convention trains on `error / e + c · p · penalty`, where error is `mean_b Σ_d (x - x_hat)²` and penalty is, for L1,
`mean_b Σ_i |f_i| ‖W_dec,i‖`. So `c · p · e` is the coefficient in the form of this project, SAELens and
dictionary_learning. Any conversion takes a decoder with rows of norm 1 where a library does not weigh latents by them.
"""

import dataclasses
from collections.abc import Callable

from sae.core.text import nearest
from sae.core.types import UserError

L1, L0 = "Σ|f|", "#(f ≠ 0)"
EACH_L0, MEAN_L0, TANH = "(2/T)(L0 of an example − T)²", "(mean L0 / T − 1)²", "Σ tanh(4 f ‖W_dec,i‖)"


@dataclasses.dataclass(frozen=True)
class Given:
    """The numbers that a conversion may need, None where they were not given."""

    d_in: int | None = None  # width of an input
    batch: int | None = None  # examples in a batch
    variance: float | None = None  # mean_b ‖x - x̄‖², summed over d_in


@dataclasses.dataclass(frozen=True)
class Convention:
    """How a library weighs its penalty."""

    coefficient: str  # the name that it has there
    form: str  # the loss, in a line
    penalty: str = L1
    divisor: Callable[[Given], float] = lambda given: 1.0  # p · e
    needs: tuple[str, ...] = ()  # the fields of `Given` that the divisor reads
    alone: str = ""  # why nothing converts to it


CONVENTIONS = {
    "sparsity_lab": Convention("penalty.l1", "mean_b Σ_d e² + c mean_b Σ|f|"),
    "saelens": Convention("l1_coefficient", "mean_b Σ_d e² + c mean_b Σ|f|‖W_dec,i‖"),
    "dictionary_learning": Convention("l1_penalty", "mean_b Σ_d e² + c mean_b Σ|f|, rows of norm 1"),
    "dictionary_learning_april": Convention("l1_penalty", "mean_b Σ_d e² + c mean_b Σ|f|‖W_dec,i‖"),
    "sparse_coding": Convention(
        "l1_alpha", "mean_b mean_d e² + c mean_b Σ|f|, rows of norm 1",
        divisor=lambda given: float(given.d_in or 1), needs=("d_in",),
    ),
    "saex": Convention(
        "sparsity_coefficient", "mean_b mean_d e² + c mean_b Σ|f|", divisor=lambda given: float(given.d_in or 1),
        needs=("d_in",),
    ),
    "overcomplete": Convention(
        "penalty", "mean_b mean_d e² + c Σ_b Σ|f|",
        divisor=lambda given: float((given.d_in or 1) * (given.batch or 1)), needs=("d_in", "batch"),
    ),
    "sparsify": Convention(
        "a penalty beside its FVU", "Σ_b Σ_d e² / Σ_b Σ_d (x − x̄)² + c mean_b Σ|f|",
        divisor=lambda given: given.variance or 1.0, needs=("variance",),
    ),
    "openai": Convention(
        "l1_weight", "mean_b (mean_d e² / mean_d x²) + c mean_b Σ|f| / ‖x‖",
        alone="openai divides the error of an example by ‖x‖² and its penalty by ‖x‖, so that each example has its own "
        "trade-off",
    ),
    "sparsity_lab_l0": Convention("penalty.weight of L0", "mean_b Σ_d e² + c mean_b #(f ≠ 0)", L0),
    "saelens_step": Convention("l0_coefficient", "mean_b Σ_d e² + c mean_b #(f ≠ 0)", L0),
    "saelens_quadratic": Convention("l0_coefficient", "mean_b Σ_d e² + c mean_b (2/T)(L0_b − T)²", EACH_L0),
    "saelens_tanh": Convention("l0_coefficient", "mean_b Σ_d e² + c mean_b Σ tanh(4 f ‖W_dec,i‖)", TANH),
    "dictionary_learning_jumprelu": Convention("sparsity_penalty", "mean_b Σ_d e² + c (mean_b L0_b / T − 1)²", MEAN_L0),
}  # fmt: skip


def convert(value: float, of: str, to: str, given: Given, scale: float = 1.0) -> float:
    """A coefficient of one convention in another, exact for an equal trade-off.

    `scale`: the inputs of `to` are those of `of` times this; an L1 coefficient grows with it, a count's does with its
    square. Raises UserError where a number is missing, or where no number converts: its line says why.
    """
    a, b = _known(of, "from"), _known(to, "to")
    if not value >= 0 or value == float("inf"):
        raise UserError(f"{of}: got {value:g}, allowed: a coefficient of at least 0")
    if not 0 < scale < float("inf"):
        raise UserError(f"input-scale: got {scale:g}, allowed: above 0")
    for name, number in dataclasses.asdict(given).items():
        if number is not None and not 0 < number < float("inf"):
            raise UserError(f"{name.replace('_', '-')}: got {number:g}, allowed: a number above 0")
    if of == to and scale == 1:
        return value
    for one in (a, b):
        if one.alone:
            raise UserError(f"no conversion from {of} to {to}: {one.alone}")
    if a.penalty != b.penalty:
        raise UserError(f"no conversion from {of} to {to}: one charges {a.penalty}, the other {b.penalty}")
    power = {L1: 1, L0: 2, EACH_L0: 2, MEAN_L0: 2}.get(a.penalty)
    if power is None and scale != 1:
        raise UserError(f"no conversion to inputs of another scale: {a.penalty} is no power of the latents")
    for name in dict.fromkeys((*a.needs, *b.needs)):
        who = of if name in a.needs else to
        if getattr(given, name) is None:
            raise UserError(
                f"{name.replace('_', '-')}: got none, allowed: a number above 0, as {who} trains on {_form(who)}"
            )
    # the variance that divides the error is that of the inputs at hand, so the other's is scale² times it
    scaled = dataclasses.replace(given, variance=None if given.variance is None else given.variance * scale**2)
    return value * a.divisor(given) / b.divisor(scaled) * scale ** (power or 0)


def _known(name: str, flag: str) -> Convention:
    if name not in CONVENTIONS:
        raise UserError(f"{flag}: got {name!r}; {nearest(name, CONVENTIONS)}")
    return CONVENTIONS[name]


def _form(name: str) -> str:
    return CONVENTIONS[name].form

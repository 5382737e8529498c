"""Penalties: the cost of a batch's latents, beside the error of the reconstruction."""

from sae.methods.penalties.counts import L0, FiringRateKL, QuadraticL0
from sae.methods.penalties.norms import ElasticNet, Lp, NormalizedL1, SquareRoot
from sae.methods.penalties.saturating import Hoyer, LogPenalty, TanhPenalty

__all__ = [
    "L0",
    "ElasticNet",
    "FiringRateKL",
    "Hoyer",
    "LogPenalty",
    "Lp",
    "NormalizedL1",
    "QuadraticL0",
    "SquareRoot",
    "TanhPenalty",
]

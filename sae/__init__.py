"""Sparsity Lab: sweeps of sparse autoencoders, trained together in one compiled program."""

from sae.core.model import Sae
from sae.core.types import UserError, definition, leaf, static
from sae.data import Arrays, Digits, ImagePatches, Orthonormal, Superposition, Tfds
from sae.data.source import Rows, Sampler, rows
from sae.experiment import Experiment, replace
from sae.methods.activations import Relu, TopK
from sae.methods.constraints import Free, UnitNorm, UnitNormNoBias
from sae.methods.optimizers import Adam
from sae.methods.penalties import ElasticNet
from sae.methods.revival import Never, Resample
from sae.report.notebook import Results, load
from sae.runner.run import run
from sae.study.answers import AtMatched, Best
from sae.study.claims import AtLeast, AtMost, Claim, Within
from sae.study.figures import Curves, Dictionaries, FiringRates, Frontier, Heatmap, Parallel, Profile
from sae.study.sweep import Sweep, grid

__all__ = [
    "Adam",
    "AtLeast",
    "Arrays",
    "AtMatched",
    "AtMost",
    "Best",
    "Claim",
    "Curves",
    "Dictionaries",
    "Digits",
    "ElasticNet",
    "Experiment",
    "FiringRates",
    "Free",
    "Frontier",
    "Heatmap",
    "ImagePatches",
    "Never",
    "Orthonormal",
    "Parallel",
    "Profile",
    "Relu",
    "Resample",
    "Results",
    "Rows",
    "Sae",
    "Sampler",
    "Superposition",
    "Sweep",
    "Tfds",
    "TopK",
    "UnitNorm",
    "UnitNormNoBias",
    "UserError",
    "Within",
    "definition",
    "grid",
    "leaf",
    "load",
    "replace",
    "rows",
    "run",
    "static",
]

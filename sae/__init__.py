"""Sparsity Lab: sweeps of sparse autoencoders, trained together in one compiled program."""

from sae.activations import Relu, TopK
from sae.answers import AtMatched, Best
from sae.claims import AtLeast, AtMost, Claim, Within
from sae.constraints import Free, UnitNorm, UnitNormNoBias
from sae.data import Arrays, Digits, ImagePatches, Orthonormal, Superposition, Tfds
from sae.data.source import Rows, Sampler, rows
from sae.experiment import Experiment, replace
from sae.figures import Curves, Dictionaries, FiringRates, Frontier, Heatmap, Parallel, Profile
from sae.model import Sae
from sae.optimizers import Adam
from sae.penalties import ElasticNet
from sae.results import Results, load
from sae.revival import Never, Resample
from sae.runner import run
from sae.sweep import Sweep, grid
from sae.types import UserError, definition, leaf, static

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

"""Sparsity Lab: sweeps of sparse autoencoders, trained together in one compiled program."""

from sae.core.definitions import replace
from sae.core.model import Pass, Sae
from sae.core.types import UserError, definition, leaf, static
from sae.data import Arrays, Digits, ImagePatches, Orthonormal, Superposition, Tfds
from sae.data.rows import Rows, rows
from sae.data.sampler import Sampler
from sae.data.source import Examples, Source
from sae.experiment import Experiment
from sae.methods.activations import BatchTopK, Gated, JumpRelu, Relu, TopK
from sae.methods.auxiliaries import AuxK, NoAuxiliary
from sae.methods.averages import Ema, Last
from sae.methods.constraints import Free, UnitNorm, UnitNormNoBias
from sae.methods.contract import (
    Activation,
    Auxiliary,
    Average,
    Constraint,
    Control,
    Optimizer,
    Penalty,
    Reconstruction,
    Revival,
)
from sae.methods.controls import AsWritten, TargetL0
from sae.methods.optimizers import Adam
from sae.methods.penalties import L0, ElasticNet, Lp
from sae.methods.reconstructions import Matryoshka, SquaredError
from sae.methods.revival import Never, Resample
from sae.report.notebook import Results, load
from sae.runner.run import run
from sae.study.answers import AtMatched, Best
from sae.study.claims import AtLeast, AtMost, Claim, Within
from sae.study.figures import Curves, Dictionaries, FiringRates, Frontier, Heatmap, Parallel, Profile
from sae.study.frontiers import Arm
from sae.study.sweep import Sweep, grid

__all__ = [
    "Activation",
    "Adam",
    "Arrays",
    "Arm",
    "AsWritten",
    "AtLeast",
    "AtMatched",
    "AtMost",
    "AuxK",
    "Auxiliary",
    "Average",
    "BatchTopK",
    "Best",
    "Claim",
    "Constraint",
    "Control",
    "Curves",
    "Dictionaries",
    "Digits",
    "ElasticNet",
    "Ema",
    "Examples",
    "Experiment",
    "FiringRates",
    "Free",
    "Frontier",
    "Gated",
    "Heatmap",
    "ImagePatches",
    "JumpRelu",
    "L0",
    "Last",
    "Lp",
    "Matryoshka",
    "Never",
    "NoAuxiliary",
    "Optimizer",
    "Orthonormal",
    "Parallel",
    "Pass",
    "Penalty",
    "Profile",
    "Reconstruction",
    "Relu",
    "Resample",
    "Results",
    "Revival",
    "Rows",
    "Sae",
    "Sampler",
    "Source",
    "SquaredError",
    "Superposition",
    "Sweep",
    "TargetL0",
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

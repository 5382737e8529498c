"""Sparsity Lab: sweeps of sparse autoencoders, trained together in one compiled program."""

from sae.core.definitions import replace
from sae.core.model import Pass, Sae
from sae.core.types import UserError, definition, leaf, static
from sae.data import Arrays, Digits, ImagePatches, Orthonormal, Superposition, Tfds
from sae.data.rows import Rows, rows
from sae.data.sampler import Sampler
from sae.data.source import Examples, Source
from sae.experiment import Experiment
from sae.methods.activations import BatchTopK, Gated, JumpRelu, Relu, Sigmoid, SoftThreshold, Tanh, TopK
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
    Task,
)
from sae.methods.controls import AsWritten, SaeLensTargetL0, TargetL0
from sae.methods.optimizers import Adam
from sae.methods.penalties import (
    L0,
    ElasticNet,
    FiringRateKL,
    Hoyer,
    LogPenalty,
    Lp,
    NormalizedL1,
    QuadraticL0,
    SquareRoot,
    TanhPenalty,
)
from sae.methods.reconstructions import Cosine, DrawnMatryoshka, Fvu, Matryoshka, NormalizedMse, SquaredError
from sae.methods.revival import Never, Resample
from sae.methods.tasks import Autoencoder, Crosscoder, Transcoder
from sae.report.notebook import Results, load
from sae.runner.run import run
from sae.study.answers import AtMatched, Best
from sae.study.claims import AtLeast, AtMost, Claim, Within
from sae.study.figures import Curves, Dictionaries, FiringRates, Frontier, Heatmap, Parallel, Profile
from sae.study.sweep import Sweep, grid

__all__ = [
    "Activation",
    "Adam",
    "Arrays",
    "AsWritten",
    "AtLeast",
    "AtMatched",
    "AtMost",
    "AuxK",
    "Autoencoder",
    "Auxiliary",
    "Average",
    "BatchTopK",
    "Best",
    "Claim",
    "Constraint",
    "Control",
    "Cosine",
    "Crosscoder",
    "Curves",
    "Dictionaries",
    "Digits",
    "DrawnMatryoshka",
    "ElasticNet",
    "Ema",
    "Examples",
    "Experiment",
    "FiringRateKL",
    "FiringRates",
    "Free",
    "Frontier",
    "Fvu",
    "Gated",
    "Heatmap",
    "Hoyer",
    "ImagePatches",
    "JumpRelu",
    "L0",
    "Last",
    "LogPenalty",
    "Lp",
    "Matryoshka",
    "Never",
    "NoAuxiliary",
    "NormalizedL1",
    "NormalizedMse",
    "Optimizer",
    "Orthonormal",
    "Parallel",
    "Pass",
    "Penalty",
    "Profile",
    "QuadraticL0",
    "Reconstruction",
    "Relu",
    "Resample",
    "Results",
    "Revival",
    "Rows",
    "Sae",
    "SaeLensTargetL0",
    "Sampler",
    "Sigmoid",
    "SoftThreshold",
    "Source",
    "SquareRoot",
    "SquaredError",
    "Superposition",
    "Sweep",
    "Tanh",
    "TanhPenalty",
    "TargetL0",
    "Task",
    "Tfds",
    "TopK",
    "Transcoder",
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

"""Sparsity Lab: sweeps of sparse autoencoders, trained together in one compiled program."""

from sae import interop, lm
from sae.core.definitions import replace
from sae.core.model import Pass, Sae
from sae.core.types import UserError, definition, leaf, static
from sae.data import (
    Activations,
    Arrays,
    Digits,
    Hierarchy,
    ImagePatches,
    Orthonormal,
    Superposition,
    SynthBench,
    SynthWorld,
    Tfds,
)
from sae.data.rows import Rows, rows
from sae.data.sampler import Sampler
from sae.data.source import Examples, Source
from sae.experiment import Experiment
from sae.interop.hub import load_pretrained
from sae.methods.activations import (
    AbsTopK,
    BatchTopK,
    Gated,
    GroupMax,
    JumpRelu,
    MatchingPursuit,
    MultiTopK,
    Relu,
    Sigmoid,
    SoftThreshold,
    Tanh,
    TopAfa,
    TopK,
)
from sae.methods.auxiliaries import AuxK, GhostGradients, NoAuxiliary, PreActivationLoss, SquaredWeights
from sae.methods.averages import Ema, Last
from sae.methods.constraints import AtMostUnitNorm, Free, UnitNorm, UnitNormNoBias
from sae.methods.contract import (
    Activation,
    Auxiliary,
    Average,
    Constraint,
    Control,
    Initialization,
    Optimizer,
    Penalty,
    Reconstruction,
    Revival,
    Task,
)
from sae.methods.controls import AsWritten, SaeLensTargetL0, TargetL0
from sae.methods.initialization import DataRows, GivenWeights, RandomRows
from sae.methods.optimizers import Adam, Lion, Muon, ScheduleFree
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
from sae.methods.reconstructions import Cosine, DrawnMatryoshka, Fvu, Matryoshka, NormalizedMse, SquaredError, Through
from sae.methods.revival import Never, Resample
from sae.methods.tasks import Autoencoder, Crosscoder, Transcoder
from sae.report.notebook import Results, load
from sae.runner.run import run
from sae.study.answers import AtMatched, Best
from sae.study.claims import AtLeast, AtMost, Claim, Within
from sae.study.figures import Curves, Dictionaries, FiringRates, Frontier, Heatmap, Parallel, Profile
from sae.study.frontiers import Arm
from sae.study.sweep import Sweep, grid

__all__ = [
    "AbsTopK",
    "Activation",
    "Activations",
    "Adam",
    "Arrays",
    "Arm",
    "AsWritten",
    "AtLeast",
    "AtMatched",
    "AtMost",
    "AtMostUnitNorm",
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
    "DataRows",
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
    "GivenWeights",
    "GhostGradients",
    "GroupMax",
    "Heatmap",
    "Hierarchy",
    "Hoyer",
    "ImagePatches",
    "Initialization",
    "JumpRelu",
    "L0",
    "Last",
    "Lion",
    "LogPenalty",
    "Lp",
    "MatchingPursuit",
    "Matryoshka",
    "Muon",
    "MultiTopK",
    "Never",
    "NoAuxiliary",
    "NormalizedL1",
    "NormalizedMse",
    "Optimizer",
    "Orthonormal",
    "Parallel",
    "Pass",
    "Penalty",
    "PreActivationLoss",
    "Profile",
    "QuadraticL0",
    "RandomRows",
    "Reconstruction",
    "Relu",
    "Resample",
    "Results",
    "Revival",
    "Rows",
    "Sae",
    "SaeLensTargetL0",
    "Sampler",
    "ScheduleFree",
    "Sigmoid",
    "SoftThreshold",
    "Source",
    "SquareRoot",
    "SquaredError",
    "SquaredWeights",
    "Superposition",
    "Sweep",
    "SynthBench",
    "SynthWorld",
    "Tanh",
    "TanhPenalty",
    "TargetL0",
    "Task",
    "Tfds",
    "Through",
    "TopAfa",
    "TopK",
    "Transcoder",
    "UnitNorm",
    "UnitNormNoBias",
    "UserError",
    "Within",
    "definition",
    "grid",
    "interop",
    "leaf",
    "lm",
    "load",
    "load_pretrained",
    "replace",
    "rows",
    "run",
    "static",
]

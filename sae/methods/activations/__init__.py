"""Activations: pre-activations to latents. Feature-major: axis 0 is the latents, axis 1 the batch."""

from sae.methods.activations.largest import AbsTopK, BatchTopK, GroupMax, MultiTopK, TopAfa, TopK
from sae.methods.activations.pointwise import Relu, Sigmoid, Tanh, elementwise, relu
from sae.methods.activations.pursuit import MatchingPursuit
from sae.methods.activations.thresholds import Gated, JumpRelu, SoftThreshold

__all__ = [
    "AbsTopK",
    "BatchTopK",
    "Gated",
    "GroupMax",
    "JumpRelu",
    "MatchingPursuit",
    "MultiTopK",
    "Relu",
    "Sigmoid",
    "SoftThreshold",
    "Tanh",
    "TopAfa",
    "TopK",
    "elementwise",
    "relu",
]

"""Activations: pre-activations to latents. Feature-major: axis 0 is the latents, axis 1 the batch."""

from sae.methods.activations.largest import BatchTopK, TopK
from sae.methods.activations.pointwise import Relu, Sigmoid, Tanh, elementwise, relu
from sae.methods.activations.thresholds import Gated, JumpRelu, SoftThreshold

__all__ = [
    "BatchTopK",
    "Gated",
    "JumpRelu",
    "Relu",
    "Sigmoid",
    "SoftThreshold",
    "Tanh",
    "TopK",
    "elementwise",
    "relu",
]

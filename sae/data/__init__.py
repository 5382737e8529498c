"""Where examples come from: one file per source, all with the protocol of `sae.data.source`."""

from sae.data.activations import Activations
from sae.data.arrays import Arrays
from sae.data.digits import Digits
from sae.data.hierarchy import Hierarchy
from sae.data.image_patches import ImagePatches
from sae.data.orthonormal import Orthonormal
from sae.data.superposition import Superposition
from sae.data.synth_bench import SynthBench, SynthWorld
from sae.data.tfds import Tfds

__all__ = [
    "Activations",
    "Arrays",
    "Digits",
    "Hierarchy",
    "ImagePatches",
    "Orthonormal",
    "Superposition",
    "SynthBench",
    "SynthWorld",
    "Tfds",
]

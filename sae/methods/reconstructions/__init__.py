"""Reconstructions: latents to reconstructions, and their error."""

from sae.methods.reconstructions.errors import Cosine, Fvu, NormalizedMse, SquaredError
from sae.methods.reconstructions.matryoshka import DrawnMatryoshka, Matryoshka

__all__ = ["Cosine", "DrawnMatryoshka", "Fvu", "Matryoshka", "NormalizedMse", "SquaredError"]

"""Reconstructions: latents to reconstructions, and their error."""

from sae.methods.reconstructions.errors import Cosine, Fvu, NormalizedMse, SquaredError, unexplained
from sae.methods.reconstructions.matryoshka import DrawnMatryoshka, Matryoshka
from sae.methods.reconstructions.through import Through

__all__ = ["Cosine", "DrawnMatryoshka", "Fvu", "Matryoshka", "NormalizedMse", "SquaredError", "Through", "unexplained"]

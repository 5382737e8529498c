"""Language models: their activations, and what a trained autoencoder's latents do to them.

torch and transformers are imported inside functions, as they are an extra (`pip install -e '.[lm]'`). Reading a
harvested folder and training on it need neither.
"""

from sae.lm.harvesting import harvest, rehearse

__all__ = ["harvest", "rehearse"]

"""Language models: harvesting their activations, and what latents do to them."""

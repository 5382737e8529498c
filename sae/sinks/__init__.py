"""Places where records go: the terminal, the local tables, Weights & Biases."""

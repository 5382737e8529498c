"""Sparsity Lab."""

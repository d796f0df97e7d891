"""Embedders turn text into vectors: the interface, a built-in model, adapters for others."""

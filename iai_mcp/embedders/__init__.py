"""Embedders turn text into vectors: one interface, a built-in model, adapters for others."""

"""Reads the trail: who recalled which memory, when and for what."""

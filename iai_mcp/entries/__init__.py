"""Provenance entries: their keys, their lanes, their columns and their wire form. Pure functions, no I/O."""

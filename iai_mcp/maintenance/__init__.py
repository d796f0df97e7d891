"""Checks and mends a store: status, verify, repair, doctor, new embeddings, another number of lanes."""

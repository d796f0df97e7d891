"""What a provenance entry is: its key, its lane, its wire form, its columns. Pure functions, no I/O."""

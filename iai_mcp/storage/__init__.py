"""What lies in a store's folder: its facts, locks, tombstones, exclusions, dead letters and tables."""

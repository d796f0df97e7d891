"""Prometheus metrics: the catalogue of names, counters and histograms, gauges, the endpoint."""

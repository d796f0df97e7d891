"""Prometheus metrics: their names, instruments that count, gauges that are read at a scrape, the endpoint."""

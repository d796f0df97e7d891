"""Prometheus metrics: their names, the instruments that count, the gauges that look, the endpoint."""

"""What the package reports about itself: log events, instrumentation hooks, OpenTelemetry traces."""

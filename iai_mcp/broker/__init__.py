"""Brokers: where entries wait between ``enqueue`` and the drain. One protocol, two implementations."""

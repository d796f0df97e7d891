"""Store-and-forward on the local disk: what the broker does not take waits here, in order."""

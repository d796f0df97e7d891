"""Store-and-forward on the local disk: entries that the broker does not take wait here, in order."""

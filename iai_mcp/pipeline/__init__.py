"""The write pipeline: moves entries from the broker and the spill into the store."""

"""The Redis broker: lanes as Redis lists, every state transition one Lua script or transaction."""

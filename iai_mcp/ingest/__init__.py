"""Text becomes memories: files are read, split and captured."""

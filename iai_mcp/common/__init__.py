"""Helpers that know nothing of memories: files, times, arrays, words."""

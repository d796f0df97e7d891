"""Owns the limits of a request: how many results one answer may hold and how long a text argument may be."""

from __future__ import annotations

__all__ = ["CUE_MAX", "NAME_MAX", "RESULTS_MAX", "TAGS_MAX"]

RESULTS_MAX = 1000  # hits, entries or memories in one answer
CUE_MAX = 8_000  # characters of a cue
NAME_MAX = 1_000  # characters of an id, a session, a role, a tag or a time
TAGS_MAX = 100  # tags in one request

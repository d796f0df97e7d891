"""Counts in messages: one memory, two memories."""

from __future__ import annotations

__all__ = ["many"]


def many(number: int, one: str, more: str | None = None) -> str:
    """A number with its noun: ``many(1, "row")`` is "1 row", ``many(1200, "entry")`` is "1,200 entries".

    ``more``: the plural, needed where the noun is not the last word of ``one``.
    """
    if number != 1:
        ies = one.endswith("y") and one[-2:-1] not in "aeiou"
        one = more or (f"{one[:-1]}ies" if ies else f"{one}s")
    return f"{number:,} {one}"

"""Numbers in sentences for people: one memory, two memories."""

from __future__ import annotations

__all__ = ["many"]


def many(number: int, one: str, more: str | None = None) -> str:
    """``number`` and what there is of it: ``many(1, "row")`` is "1 row", ``many(1200, "entry")`` "1,200 entries".

    ``more``: the plural, where ``one`` does not end in the word that it changes.
    """
    if number != 1:
        one = more or (f"{one[:-1]}ies" if one.endswith("y") else f"{one}s")
    return f"{number:,} {one}"

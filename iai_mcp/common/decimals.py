"""Reads whole numbers that others may have written: plain decimals of at most 15 digits, and nothing else.

A double holds each of them exactly, so Python and Redis's Lua read the same number.
"""

from __future__ import annotations

__all__ = ["DIGITS_MAX", "plain"]

DIGITS_MAX = 15


def plain(text: bytes | str | None) -> int | None:
    """The number that ``text`` writes; None where it is no plain decimal.

    Signs, blanks, underscores, and digits of other scripts are not plain.
    """
    raw = text.encode(errors="replace") if isinstance(text, str) else text
    return int(raw) if raw is not None and 0 < len(raw) <= DIGITS_MAX and raw.isdigit() else None

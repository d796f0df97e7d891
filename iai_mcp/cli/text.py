"""Makes untrusted texts safe for a terminal: no control characters, one line, times to the second."""

from __future__ import annotations

import re

__all__ = ["one_line", "plain", "when"]

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """``text`` without characters that move the cursor, ring the bell or turn the writing direction."""
    return _CONTROL.sub("\ufffd", text.replace("\r\n", "\n"))


def one_line(text: str, limit: int) -> str:
    """The beginning of ``text`` on one line."""
    flat = plain(" ".join(text.split()))
    return flat if len(flat) <= limit else f"{flat[: limit - 1].rstrip()}…"


def when(iso: object) -> str:
    """An ISO time to the second, in UTC; any other value on one line."""
    from datetime import UTC

    from iai_mcp.common.times import parse_ts

    time = parse_ts(iso)
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S") if time else one_line(str(iso or ""), 19)

"""Texts from outside in a table: one line, shortened, times to the second."""

from __future__ import annotations

from iai_mcp.common.printable import plain

__all__ = ["one_line", "plain", "when"]


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

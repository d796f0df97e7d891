"""Converts text and naive times to aware UTC times."""

from __future__ import annotations

from datetime import UTC, datetime

__all__ = ["as_utc", "parse_ts", "utcnow"]


def utcnow() -> datetime:
    """The present time, aware, in UTC."""
    return datetime.now(UTC)


def as_utc(time: datetime) -> datetime:
    """``time`` as an aware UTC time; a naive one is UTC already."""
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def parse_ts(ts: object) -> datetime | None:
    """``ts`` as an aware UTC time; None where it is not ISO 8601 text."""
    if not isinstance(ts, str):
        return None
    try:
        return as_utc(datetime.fromisoformat(ts))
    except (ValueError, OverflowError):
        return None

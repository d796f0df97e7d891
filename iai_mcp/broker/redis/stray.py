"""Reads answers of Redis that strangers may have a hand in: a stray value reads as nothing, and raises nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redis.exceptions import ResponseError

from iai_mcp.common.decimals import plain

__all__ = ["answers", "count_of", "holder_of", "is_wrong_type", "unless_wrong_type"]


def is_wrong_type(error: BaseException) -> bool:
    """Whether a command, or one of a pipeline, met a key of another type than its own."""
    return isinstance(error, ResponseError) and "WRONGTYPE" in str(error)


def answers(pipe: Any) -> list[Any]:
    """The answers to a pipeline of reads; None where a key has another type.

    Raises:
        RedisError: the server does not answer, or with another error.
    """
    found = pipe.execute(raise_on_error=False)
    for one in found:
        if isinstance(one, Exception) and not is_wrong_type(one):
            raise one
    return [None if isinstance(one, Exception) else one for one in found]


def unless_wrong_type(read: Callable[[], Any]) -> Any:
    """The answer to one read; None where its key has another type. It stays on the client's own connection.

    Raises:
        RedisError: the server does not answer, or with another error.
    """
    try:
        return read()
    except ResponseError as error:
        if not is_wrong_type(error):
            raise
        return None


def count_of(value: bytes | None) -> int:
    """A count; 0 where none or a stray value stands there."""
    return plain(value) or 0


def holder_of(lease: bytes | None) -> str | None:
    """Who holds a lease; None without one."""
    return lease.decode(errors="replace").partition(":")[2] if lease else None

"""Functions that every table of a store needs: SQL filters, translated errors, upkeep.

LanceDB raises ``RuntimeError``, ``ValueError`` and ``OSError`` with its reasons in the text. :func:`translated`
turns errors of the storage into :class:`StoreUnavailable`, and passes all others.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, ParamSpec, TypeVar

from iai_mcp.common.times import as_utc
from iai_mcp.errors import StoreUnavailable
from iai_mcp.storage.tables.process import check

__all__ = ["Table", "matches", "quoted", "quoted_list", "retry_vanished", "sql_time", "translated", "upkeep"]

Table = Any  # lancedb.table.Table, which is not typed

P = ParamSpec("P")
R = TypeVar("R")

# Lance's messages for errors of the storage, as opposed to errors of the data.
_STORAGE = re.compile(
    r"No space left|Permission denied|Read-only file system|Input/output error|Too many open files|"
    r"LanceError\(IO\)|IO error|lance error: Not found|was not found|Disk quota|Stale file handle|"
    r"[Cc]ommit conflict|Too many concurrent writers",
)


_RUST_SOURCE = re.compile(r", \S+\.rs:\d+")  # Lance appends where in its source an error arose


@contextmanager
def translated() -> Iterator[None]:
    """Raise :class:`StoreUnavailable` for errors of the storage: disk, permissions, a missing folder.

    Raises:
        ForkedProcess: this process cannot use the storage at all.
    """
    check()
    try:
        yield
    except StoreUnavailable:
        raise
    except OSError as error:
        raise StoreUnavailable(str(error)) from error
    except (RuntimeError, ValueError) as error:
        if _STORAGE.search(str(error)):
            raise StoreUnavailable(_RUST_SOURCE.split(str(error))[0].splitlines()[0]) from error
        raise


def retry_vanished(read: Callable[P, R]) -> Callable[P, R]:
    """Decorator: repeat a failed read once. A cleanup may have removed the version that a slow reader had open."""

    @functools.wraps(read)
    def again(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with translated():
                return read(*args, **kwargs)
        except StoreUnavailable:
            with translated():
                return read(*args, **kwargs)

    return again


def quoted(text: str) -> str:
    """``text`` as an SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def quoted_list(texts: Sequence[str]) -> str:
    """``texts`` as the SQL literals of an ``IN (...)``, without the brackets."""
    return ", ".join(quoted(text) for text in texts)


def sql_time(time: datetime) -> str:
    """``time`` as an SQL timestamp literal in UTC; naive times are UTC."""
    aware = as_utc(time)
    return f"timestamp '{aware.isoformat(sep=' ', timespec='microseconds')}'"


def matches(**columns: str | None) -> list[str]:
    """An SQL condition for each column whose value is not None."""
    return [f"{name} = {quoted(value)}" for name, value in columns.items() if value is not None]


def upkeep(table: Table, cleanup_age: float) -> None:
    """Compact small fragments, update the indexes, remove versions older than ``cleanup_age`` seconds."""
    with translated():
        table.optimize(cleanup_older_than=timedelta(seconds=max(cleanup_age, 0.001)))

"""Tells which rows of a lane can be entries: a table may come from a stranger's backup, or be changed by hand.

No reader stops at a row that fails: views leave its broken part out, copies leave the row out, and
``iai-mcp verify`` names it.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from iai_mcp.entries.admission import DEPTH_MAX
from iai_mcp.entries.fields import NAME, SEQ_MAX
from iai_mcp.entries.wire import too_deep

__all__ = ["LANE_SEQ_MAX", "as_text", "on_calendar", "sound"]

LANE_SEQ_MAX = 2**53
"""The highest number of a row in its lane."""

_NEEDED = ("entry_id", "record_id", "producer", "producer_seq", "seq")
_RECORD = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
_TIMES = (-62_135_596_800_000_000, 253_402_300_799_999_999)  # microseconds of the years 1 to 9999


def sound(rows: pa.Table) -> NDArray[np.bool_]:
    """Which rows can be entries.

    Args:
        rows: columns of ``LANE_SCHEMA``; ``time`` and ``rest`` may be missing.
    """
    checks = [pc.is_valid(rows[name]) for name in _NEEDED]
    checks += [_all(rows["producer"], f"^{NAME}$"), _all(rows["record_id"], _RECORD)]
    checks += [_within(rows["producer_seq"], 1, SEQ_MAX), _within(rows["seq"], 1, LANE_SEQ_MAX)]
    checks.append(pc.fill_null(pc.greater(pc.utf8_length(rows["entry_id"]), 0), False))
    if "time" in rows.column_names:
        checks.append(pc.or_kleene(pc.is_null(rows["time"]), _within(rows["time"].cast(pa.int64()), *_TIMES)))
    found: NDArray[np.bool_] = np.ones(len(rows), bool)
    for check in checks:
        found &= np.asarray(check, bool)
    if "rest" in rows.column_names and rows["rest"].null_count < len(rows):
        for at in np.flatnonzero(np.asarray(pc.is_valid(rows["rest"]), bool)).tolist():
            found[at] &= _is_object(rows["rest"][at].as_py())
    return found


def _all(texts: pa.ChunkedArray, pattern: str) -> pa.Array:
    """Which texts match; each distinct one is looked at once."""
    coded = texts.combine_chunks().dictionary_encode()
    match = pc.match_substring_regex(coded.dictionary, pattern)
    return pc.fill_null(match.take(coded.indices), False)


def _within(numbers: pa.ChunkedArray, lowest: int, highest: int) -> Any:
    found = pc.and_(pc.greater_equal(numbers, lowest), pc.less_equal(numbers, highest))
    return pc.fill_null(found, False)


def _is_object(text: str) -> bool:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return isinstance(value, dict) and not too_deep(value, DEPTH_MAX + 1)


def on_calendar(rows: pa.Table) -> pa.Table:
    """The rows without times that no ``datetime`` holds."""
    if "time" not in rows.column_names or not len(rows):
        return rows
    numbers = rows["time"].cast(pa.int64())
    span = pc.min_max(numbers).as_py()
    if span["min"] is None or (_TIMES[0] <= span["min"] and span["max"] <= _TIMES[1]):
        return rows
    at = rows.schema.get_field_index("time")
    times = pc.if_else(_within(numbers, *_TIMES), rows["time"], pa.scalar(None, rows["time"].type))
    return rows.set_column(at, rows.schema.field(at), times)


def as_text(row: pa.RecordBatch) -> bytes:
    """One row as JSON, for people to look at; a time that no calendar has stands there as its number."""
    at = row.schema.get_field_index("time")
    plain = row if at < 0 else row.set_column(at, "time", row["time"].cast(pa.int64()))
    return msgspec.json.encode(plain.to_pylist()[0])

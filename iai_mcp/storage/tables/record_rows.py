"""Memories as rows of the ``records`` table, and back. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

import pyarrow as pa

from iai_mcp.common.times import as_utc
from iai_mcp.errors import EmbeddingMismatch
from iai_mcp.record import MemoryRecord, index_text

__all__ = ["SHOWN", "from_row", "merged_rows", "record_schema", "to_rows", "vector_array"]

SHOWN = ["id", "text", "session_id", "role", "tags", "created_at", "updated_at", "index_text"]
"""The columns of a memory without its vectors."""


def record_schema(dims: int, vector_column: str = "embedding") -> pa.Schema:
    """The columns of ``records``; the vector is null while a memory waits for its embedding."""
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("text", pa.string(), nullable=False),
            pa.field("index_text", pa.string(), nullable=False),
            pa.field(vector_column, pa.list_(pa.float32(), dims)),
            pa.field("session_id", pa.string()),
            pa.field("role", pa.string()),
            pa.field("tags", pa.list_(pa.string())),
            pa.field("created_at", pa.timestamp("us", "UTC")),
            pa.field("updated_at", pa.timestamp("us", "UTC")),
        ]
    )


def to_rows(records: Iterable[MemoryRecord], vector_column: str, schema: pa.Schema) -> pa.Table:
    """Rows for ``records``, with their vectors in ``vector_column`` and nulls in every other vector column.

    Raises:
        EmbeddingMismatch: a vector has the wrong number of dimensions.
    """
    records = list(records)
    columns = {
        "id": pa.array([str(record.id) for record in records], pa.string()),
        "text": pa.array([record.text for record in records], pa.string()),
        "index_text": pa.array([r.index_text or index_text(r.text, role=r.role) for r in records], pa.string()),
        "session_id": pa.array([record.session_id for record in records], pa.string()),
        "role": pa.array([record.role for record in records], pa.string()),
        "tags": pa.array([list(record.tags) for record in records], pa.list_(pa.string())),
        "created_at": pa.array([as_utc(record.created_at) for record in records], pa.timestamp("us", "UTC")),
        "updated_at": pa.array([as_utc(record.updated_at) for record in records], pa.timestamp("us", "UTC")),
        vector_column: vector_array([r.embedding for r in records], schema.field(vector_column).type),
    }
    return _completed(columns, len(records), schema)


def merged_rows(rows: pa.Table, vector_column: str, schema: pa.Schema) -> pa.Table:
    """Rows of another store, with their vectors (``embedding``) in ``vector_column``, under this schema."""
    columns = {name: rows[name] for name in rows.column_names if name in schema.names and name != "embedding"}
    return _completed({**columns, vector_column: rows["embedding"]}, len(rows), schema)


def _completed(columns: Mapping[str, Any], count: int, schema: pa.Schema) -> pa.Table:
    """A table of ``columns``, with nulls for the columns that are missing."""
    given = {name: columns.get(name) for name in schema.names}
    return pa.table(
        [pa.nulls(count, schema.field(name).type) if one is None else one for name, one in given.items()],
        schema=schema,
    )


def vector_array(vectors: Sequence[Sequence[float]], kind: pa.DataType) -> pa.Array:
    """A column of vectors; null for an empty one.

    Raises:
        EmbeddingMismatch: a vector has the wrong number of dimensions.
    """
    dims = kind.list_size
    for vector in vectors:
        if len(vector) not in (0, dims):
            raise EmbeddingMismatch(f"an embedding has {len(vector)} dimensions, this store has {dims}")
    return pa.array([list(vector) if len(vector) else None for vector in vectors], kind)


def from_row(row: Mapping[str, Any], vector_column: str | None = None) -> MemoryRecord:
    """The memory of a row, with the vector in ``vector_column``; without one its embedding is empty."""
    return MemoryRecord(
        id=UUID(row["id"]),
        text=row["text"],
        embedding=(row[vector_column] or []) if vector_column else [],
        session_id=row["session_id"] or "",
        role=row["role"] or "",
        tags=row["tags"] or [],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        index_text=row["index_text"],
    )

"""The memory record that callers store and get back; independent of any storage."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from iai_mcp.common.times import utcnow
from iai_mcp.errors import BadParams

__all__ = ["MemoryRecord", "as_uuid", "index_text"]


def index_text(text: str, *, role: str = "", previous: str = "", limit: int = 400) -> str:
    """The text that both indexes see: the previous text, the role, and the text itself.

    On long conversations this raises hit@10 over indexing the bare text; ``benchmarks/recall_quality.py``
    measures by how much. ``previous`` is cut to its last ``limit`` characters, so that it does not outweigh
    the text.
    """
    head = f"{role}: " if role else ""
    before = f"{previous[-limit:].strip()}\n" if previous else ""
    return f"{before}{head}{text}"


def as_uuid(value: object) -> uuid.UUID:
    """Convert ``value`` to a record id.

    Raises:
        BadParams: it is not a UUID.
    """
    if isinstance(value, uuid.UUID):
        return value
    try:
        return uuid.UUID(str(value))
    except ValueError:
        raise BadParams(f"{str(value)[:80]!r} is not a record id (a UUID)") from None


@dataclass(slots=True)
class MemoryRecord:
    """One memory.

    Attributes:
        text: the memory as it is shown.
        id: the key; a new random one by default.
        embedding: one float for each dimension of the store, or empty: the vector is made later.
        role: of the speaker, such as ``user`` or ``assistant``.
        created_at, updated_at: aware times, in UTC.
        index_text: indexed in place of ``text``; empty means role and text.
        provenance: the entries that recalls left, in order; ``MemoryStore.get`` fills it, ``insert`` ignores it.
    """

    text: str
    id: uuid.UUID = field(default_factory=uuid.uuid4)
    embedding: Sequence[float] = field(default_factory=list)
    session_id: str = ""
    role: str = ""
    tags: list[str] = field(default_factory=list)
    created_at: datetime = field(default_factory=utcnow)
    updated_at: datetime = field(default_factory=utcnow)
    index_text: str = ""
    provenance: list[dict[str, Any]] = field(default_factory=list)

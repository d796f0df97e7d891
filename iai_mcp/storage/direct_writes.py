"""Numbers the entries that a store writes itself, without a queue: a producer of its own, in the order written.

A number is never used twice. If a write fails, its numbers are noted as refused, so that no check reports the
entries as lost.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, TypeVar
from uuid import UUID

from iai_mcp.entries.admission import plain_pair
from iai_mcp.entries.fields import key_fault
from iai_mcp.entries.identity import entry_id
from iai_mcp.entries.parcel import Pair
from iai_mcp.errors import BadParams
from iai_mcp.record import as_uuid
from iai_mcp.storage.exclusions import ExclusionReason, Exclusions, Key

__all__ = ["DirectWrites", "is_numbered"]

_KEYS = frozenset({"entry_id", "producer", "producer_seq"})
Result = TypeVar("Result")


def is_numbered(record_id: object, entry: object) -> bool:
    """Whether the pair comes from a queue, with its key."""
    return isinstance(entry, dict) and isinstance(record_id, UUID) and entry.keys() >= _KEYS


class DirectWrites:
    """One store's own producer."""

    def __init__(self, exclusions: Exclusions) -> None:
        self.producer = secrets.token_hex(8)
        self._exclusions = exclusions
        self._last = 0
        self._order = threading.Lock()  # one write at a time: numbers ascend as the rows do
        self._refused: list[Key] = []

    def write(self, pairs: Iterable[object], append: Callable[[list[Pair]], Result], max_bytes: int) -> Result:
        """Number ``pairs`` that have no number, and give all to ``append``, whose errors pass through.

        Args:
            max_bytes: the largest size of an entry that has no number yet, in bytes of JSON.

        Raises:
            BadParams: a pair is refused; the message names it and says why. Nothing was written.
        """
        checked = [
            plain_pair(at, pair, None if _has_key(pair) else max_bytes, as_uuid) for at, pair in enumerate(pairs)
        ]
        numbered = [is_numbered(record_id, entry) for record_id, entry in checked]
        for at, (_, entry) in enumerate(checked):
            if numbered[at]:
                _check_key(at, entry)
        if all(numbered):
            return append(checked)
        with self._order:
            self._note_refused()
            before = self._last
            ours = [self._numbered(record_id, entry) for record_id, entry in checked]
            try:
                return append(ours)
            except BaseException:
                self._refused += [(self.producer, seq) for seq in range(before + 1, self._last + 1)]
                self._note_refused()
                raise

    def _numbered(self, record_id: UUID, entry: Mapping[str, object]) -> Pair:
        if isinstance(entry, dict) and is_numbered(record_id, entry):
            return record_id, entry
        self._last += 1
        key = str(entry.get("entry_id") or entry_id(self.producer, self._last))
        return record_id, {**entry, "producer": self.producer, "producer_seq": self._last, "entry_id": key}

    def _note_refused(self) -> None:
        if self._refused:
            with suppress(OSError):  # the store's disk is full; the next write tries again
                self._exclusions.add(ExclusionReason.REFUSED, self._refused)
                self._refused.clear()


def _has_key(pair: object) -> bool:
    return type(pair) is tuple and len(pair) == 2 and is_numbered(*pair)


def _check_key(at: int, entry: Mapping[str, Any]) -> None:
    key = entry["entry_id"]
    if not (isinstance(key, str) and key):
        raise BadParams(f"provenance pair {at} is refused: its entry_id must be a text")
    if wrong := key_fault(entry["producer"], entry["producer_seq"]):
        raise BadParams(f"provenance pair {at} is refused: {wrong}")

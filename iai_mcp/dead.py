"""Dead letters: what could not be applied, kept in the store's folder with the reason, until people decide.

One JSON object a line; each change is on the disk before the call returns.
"""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import msgspec

from iai_mcp.durable import replace_file
from iai_mcp.entry import Pair
from iai_mcp.locks import WriterLock
from iai_mcp.meta import Layout
from iai_mcp.record import utcnow

__all__ = ["DeadLetter", "DeadLetters"]


class DeadLetter(msgspec.Struct, frozen=True):
    """One entry that failed, or ``raw`` bytes (base64) that were no entry.

    Attributes:
        id: names the letter on the command line.
        at: when it was given up, ISO 8601, UTC.
        reason: the error's own words.
        record_id, entry: what ``append_provenance_batch`` takes; None where only bytes are known.
    """

    id: str
    at: str
    lane: int
    reason: str
    record_id: str | None = None
    entry: dict[str, Any] | None = None
    raw: str | None = None

    @property
    def pair(self) -> Pair | None:
        """The letter as a pair, where it holds an entry."""
        return (UUID(self.record_id), self.entry) if self.record_id and self.entry is not None else None


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """The dead letters of one store."""

    layout: Layout

    def add_entry(self, lane: int, pair: Pair, reason: str) -> None:
        """Keep an entry that could not be written."""
        self._append(DeadLetter(_new_id(), _now(), lane, reason[:2000], str(pair[0]), pair[1]))

    def add_raw(self, lane: int, raw: bytes, reason: str) -> None:
        """Keep bytes that are no entry."""
        coded = base64.b64encode(raw).decode()
        self._append(DeadLetter(_new_id(), _now(), lane, reason[:2000], raw=coded))

    def all(self) -> list[DeadLetter]:
        """Every dead letter, oldest first."""
        try:
            lines = self.layout.dead.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        return [letter for line in lines if (letter := _decode(line)) is not None]

    def count(self) -> int:
        """How many there are."""
        try:
            return self.layout.dead.read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0

    def find(self, ids: Sequence[str]) -> list[DeadLetter]:
        """The letters with these ids; all of them where ``ids`` is empty."""
        return [letter for letter in self.all() if not ids or letter.id in ids]

    def remove(self, ids: Iterable[str]) -> int:
        """Drop letters; how many there were."""
        gone = set(ids)
        with self._lock():
            letters = self.all()
            kept = [letter for letter in letters if letter.id not in gone]
            if len(kept) < len(letters):
                replace_file(self.layout.dead, b"".join(_line(letter) for letter in kept))
            return len(letters) - len(kept)

    def forget(self, record_id: UUID) -> None:
        """Drop the letters of a deleted record."""
        self.remove([letter.id for letter in self.all() if letter.record_id == str(record_id)])

    def _append(self, letter: DeadLetter) -> None:
        with self._lock():
            fd = os.open(self.layout.dead, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(fd, _line(letter))
                os.fsync(fd)
            finally:
                os.close(fd)

    def _lock(self) -> AbstractContextManager[object]:
        return WriterLock(self.layout.root / "locks" / "dead.lock", timeout=30).hold()


def _line(letter: DeadLetter) -> bytes:
    return msgspec.json.encode(letter, enc_hook=repr) + b"\n"


def _decode(line: bytes) -> DeadLetter | None:
    try:
        return msgspec.json.decode(line, type=DeadLetter)
    except msgspec.DecodeError:
        return None  # a line torn by a power cut


def _new_id() -> str:
    return secrets.token_hex(6)


def _now() -> str:
    return utcnow().isoformat()

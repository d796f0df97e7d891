"""The log of entries that ended without a row: so that what was handed out can be accounted for.

An entry is left out since its record is unknown or forgotten, or was refused while the spill's disk was
full. Only keys are kept (producer and sequence numbers), never what an entry said.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path

import msgspec

__all__ = ["Key", "LeftOut", "Why", "ranges"]

Key = tuple[str, int]
"""``(producer, producer_seq)``."""


class Why(StrEnum):
    """Why an entry has no row."""

    UNKNOWN = "unknown"  # there is no such record
    FORGOTTEN = "forgotten"  # its record was deleted, with its rows
    REFUSED = "refused"  # neither the broker nor the spill could take it
    LOST = "lost"  # people have accepted that it is gone (`iai-mcp verify --repair`)


class _Line(msgspec.Struct, frozen=True):
    why: Why
    producer: str
    seqs: list[tuple[int, int]]


class LeftOut:
    """The log of one store, an append-only file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, why: Why, keys: Iterable[Key]) -> None:
        """Note keys, durably.

        Raises:
            OSError: the file cannot be written.
        """
        by_producer: dict[str, list[int]] = {}
        for producer, seq in keys:
            by_producer.setdefault(producer, []).append(seq)
        if not by_producer:
            return
        lines = [_Line(why, producer, ranges(seqs)) for producer, seqs in by_producer.items()]
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(fd, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
            os.fsync(fd)
        finally:
            os.close(fd)

    def read(self) -> dict[Why, dict[str, set[int]]]:
        """Every key noted so far; one that was noted twice counts once."""
        found: dict[Why, dict[str, set[int]]] = {}
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return found
        for raw in lines:
            try:
                line = msgspec.json.decode(raw, type=_Line)
            except msgspec.DecodeError:
                continue  # torn by a power cut; the entry will be met, and noted, again
            noted = found.setdefault(line.why, {}).setdefault(line.producer, set())
            for first, last in line.seqs:
                noted.update(range(first, last + 1))
        return found


def ranges(seqs: Iterable[int]) -> list[tuple[int, int]]:
    """``seqs`` as inclusive ranges, ascending."""
    found: list[tuple[int, int]] = []
    for seq in sorted(set(seqs)):
        if found and found[-1][1] == seq - 1:
            found[-1] = (found[-1][0], seq)
        else:
            found.append((seq, seq))
    return found

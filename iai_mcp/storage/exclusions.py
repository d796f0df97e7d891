"""The log of entries that ended without a row: so that what was handed out can be accounted for.

An entry is left out since its record is unknown or forgotten, since it was refused, or since people decided
so. Only keys are kept (producer and sequence numbers), never what an entry said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Set
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec

from iai_mcp.common.files import append_lines, read_lines
from iai_mcp.entries.fields import SEQ_MAX

__all__ = ["ExclusionReason", "Exclusions", "Key", "Span", "ranges", "uncovered"]

Key = tuple[str, int]
"""``(producer, producer_seq)``."""


class ExclusionReason(StrEnum):
    """Why an entry has no row; ``LATE`` and ``SHARED`` say something about one that has a row."""

    UNKNOWN = "unknown"  # there is no such record
    FORGOTTEN = "forgotten"  # its record was deleted, with its rows
    DUPLICATE = "duplicate"  # an earlier entry came with the same entry_id
    REFUSED = "refused"  # neither the broker nor the spill could take it, and the caller was told
    DROPPED = "dropped"  # people dropped its dead letter
    LOST = "lost"  # people have accepted that it is gone (`iai-mcp verify --repair`)
    LATE = "late"  # it has a row, after later ones of its producer: people retried its dead letter
    SHARED = "shared"  # two entries have its number, and people have accepted that


class Span(NamedTuple):
    """A run of one producer's sequence numbers, both ends included."""

    why: ExclusionReason
    producer: str
    first: int
    last: int


_Seq = Annotated[int, msgspec.Meta(ge=1, le=SEQ_MAX)]


class _Line(msgspec.Struct, frozen=True):
    why: ExclusionReason
    producer: Annotated[str, msgspec.Meta(max_length=200)]
    seqs: list[tuple[_Seq, _Seq]]


class Exclusions:
    """The log of one store, an append-only file of JSON lines.

    Args:
        check_here: called before each write; raises where the store is gone, or another one is in its place.
    """

    def __init__(self, path: Path, check_here: Callable[[], None] = lambda: None) -> None:
        self._path = path
        self._check_here = check_here

    def add(self, why: ExclusionReason, keys: Iterable[Key]) -> None:
        """Note keys, durably.

        Raises:
            OSError: the file cannot be written.
        """
        by_producer: dict[str, list[int]] = {}
        for producer, seq in keys:
            by_producer.setdefault(producer, []).append(seq)
        self._write(_Line(why, producer, ranges(seqs)) for producer, seqs in by_producer.items())

    def add_spans(self, spans: Iterable[Span]) -> None:
        """Note whole runs, durably.

        Raises:
            OSError: the file cannot be written.
        """
        self._write(_Line(why, producer, [(first, last)]) for why, producer, first, last in spans)

    def _write(self, lines: Iterable[_Line]) -> None:
        if data := b"".join(msgspec.json.encode(line) + b"\n" for line in lines):
            self._check_here()
            append_lines(self._path, data)

    def read(self) -> Iterator[Span]:
        """Every run noted so far; one that was noted twice comes twice.

        Raises:
            OSError: the file cannot be read.
        """
        for line in read_lines(self._path, _Line):  # an entry whose line was torn will be met, and noted, again
            for first, last in line.seqs:
                if first <= last:
                    yield Span(line.why, line.producer, first, last)

    def covering(self, keys: Set[Key], *reasons: ExclusionReason) -> set[Key]:
        """Those of ``keys`` that are noted for one of ``reasons``."""
        by_producer: dict[str, set[int]] = {}
        for producer, seq in keys:
            by_producer.setdefault(producer, set()).add(seq)
        found: set[Key] = set()
        for span in self.read():
            if span.why in reasons and (wanted := by_producer.get(span.producer)):
                found.update((span.producer, seq) for seq in wanted if span.first <= seq <= span.last)
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


def uncovered(spans: Iterable[Span], known: Iterable[Span]) -> list[Span]:
    """The parts of ``spans`` that ``known`` does not cover. ``LATE`` and ``SHARED`` cover only their like."""
    covered: dict[tuple[str, ExclusionReason | None], list[tuple[int, int]]] = {}
    for span in known:
        covered.setdefault(_kind(span), []).append((span.first, span.last))
    found = []
    for span in spans:
        at = span.first
        for first, last in sorted(covered.get(_kind(span), ())):
            if first > at:
                found.append(span._replace(first=at, last=min(first - 1, span.last)))
            at = max(at, last + 1)
            if at > span.last:
                break
        if at <= span.last:
            found.append(span._replace(first=at))
        covered.setdefault(_kind(span), []).append((span.first, span.last))
    return [span for span in found if span.first <= span.last]


def _kind(span: Span) -> tuple[str, ExclusionReason | None]:
    """Spans of one kind cover each other."""
    return span.producer, span.why if span.why in (ExclusionReason.LATE, ExclusionReason.SHARED) else None

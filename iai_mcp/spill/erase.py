"""Erases a deleted record's entries from the spill files that no living process holds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Set
from contextlib import suppress
from itertools import compress
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from iai_mcp.entries.signature import Signer
from iai_mcp.entries.wire import outline
from iai_mcp.spill.adoption import orphans
from iai_mcp.spill.names import files_in
from iai_mcp.spill.segment import NO_KEY, Segment
from iai_mcp.storage.exclusions import ExclusionReason, Exclusions, Key
from iai_mcp.telemetry.events import emit, safe_message

__all__ = ["forget", "forget_all"]


def forget(folder: Path, store_id: str, record_id: UUID, exclusions: Exclusions, signer: Signer = NO_KEY) -> None:
    """Take a deleted record's entries out of the files, and note them in ``exclusions``.

    In a file that a living process holds they stay until its replay, which leaves them out. A file that cannot
    be rewritten is told by the event ``forget_incomplete``. What is left of a line with a valid proof is
    signed anew by ``signer``.

    Raises:
        OSError: a file of this store cannot be opened.
    """
    spellings = record_id.hex.encode(), str(record_id).encode()

    def mentions(line: bytes) -> bool:
        return any(spelling in line for spelling in spellings)

    for segments in orphans(folder, store_id):
        for segment in segments:
            _erase(segment, {record_id.hex}, mentions, exclusions, signer)
    with suppress(OSError):
        for path, name in files_in(folder):
            if name.set_aside and (aside := Segment.take(path)) is not None:
                _erase(aside, {record_id.hex}, mentions, exclusions, signer)


def forget_all(
    folder: Path, store_id: str, deleted: Set[str], exclusions: Exclusions, signer: Signer = NO_KEY
) -> None:
    """Take the entries of many deleted records, as 32 hexadecimal digits each, out of the same files.

    For a process that stops: the records were deleted while it held its files.

    Raises:
        OSError: a file of this store cannot be opened.
    """

    def mentions(line: bytes) -> bool:
        return (found := outline(line)) is not None and not deleted.isdisjoint(found.ids)

    for segments in orphans(folder, store_id):
        for segment in segments:
            _erase(segment, deleted, mentions, exclusions, signer)


def _erase(
    segment: Segment,
    deleted: Set[str],
    mentions: Callable[[bytes], bool],
    exclusions: Exclusions,
    signer: Signer,
) -> None:
    try:
        lines = segment.content().splitlines()
        if keys := [key for line in lines if mentions(line) for key in _keys_of(line, deleted)]:
            exclusions.add(ExclusionReason.FORGOTTEN, keys)
        segment.rewrite(lambda line: _without(line, deleted, signer) if mentions(line) else line)
    except OSError as error:
        emit("forget_incomplete", level=logging.WARNING, file=segment.path.name, error=safe_message(error))
    finally:
        segment.close()


def _keys_of(line: bytes, deleted: Set[str]) -> list[Key]:
    if (found := outline(line)) is None:
        return []
    return [(found.producer, seq) for one, seq in zip(found.ids, found.seqs, strict=False) if one in deleted]


def _without(line: bytes, deleted: Set[str], signer: Signer) -> bytes:
    """The line without the records' entries; fields that this version does not know stay.

    Empty where no entry is left, and for a line that is no parcel.
    """
    try:
        parcel: dict[str, Any] = msgspec.json.decode(line)
        kept = [one not in deleted for one in parcel["ids"]]
        for name in ("ids", "seqs", "own"):
            parcel[name] = _picked(parcel[name], kept)
    except (msgspec.DecodeError, UnicodeDecodeError, TypeError, LookupError, AttributeError, RecursionError):
        return b""
    if not any(kept):
        return b""
    parcel.pop("mac", None)  # it covered what is gone
    rest = msgspec.json.encode(parcel)
    return (rest if signer.fault(line.removesuffix(b"\n")) else signer.sign(rest)) + b"\n"


def _picked(value: Any, kept: list[bool]) -> Any:
    """The values of a column, or of each column in a dict, that are ``kept``."""
    if isinstance(value, dict):
        return {name: _picked(column, kept) for name, column in value.items()}
    return [*compress(value, kept)]

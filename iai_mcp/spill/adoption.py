"""Adoption: the spill files of dead clients go to the next client of their store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby
from pathlib import Path

from iai_mcp.entries.wire import decode
from iai_mcp.errors import MalformedParcel
from iai_mcp.spill.chain import Chain
from iai_mcp.spill.names import files_in, is_spare, set_aside_path
from iai_mcp.spill.proof import NONE, Proof
from iai_mcp.spill.segment import Segment, take_leading
from iai_mcp.storage.locked_file import is_held
from iai_mcp.telemetry.events import emit

__all__ = ["adopt", "orphans"]


def adopt(folder: Path, store_id: str, proof: Proof = NONE) -> Iterator[Chain]:
    """The chains of this store in ``folder`` that no living process holds; malformed files are set aside.

    Files that dead clients of any store had made ahead are removed: they hold no entries. ``proof`` says what
    becomes of lines that do not prove their producer.

    Raises:
        OSError: a file of this store cannot be opened or renamed.
    """
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            if is_spare(entry.name) and not is_held(Path(entry.path)):
                os.unlink(entry.path)
    for segments in orphans(folder, store_id):
        if _owner(segments[0].path) is None:
            _set_aside(segments)
        else:
            emit("spill_adopted", files=len(segments))
            yield Chain(store_id, segments, proof=proof)


def orphans(folder: Path, store_id: str) -> Iterator[list[Segment]]:
    """The same chains as locked segments, and those whose first file names no store.

    Raises:
        OSError: a file of this store cannot be opened.
    """
    try:
        files = [(path, name) for path, name in files_in(folder) if not name.set_aside]
    except PermissionError:
        return
    for _, group in groupby(files, lambda file: file[1].chain):
        paths = [path for path, _ in group]
        if _owner(paths[0]) in (store_id, None) and (segments := take_leading(paths)):
            if _owner(paths[0]) in (store_id, None):  # a second look, under the lock
                yield segments
            else:
                for segment in segments:
                    segment.close()


def _set_aside(segments: list[Segment]) -> None:
    """Set the first file, which names no store, aside, or remove it where it is empty.

    The others are examined in the next round.
    """
    first, *others = segments
    if first.size:
        aside = set_aside_path(first.path)
        with suppress(FileNotFoundError):
            os.rename(first.path, aside)
            emit("spill_set_aside", file=aside.name)
        first.close()
    else:
        first.remove()
    for other in others:
        other.close()


def _owner(path: Path) -> str | None:
    """The store that the first well-formed line names; None without such a line."""
    with suppress(OSError), open(path, "rb") as file:
        for line in file:
            with suppress(MalformedParcel):
                return decode(line).store
    return None

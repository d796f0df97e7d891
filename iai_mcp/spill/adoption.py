"""Adoption: the spill files of dead clients go to the next client of their store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby
from pathlib import Path

from iai_mcp.common.regular_files import lines_of, odd_kind, reading
from iai_mcp.entries.wire import decode
from iai_mcp.errors import MalformedParcel, UnfitFile
from iai_mcp.spill.chain import Chain
from iai_mcp.spill.names import SEGMENT_MAX, files_in, is_spare, pass_over, set_aside_path
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
        for name in os.listdir(folder):
            if is_spare(name) and _is_free(folder / name):
                os.unlink(folder / name)
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
        if _owner(paths[0]) in (store_id, None) and (segments := _taken(paths)):
            if _owner(paths[0]) in (store_id, None):  # a second look, under the lock
                yield segments
            else:
                for segment in segments:
                    segment.close()


def _taken(paths: list[Path]) -> list[Segment]:
    """The leading segments; none where a file is another user's, or has just become an odd one."""
    try:
        return take_leading(paths)
    except (PermissionError, UnfitFile):
        pass_over(paths[0], "not readable and writable for this user")
        return []


def _is_free(path: Path) -> bool:
    """Whether a file that was made ahead belongs to no living process."""
    with suppress(OSError):
        return odd_kind(path) is None and not is_held(path)
    return False


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
    with suppress(OSError), reading(path, limit=SEGMENT_MAX) as file:
        for line in lines_of(file):
            with suppress(MalformedParcel):
                return decode(line).store
    return None

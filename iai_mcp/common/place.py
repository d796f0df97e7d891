"""The identity of a folder, which a copy of the folder does not share.

A note in the folder holds a random id and the note's own inode. A moved or mounted folder keeps the inode. A
copied note has another one, and the copy gets an id of its own. A copy of a whole file system is not noticed.
"""

from __future__ import annotations

import os
import secrets
import socket
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import filelock
import msgspec

from iai_mcp.common.private import new_private
from iai_mcp.common.regular_files import NOTE_MAX, read_regular

__all__ = ["Place", "is_gone", "place_of"]


class Place(msgspec.Struct, frozen=True):
    """Where a folder is.

    Attributes:
        id: 32 hexadecimal digits.
        host: a host that has the folder.
        folder: the absolute path there.
        note: the note's path in the folder.
    """

    id: str
    host: str
    folder: str
    note: str


class _Note(msgspec.Struct, frozen=True):
    id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    inode: Annotated[int, msgspec.Meta(ge=0)]
    host: Annotated[str, msgspec.Meta(max_length=255)]
    folder: Annotated[str, msgspec.Meta(max_length=4096, pattern=r"^[^\x00]+\Z")]


def place_of(folder: Path, note: Path) -> Place | None:
    """The place of ``folder``; None where it has none yet and ``note``, a file in it, cannot be written."""
    with suppress(OSError):
        if (known := _known(folder, note)) is not None:
            return known
        if not note.parent.is_dir():  # filelock would make the folder of a store that is gone
            return None
        with filelock.FileLock(note.with_suffix(".lock"), timeout=10):
            return _known(folder, note) or _new(folder, note)
    return None


def is_gone(place: Place) -> bool:
    """Whether this host can tell that its folder is not there any more, or is another one by now."""
    if place.host != socket.gethostname():
        return False
    try:
        found = _read(Path(place.folder, place.note))
    except OSError:  # another user's
        return False
    return found is None or found.id != place.id


def _known(folder: Path, note: Path) -> Place | None:
    """The noted place, unless the note is a copy. Under its path on its host a folder can only be itself."""
    found = _read(note)
    if found is None:
        return None
    at_home = (found.host, found.folder) == (socket.gethostname(), str(folder))
    if not at_home and found.inode != os.lstat(note).st_ino:
        return None
    return _place(found.id, folder, note)


def _new(folder: Path, note: Path) -> Place:
    building = note.with_suffix(f".tmp-{secrets.token_hex(4)}")
    try:
        with new_private(building) as file:
            inode = os.fstat(file.fileno()).st_ino
            made = _Note(secrets.token_hex(16), inode, socket.gethostname(), str(folder))
            file.write(msgspec.json.encode(made))
        os.replace(building, note)
    finally:
        with suppress(FileNotFoundError):
            building.unlink()
    return _place(made.id, folder, note)


def _place(place_id: str, folder: Path, note: Path) -> Place:
    return Place(place_id, socket.gethostname(), str(folder), str(note.relative_to(folder)))


def _read(note: Path) -> _Note | None:
    try:
        found = msgspec.json.decode(read_regular(note, NOTE_MAX), type=_Note)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # emptied by a power cut, or made to mislead
        return None
    return found if Path(found.folder).is_absolute() else None

"""The ids in the file of dead letters, remembered: in a flood the file is read once, not once for each letter."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from iai_mcp.common.regular_files import LOG_MAX, reading

__all__ = ["known"]

_ID = re.compile(rb'^\{"id":"([^"\\]*)"', re.MULTILINE)
_MARK = 64  # bytes before the place where the last look ended: they tell whether it is still the same file


@dataclass(slots=True)
class _Seen:
    inode: int = 0
    end: int = 0
    mark: bytes = b""
    ids: set[str] = field(default_factory=set)


_seen: dict[Path, _Seen] = {}


def known(path: Path) -> set[str]:
    """The ids of the letters in the file at ``path``. Only what was added since the last call is read.

    Call it under the lock of the dead letters.

    Raises:
        OSError: the file is there and cannot be read.
    """
    seen = _seen.get(path) or _Seen()
    try:
        with reading(path, limit=LOG_MAX) as file:
            inode = os.fstat(file.fileno()).st_ino
            file.seek(seen.end - len(seen.mark))
            if inode != seen.inode or file.read(len(seen.mark)) != seen.mark:
                seen = _Seen(inode)
                file.seek(0)
            added = file.read()
    except FileNotFoundError:
        _seen.pop(path, None)
        return set()
    seen.ids.update(found.decode() for found in _ID.findall(added))
    whole = added[: added.rfind(b"\n") + 1]  # a line that is torn is read again, with what follows it
    seen.end += len(whole)
    seen.mark = (seen.mark + whole)[-_MARK:]
    _seen[path] = seen
    return seen.ids

"""Live producers: those whose process lives and may still hold entries in its memory.

Each keeps a locked file in the store.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from iai_mcp.storage.locked_file import LockedFile, is_held

__all__ = ["LiveProducer", "live_producers"]

_PREFIX = "producer-"


class LiveProducer:
    """The sign of life of one producer, from :meth:`start` to :meth:`stop`; nothing else depends on it."""

    def __init__(self, folder: Path, producer: str) -> None:
        self._path = folder / f"{_PREFIX}{producer}.lock"
        self._file: LockedFile | None = None

    def start(self) -> None:
        """Create the file, and remove those of dead producers; a failure is not reported."""
        with suppress(OSError):
            if self._file is None and self._path.parent.is_dir():  # a store that is away must not be made anew
                self._file = LockedFile.create(self._path)
                for path in self._path.parent.glob(f"{_PREFIX}*.lock"):
                    if (left := LockedFile.take(path)) is not None:
                        left.remove()

    def stop(self) -> None:
        """Remove the file: the producer holds no more entries."""
        if self._file is not None:
            self._file.remove()
            self._file = None


def live_producers(folder: Path) -> set[str]:
    """The keys of the producers that live now.

    Raises:
        OSError: a file cannot be opened.
    """
    found = set()
    for path in folder.glob(f"{_PREFIX}*.lock"):
        if is_held(path):
            found.add(path.stem.removeprefix(_PREFIX))
    return found

"""Which producers may still hold entries in the memory of a living process.

Each keeps a locked file in the store; the operating system frees it when the process dies.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from iai_mcp.spill.segment import Segment, is_held

__all__ = ["LiveProducer", "live_producers"]

_PREFIX = "producer-"


class LiveProducer:
    """The sign of life of one producer, from :meth:`start` to :meth:`stop`; without it nothing else changes."""

    def __init__(self, folder: Path, producer: str) -> None:
        self._path = folder / f"{_PREFIX}{producer}.lock"
        self._segment: Segment | None = None

    def start(self) -> None:
        """Say that the producer lives, and take away what dead ones left."""
        with suppress(OSError):
            if self._segment is None and self._path.parent.is_dir():  # a store that is away must stay away
                self._segment = Segment.create(self._path)
                for path in self._path.parent.glob(f"{_PREFIX}*.lock"):
                    if (left := Segment.take(path)) is not None:
                        left.finish()

    def stop(self) -> None:
        """Say that the producer holds nothing any more."""
        if self._segment is not None:
            with suppress(OSError):
                self._segment.finish()
            self._segment = None


def live_producers(folder: Path) -> set[str]:
    """The producers that live now."""
    found = set()
    for path in folder.glob(f"{_PREFIX}*.lock"):
        if is_held(path):
            found.add(path.stem.removeprefix(_PREFIX))
    return found

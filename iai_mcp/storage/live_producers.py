"""Live producers: those whose process lives and may still hold entries in its memory.

Each keeps a locked file in the store, which says how many entries it has handed out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from iai_mcp.common.regular_files import NOTE_MAX, read_regular
from iai_mcp.entries.fields import SEQ_MAX
from iai_mcp.errors import UnfitFile
from iai_mcp.storage.layout import Layout
from iai_mcp.storage.locked_file import LockedFile, is_held
from iai_mcp.storage.producer_log import EndedProducer, ProducerLog

__all__ = ["LiveProducer", "SignOfLife", "signs_of_life"]

_PREFIX = "producer-"


class _Note(msgspec.Struct, frozen=True):
    handed_out: Annotated[int, msgspec.Meta(ge=0, le=SEQ_MAX)] = 0
    embedded: bool = True


@dataclass(frozen=True, slots=True)
class SignOfLife:
    """What a producer's file says.

    Attributes:
        handed_out: number of entries, as of a second ago.
        embedded: whether entries wait in its memory alone; otherwise Redis has them, too.
        alive: whether its process lives.
    """

    producer: str
    handed_out: int
    embedded: bool
    alive: bool


class _ProducerFile(LockedFile):
    """The file of one producer."""

    def write(self, note: _Note) -> None:
        """Note a number that is not smaller than the one before."""
        os.pwrite(self._fd, msgspec.json.encode(note) + b"\n", 0)

    def read(self) -> _Note:
        """What was noted last; zero where that cannot be read."""
        return _noted(os.pread(self._fd, 200, 0))


class LiveProducer:
    """The sign of life of one producer, from :meth:`start` to :meth:`stop`; nothing else depends on it.

    Args:
        layout: of the store.
        producer: the producer's key.
        handed_out: how many entries it has handed out by now.
        embedded: whether entries wait in this process's memory alone.
    """

    def __init__(self, layout: Layout, producer: str, handed_out: Callable[[], int], *, embedded: bool) -> None:
        self._path = layout.locks / f"{_PREFIX}{producer}.lock"
        self._log = ProducerLog(layout.producers)
        self._producer = producer
        self._handed_out = handed_out
        self._embedded = embedded
        self._file: _ProducerFile | None = None
        self._noted = -1

    def start(self) -> None:
        """Create the file, and log and remove those of dead producers; a failure is not reported."""
        with suppress(OSError):
            if self._file is None and self._path.parent.is_dir():  # a store that is away must not be made anew
                self._file = _ProducerFile.create(self._path, append=False)
                self._noted = -1
                self.note()
                for path in self._path.parent.glob(f"{_PREFIX}*.lock"):
                    self._log_dead(path)

    def _log_dead(self, path: Path) -> None:
        """Log and remove the file of a dead producer; one that is no regular file, or another user's, stays."""
        with suppress(PermissionError, UnfitFile):
            if (left := _ProducerFile.take(path, append=False)) is not None:
                self._log.add(EndedProducer(_producer(path), left.read().handed_out, killed=True))
                left.remove()

    def note(self) -> None:
        """Keep the file up to date; a failure is not reported."""
        handed_out = self._handed_out()
        if self._file is not None and handed_out != self._noted:
            with suppress(OSError):
                self._file.write(_Note(handed_out, self._embedded))
                self._noted = handed_out

    def stop(self, *, stored: bool) -> None:
        """Remove the file: the producer holds no more entries.

        ``stored``: whether all its entries are known to be in the store; otherwise it is logged first.
        """
        if self._file is None:
            return
        with suppress(OSError):
            if not stored and (handed_out := self._handed_out()):
                self._log.add(EndedProducer(self._producer, handed_out))
        self._file.remove()
        self._file = None


def signs_of_life(folder: Path) -> Iterator[SignOfLife]:
    """What each producer's file in ``folder`` says; a dead one's file stays until another producer starts.

    Raises:
        OSError: a file cannot be read.
    """
    for path in folder.glob(f"{_PREFIX}*.lock"):
        with suppress(FileNotFoundError, UnfitFile):  # it has just ended; no producer made it
            alive = is_held(path)
            note = _noted(read_regular(path, NOTE_MAX))
            yield SignOfLife(_producer(path), note.handed_out, note.embedded, alive)


def _producer(path: Path) -> str:
    return path.stem.removeprefix(_PREFIX)


def _noted(data: bytes) -> _Note:
    try:
        return msgspec.json.decode(data, type=_Note)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Note()  # its producer has only just started

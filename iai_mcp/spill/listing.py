"""Lists the spill folder from outside: reads every file, changes none, and never keeps a lock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from iai_mcp.common.regular_files import lines_of, reading
from iai_mcp.config import Settings, overflow_dir
from iai_mcp.entries.wire import Outline, outline
from iai_mcp.spill.names import SEGMENT_MAX, SpillName, files_in
from iai_mcp.storage.locked_file import is_held

__all__ = ["SpillFile", "Waiting", "listing", "outlines", "waiting"]


@dataclass(frozen=True, slots=True)
class SpillFile:
    """One file of the spill folder.

    Attributes:
        store: the store that its first well-formed line names; None without such a line.
        producer: key of the producer, from that line or else from the file's name.
        lines: number of lines, well-formed or not.
        entries: number of entries in the well-formed lines.
        unreadable: number of lines that are no parcels.
        oldest: Unix time in seconds at which the oldest of its entries was enqueued.
        held: whether a living process holds it, and will replay it.
        set_aside: whether it is out of the way for people to look at.
    """

    path: Path
    store: str | None
    producer: str | None
    lines: int
    entries: int
    unreadable: int
    bytes: int
    oldest: float | None
    held: bool
    set_aside: bool


@dataclass(frozen=True, slots=True)
class Waiting:
    """Number of files, lines and entries that wait for one store, and of all files set aside."""

    folder: str
    files: int = 0
    lines: int = 0
    entries: int = 0
    set_aside: int = 0


def listing(folder: Path) -> list[SpillFile]:
    """Every spill file in ``folder``, by name: those of other stores, and those set aside, too.

    Raises:
        OSError: the folder cannot be read.
    """
    found = []
    for path, name in files_in(folder):
        with suppress(FileNotFoundError, PermissionError):  # just replayed; another user's
            found.append(_spill_file(path, name))
    return found


def waiting(settings: Settings, store_id: str) -> Waiting:
    """A sum over the files of one store; zeros where the folder cannot be read."""
    folder, files = overflow_dir(settings), []
    with suppress(OSError):
        files = listing(folder)
    ours = [file for file in files if file.store == store_id and not file.set_aside]
    return Waiting(
        str(folder),
        files=len(ours),
        lines=sum(file.lines for file in ours),
        entries=sum(file.entries for file in ours),
        set_aside=sum(file.set_aside for file in files),
    )


def outlines(path: Path) -> Iterator[Outline | None]:
    """The outline of each line, None for a line that is no parcel; a line that is still being written is skipped.

    Raises:
        OSError: the file cannot be read.
    """
    with reading(path, limit=SEGMENT_MAX) as file:
        for line in lines_of(file):
            if line.endswith(b"\n") or not is_held(path):
                yield outline(line)


def _spill_file(path: Path, name: SpillName) -> SpillFile:
    held, size = is_held(path), path.stat().st_size
    lines = [*outlines(path)]
    good = [line for line in lines if line is not None]
    return SpillFile(
        path=path,
        store=good[0].store if good else None,
        producer=good[0].producer if good else name.producer,
        lines=len(lines),
        entries=sum(len(line.seqs) for line in good),
        unreadable=len(lines) - len(good),
        bytes=size,
        oldest=min((line.pushed for line in good), default=None),
        held=held,
        set_aside=name.set_aside,
    )

"""The spill of one producer: an ordered store-and-forward for parcels that the broker does not take.

While entries wait here, later ones must not overtake them: the queue appends here, and replays from the head.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from iai_mcp.common.files import sync_path
from iai_mcp.entries.parcel import Parcel
from iai_mcp.entries.wire import encode
from iai_mcp.errors import SpillUnavailable
from iai_mcp.spill.chain import Chain
from iai_mcp.spill.names import SEGMENT_MAX, chain_name, files_in, segment_name, spare_name
from iai_mcp.spill.proof import NONE, Proof
from iai_mcp.spill.segment import Segment, take_all
from iai_mcp.telemetry.events import emit

__all__ = ["Spill"]

SEGMENT_BYTES = 8 * 2**20
Tail = tuple[str, int] | None
_FIRST_NUMBER = 1_000_000  # of appended segments, upwards; prepended ones count downwards


class Spill(Chain):
    """A chain that its producer appends to.

    Args:
        store_id: the store that the entries belong to; each line names it.
        producer: the producer's key; it names the files.
        folder: the spill folder, until :meth:`append` is given another one.
        fsync: whether each append is synced, so that it survives a power cut.
        max_bytes: size in bytes from which a new file is begun.
        level: log level of the events for filling and emptying; a journal fills and empties all the time.
        proof: signs each line, and says what becomes of lines without a valid proof.
    """

    def __init__(
        self,
        store_id: str,
        producer: str,
        folder: Path,
        *,
        fsync: bool = False,
        max_bytes: int = SEGMENT_BYTES,
        level: int = logging.INFO,
        proof: Proof = NONE,
    ) -> None:
        super().__init__(store_id, [], level=level, proof=proof)
        self._name = chain_name(store_id, producer)
        self._folder = folder
        self._fsync = fsync
        self._max_bytes = max_bytes
        self._next = self._first = _FIRST_NUMBER
        self._elsewhere: list[Path] = []
        self._spare: Segment | None = None

    def prepare(self, folder: Path) -> None:
        """Make the next file ahead: a busy disk may take tens of ms for that, and a recall must not wait so long.

        Raises:
            OSError: that cannot be done now; :meth:`append` then makes a file itself.
        """
        if self._spare is None:
            self._spare = Segment.create_hidden(folder / spare_name(self._name))

    def close(self) -> None:
        """Close every segment; the files stay, and another client may adopt them."""
        super().close()
        with self._mutex:
            spare, self._spare = self._spare, None
        if spare is not None:
            spare.remove()

    @property
    def active(self) -> bool:
        """Whether entries wait here, and later ones must not overtake them."""
        return self.unread or self._adopted_elsewhere()

    def append(self, parcels: Sequence[Parcel], folder: Path) -> None:
        """Add one line for each parcel. A new file, where one is needed, is made in ``folder``.

        Raises:
            SpillUnavailable: the disk is full or the folder not writable; nothing was added.
        """
        data = self._lines(parcels)
        with self._mutex:
            try:
                if len(data) > SEGMENT_MAX - self._max_bytes:
                    raise OSError(errno.EFBIG, f"{len(data):,} bytes are more than a spill file takes")
                fresh = not self._segments
                if fresh or self._segments[-1].size >= self._max_bytes:
                    self._segments.append(self._new_segment(folder))
                self._segments[-1].append(data, fsync=self._fsync)
            except OSError as error:
                raise SpillUnavailable(f"cannot spill to {folder}: {error.strerror or error}") from error
        if fresh:
            entries = sum(len(parcel.seqs) for parcel in parcels)
            emit("spill_started", level=self._level, folder=str(folder), entries=entries)

    def _lines(self, parcels: Sequence[Parcel]) -> bytes:
        sign = self._proof.signer.sign
        return b"".join(sign(encode(parcel)) + b"\n" for parcel in parcels)

    def tail(self) -> Tail:
        """The present end: name and size of the last file; None where there is no file."""
        with self._mutex:
            last = self._segments[-1] if self._segments else None
            return (last.path.name, last.size) if last else None

    def passed(self, tail: Tail) -> bool:
        """Whether every line up to ``tail`` has been taken, and no other client holds older ones."""
        with self._mutex:
            read = tail is None or all(
                segment.settled >= (tail[1] if segment.path.name == tail[0] else segment.size)
                for segment in self._segments
                if segment.path.name <= tail[0]
            )
        return read and not self._adopted_elsewhere()

    def prepend(self, parcels: Sequence[Parcel], folder: Path) -> None:
        """Add lines in front of all that wait here: a queue that stops gives back older entries.

        Files of the chain that this object does not hold count too: it may be a dead producer's.

        Raises:
            SpillUnavailable: the disk is full or the folder not writable; nothing was added.
        """
        with self._mutex:
            self._first = min([self._first, *self._numbers(folder)])
            later, self._segments = self._segments, []
            self._next, end = self._first - 1, self._next
            try:
                self.append(parcels, folder)
                self._first -= 1
            finally:
                self._next = end
                self._segments += later

    def _new_segment(self, folder: Path) -> Segment:
        self._folder = folder
        path = folder / segment_name(self._name, self._next)
        segment = self._from_spare(path) or Segment.create(path)
        if self._fsync:
            sync_path(folder)  # the line survives a power cut only if the file's name does
        self._next += 1
        return segment

    def _from_spare(self, path: Path) -> Segment | None:
        spare, self._spare = self._spare, None
        if spare is not None:
            if spare.path.parent == path.parent:
                with suppress(OSError):  # another client has removed it
                    spare.rename(path)
                    return spare
            spare.remove()
        return None

    def reopen(self) -> None:
        """Take the files back that an earlier :meth:`close` left; wait for those that another client adopted."""
        with self._mutex:
            paths = self._left_files()
            segments = take_all(paths)
            if segments is None:
                self._elsewhere = paths
            else:
                self._segments[:0] = segments

    def _left_files(self) -> list[Path]:
        with suppress(OSError):
            files = files_in(self._folder)
            return [path for path, name in files if name.chain == self._name and not name.set_aside]
        return []

    def _numbers(self, folder: Path) -> list[int]:
        with suppress(OSError):  # making the file tells what is wrong
            return [name.number for _, name in files_in(folder) if name.chain == self._name]
        return []

    def _adopted_elsewhere(self) -> bool:
        if self._elsewhere:
            self._elsewhere = [path for path in self._elsewhere if path.exists()]
        return bool(self._elsewhere)

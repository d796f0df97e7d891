"""The spill of one queue: takes what the broker does not take, and accounts for what the disk refuses."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from iai_mcp.common import forks
from iai_mcp.config import overflow_dir
from iai_mcp.entries.admission import check_depth
from iai_mcp.entries.identity import entry_id
from iai_mcp.entries.parcel import Parcel, halves
from iai_mcp.entries.wire import LEVELS_MAX, encode
from iai_mcp.errors import SpillUnavailable
from iai_mcp.pipeline.counts import QueueCounts
from iai_mcp.pipeline.ports import ProvenanceStore
from iai_mcp.spill.erase import forget_all
from iai_mcp.spill.handover import HandOverSpill
from iai_mcp.spill.names import chain_name, files_in
from iai_mcp.spill.proof import Proof
from iai_mcp.spill.writer import Spill
from iai_mcp.storage.dead_letters import DeadLetters
from iai_mcp.storage.exclusions import ExclusionReason, Key
from iai_mcp.storage.tables.process import usable
from iai_mcp.storage.tombstones import Tombstones
from iai_mcp.telemetry.events import emit, log, safe_message

__all__ = ["Overflow"]

TAKEN_BY = "the next client of this store on this machine, a worker here, or `iai-mcp spill replay`"
FORKED = (
    "this process was forked after its store was opened: it hands provenance entries over in files, and another "
    "process of the store applies them; open the store after the fork instead"
)
JOURNAL_IDLE_S = 1.0  # a journal file with nothing to replay is removed after this


class Overflow:
    """What one producer spills.

    Attributes:
        spill: the files.
        journal: whether every entry goes through the spill.
        proof: signs and checks the lines of spill files.
        hands_over: whether another process writes the entries to the store, since this one cannot: it was forked.

    Args:
        store: the store of the entries.
        producer: the producer's key; it names the files.
        counts: the queue's.
        remote: whether the broker is on a server.
    """

    def __init__(self, store: ProvenanceStore, producer: str, counts: QueueCounts, *, remote: bool) -> None:
        settings = store.settings
        self.hands_over = forks.bare() or (not remote and not usable())
        self.journal = settings.journal != "off" or self.hands_over
        if self.hands_over:
            log.warning(FORKED)
        self._fsync = settings.journal == "fsync" or (remote and settings.redis_durability == "fsync")
        level = logging.DEBUG if self.journal else logging.INFO
        kind = HandOverSpill if self.hands_over else Spill
        self.proof = Proof.of(settings, store.layout)
        self.spill = kind(
            store.store_id, producer, overflow_dir(settings), fsync=self._fsync, level=level, proof=self.proof
        )
        self._producer = producer
        self._store = store
        self._counts = counts
        self._ahead = self.journal or remote
        self._refused: list[Key] = []
        self._last_append = 0.0

    def append(self, parcels: Sequence[Parcel]) -> None:
        """Add parcels to the end of the spill.

        Raises:
            SpillUnavailable: the disk does not take them; they are counted as refused.
        """
        self._write(parcels, self.spill.append)
        self._last_append = time.monotonic()

    def give_back(self, parcels: Sequence[Parcel]) -> None:
        """Put parcels before everything in the spill; those that the disk does not take are counted as refused.

        Those of a dead producer, whose files this queue had adopted, go before what is left of its files.
        """
        fit = self._encodable(parcels)
        for producer in self._with_files({parcel.producer for parcel in fit} - {self._producer}):
            spill = Spill(self._store.store_id, producer, self._folder(), fsync=self._fsync, proof=self.proof)
            self._give_back([parcel for parcel in fit if parcel.producer == producer], spill)
            spill.close()
            fit = [parcel for parcel in fit if parcel.producer != producer]
        self._give_back(fit, self.spill)

    def _with_files(self, producers: set[str]) -> list[str]:
        """Those of the producers that have files in the folder."""
        with suppress(OSError):
            chains = {name.chain for _, name in files_in(self._folder()) if not name.set_aside}
            return [producer for producer in producers if chain_name(self._store.store_id, producer) in chains]
        return []

    def _give_back(self, parcels: Sequence[Parcel], spill: Spill) -> None:
        if parcels:
            with suppress(SpillUnavailable):
                self._write(parcels, spill.prepend)

    def _encodable(self, parcels: Iterable[Parcel]) -> list[Parcel]:
        """The parcels without entries that cannot be written to a file: these become dead letters."""
        fit: list[Parcel] = []
        for parcel in parcels:
            try:
                check_depth(parcel.own, LEVELS_MAX)
                encode(parcel)
            except Exception as error:  # noqa: BLE001  whatever an entry's objects raise
                if len(parcel.seqs) > 1:
                    fit += self._encodable(halves(parcel))
                else:
                    self._dead_letter(parcel, error)
            else:
                fit.append(parcel)
        return fit

    def _dead_letter(self, parcel: Parcel, error: Exception) -> None:
        reason = f"{type(error).__name__}: it cannot be spilled"
        ((record_id, seq, entry),) = parcel.handed_out()
        keyed = {**entry, "producer": parcel.producer, "producer_seq": seq}
        keyed["entry_id"] = entry_id(parcel.producer, seq)
        DeadLetters(self._store.layout).add_entry(parcel.lane, (record_id, keyed), reason)
        self._counts.dead += 1
        emit("dead_letter", level=logging.ERROR, lane=parcel.lane, kind=type(error).__name__)

    def _write(self, parcels: Sequence[Parcel], write: Callable[..., None]) -> None:
        folder = self._folder()
        entries = sum(len(parcel.seqs) for parcel in parcels)
        try:
            write(parcels, folder)
        except Exception as error:
            self._counts.refused += entries
            self._refused += [(parcel.producer, seq) for parcel in parcels for seq in parcel.seqs]
            found = {"entries": entries, "folder": str(folder), "error": safe_message(error)}
            emit("spill_failed", level=logging.ERROR, **found)
            if isinstance(error, SpillUnavailable):
                raise
            raise SpillUnavailable(f"cannot spill to {folder}: {type(error).__name__}") from error
        self._counts.spilled += entries

    def _folder(self) -> Path:
        return overflow_dir(self._store.settings)  # looked up anew: HOME may have changed

    def erase_forgotten(self) -> None:
        """Erase entries of deleted records from the files that this queue, and others, have given up."""
        store = self._store
        if deleted := Tombstones(store.layout.tombstones).hex():
            with suppress(OSError):  # the next client leaves them out all the same
                forget_all(self._folder(), store.store_id, deleted, store.exclusions, self.proof.signer)

    def tell_left(self) -> int:
        """The number of entries that stay in the files. If any do, the log says so, and who will take them."""
        if entries := self.spill.entries_left():
            folder = self._folder()
            emit("spill_left", level=logging.WARNING, entries=entries, folder=str(folder), taken_by=TAKEN_BY)
        return entries

    def prepare(self) -> None:
        """Have a file ready where entries may have to be spilled at any time."""
        if self._ahead:
            with suppress(OSError):  # an append will say so
                self.spill.prepare(overflow_dir(self._store.settings))

    def may_commit(self) -> bool:
        """Whether the files may go once they are replayed: a busy journal keeps its last one open."""
        idle = time.monotonic() - self._last_append > JOURNAL_IDLE_S
        return not self.journal or self.spill.length > 1 or idle

    def note_refused(self) -> None:
        """Tell the store which entries were never taken, once its disk takes that."""
        if self._refused:
            noted = len(self._refused)
            with suppress(OSError):
                self._store.exclusions.add(ExclusionReason.REFUSED, self._refused[:noted])
                del self._refused[:noted]

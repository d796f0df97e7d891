"""Dead letters: what could not be applied, kept in the store's folder with the reason, until people decide.

One JSON object a line; each change is on the disk before the call returns.

Entries are always kept. Raw bytes, which anyone who reaches a lane can send, are kept until the file has
``RAW_BYTES``; further ones are counted, in a file of its own that says how many and when.
"""

from __future__ import annotations

import base64
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any, NamedTuple
from uuid import UUID

import msgspec

from iai_mcp.common.files import append_lines, replace_file
from iai_mcp.common.regular_files import LOG_MAX, NOTE_MAX, lines_of, read_regular, reading
from iai_mcp.common.times import utcnow
from iai_mcp.entries.admission import plain_pairs
from iai_mcp.entries.fields import REUSES_MAX, key_fault
from iai_mcp.entries.parcel import Pair, Parcel
from iai_mcp.entries.wire import NOT_DECODABLE, encode, outline
from iai_mcp.errors import BadParams
from iai_mcp.storage import letter_ids
from iai_mcp.storage.exclusions import ExclusionReason, Exclusions, Key
from iai_mcp.storage.layout import Layout
from iai_mcp.storage.tombstones import Tombstones
from iai_mcp.storage.writer_lock import WriterLock
from iai_mcp.telemetry.events import emit

__all__ = ["RAW_BYTES", "DeadLetter", "DeadLetters", "Overflown", "Raw"]

RAW_BYTES = 256 * 2**20  # size of the file from which raw bytes are counted only


class Raw(NamedTuple):
    """Bytes that are no entry, why, and whether that is since they prove no producer."""

    raw: bytes
    reason: str
    unproven: bool = False


class Overflown(msgspec.Struct, frozen=True):
    """What was not kept: how many items, their bytes, and the first and last time, ISO 8601, UTC."""

    items: int = 0
    bytes: int = 0
    first: str = ""
    last: str = ""


class DeadLetter(msgspec.Struct, frozen=True):
    """One entry that failed, or ``raw`` bytes (base64) that were no entry.

    Attributes:
        id: names the letter on the command line.
        at: when it was given up, ISO 8601, UTC.
        reason: the error's own words.
        record_id, entry: what ``append_provenance_batch`` takes; None where only bytes are known.
        conflict: whether another entry has the key; a retry gives this one a key of its own.
        reuse: the last reuse of the record's id (:mod:`iai_mcp.storage.tombstones`); after a later one the letter
            belongs to a forgotten record.
        unproven: whether ``raw`` has no valid proof of its producer; a retry looks for one again.
    """

    id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{12}\Z")]
    at: str
    lane: Annotated[int, msgspec.Meta(ge=-1, le=2**16)]
    reason: str
    record_id: str | None = None
    entry: dict[str, Any] | None = None
    raw: str | None = None
    conflict: bool = False
    reuse: Annotated[int, msgspec.Meta(ge=0, le=REUSES_MAX)] = 0
    unproven: bool = False

    @property
    def pair(self) -> Pair | None:
        """The letter as a pair, where it holds an entry. A conflict has a new key, the same at every call."""
        if not self.record_id or self.entry is None:
            return None
        entry = self.entry
        if self.conflict:
            rest = {key: value for key, value in entry.items() if key not in ("producer", "producer_seq")}
            entry = {**rest, "entry_id": f"retried-{self.id}"}
        return UUID(self.record_id), entry

    @property
    def keys(self) -> list[Key]:
        """What it is accounted for under, as far as that can be told."""
        entry = self.entry or {}
        if self.raw is not None:
            raw = base64.b64decode(self.raw)
            if (found := outline(raw)) is not None:
                return [(found.producer, seq) for seq in found.seqs if key_fault(found.producer, seq) is None]
            with suppress(*NOT_DECODABLE):
                entry = msgspec.json.decode(raw, type=dict)  # a row of a lane
        producer, seq = entry.get("producer"), entry.get("producer_seq")
        if isinstance(producer, str) and isinstance(seq, int) and key_fault(producer, seq) is None:
            return [(producer, seq)]
        return []


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """The dead letters of one store."""

    layout: Layout

    def add_entry(self, lane: int, pair: Pair, reason: str) -> None:
        """Keep an entry that could not be written; one of a deleted record is only noted."""
        with self._lock():
            tombstones = Tombstones(self.layout.tombstones)  # looked up here: `forget` takes the same lock
            reuse = tombstones.reused().get(pair[0].hex, 0)
            letter = _letter(lane, pair, reason[:2000], reuse)
            if pair[0] in tombstones.ids():
                self._note(ExclusionReason.FORGOTTEN, [letter])
            else:
                self._append(letter)

    def add_conflicts(self, lane: int, pairs: Sequence[Pair], reason: str) -> None:
        """Keep entries whose key another entry has, except those that are kept already."""
        with self._lock():
            tombstones = Tombstones(self.layout.tombstones)
            deleted, reused = tombstones.ids(), tombstones.reused()
            for pair in pairs:
                letter = _letter(lane, pair, reason, reused.get(pair[0].hex, 0))
                letter = msgspec.structs.replace(letter, conflict=True)
                if pair[0] in deleted:
                    self._note(ExclusionReason.FORGOTTEN, [letter])
                else:
                    self._append(letter)

    def add_raw(self, lane: int, raw: bytes, reason: str) -> None:
        """As :meth:`add_raws`, of one."""
        self.add_raws(lane, [Raw(raw, reason)])

    def add_raws(self, lane: int, raws: Sequence[Raw]) -> None:
        """Keep all of ``raws`` with one write, and tell of them; past ``RAW_BYTES`` they are only counted."""
        path, lines, over = self.layout.dead_letters, [], []
        with self._lock():
            known = letter_ids.known(path)
            size = path.stat().st_size if path.exists() else 0
            for raw, reason, unproven in dict.fromkeys(raws):
                if (name := _id(raw)) in known:
                    continue
                coded = base64.b64encode(raw).decode()
                letter = DeadLetter(name, _now(), lane, reason[:2000], raw=coded, unproven=unproven)
                line = _line(letter)
                if size + len(line) > RAW_BYTES:
                    over.append(len(raw))
                else:
                    lines.append(line)
                    size += len(line)
            if lines:
                append_lines(path, b"".join(lines))
            if over:
                self._count(over)
        for kind, count in Counter(one.reason.split(":", 1)[0] for one in raws).items():
            emit("dead_letter", level=logging.ERROR, lane=lane, kind=kind, items=count)

    def _count(self, sizes: Sequence[int]) -> None:
        before, now = self.overflown(), _now()
        after = Overflown(before.items + len(sizes), before.bytes + sum(sizes), before.first or now, now)
        replace_file(self.layout.dead_letters_overflown, msgspec.json.encode(after))
        emit("dead_letters_full", level=logging.ERROR, items=len(sizes), of_all=after.items)

    def overflown(self) -> Overflown:
        """What was counted and not kept."""
        with suppress(FileNotFoundError, msgspec.DecodeError):
            return msgspec.json.decode(read_regular(self.layout.dead_letters_overflown, NOTE_MAX), type=Overflown)
        return Overflown()

    def _append(self, letter: DeadLetter) -> None:
        """A drain that stopped before it acknowledged comes back with the same letter: it is kept once."""
        if letter.id not in letter_ids.known(self.layout.dead_letters):
            append_lines(self.layout.dead_letters, _line(letter))

    def all(self) -> list[DeadLetter]:
        """Every dead letter, oldest first."""
        return [letter for line in self._lines() if (letter := _decode(line)) is not None]

    def count(self) -> int:
        """How many there are."""
        return sum(line.endswith(b"\n") for line in self._lines())

    def _lines(self) -> Iterator[bytes]:
        try:
            file = reading(self.layout.dead_letters, limit=LOG_MAX)
        except FileNotFoundError:
            return
        with file:
            yield from lines_of(file)

    def find(self, ids: Sequence[str]) -> list[DeadLetter]:
        """The letters with these ids; all of them where ``ids`` is empty."""
        return [letter for letter in self.all() if not ids or letter.id in ids]

    def of_reused(self, letters: Iterable[DeadLetter]) -> list[DeadLetter]:
        """Those of ``letters`` whose record was forgotten, and whose id another record has by now."""
        reused = Tombstones(self.layout.tombstones).reused()
        pairs = ((letter, letter.pair) for letter in letters)
        return [letter for letter, pair in pairs if pair and reused.get(pair[0].hex, 0) > letter.reuse]

    def remove(self, ids: Iterable[str]) -> int:
        """Remove letters whose entries are in the store now; how many there were."""
        return self._take(lambda letter: letter.id in gone, None) if (gone := set(ids)) else 0

    def drop(self, ids: Iterable[str]) -> int:
        """Give letters up for good, and note that people did; how many there were."""
        return self._take(lambda letter: letter.id in gone, ExclusionReason.DROPPED) if (gone := set(ids)) else 0

    def forget(self, record_id: UUID) -> None:
        """Drop the letters of a deleted record, and undecodable ones that mention its id."""
        text = str(record_id)
        self._take(
            lambda letter: letter.record_id == text or _mentions(letter, record_id),
            ExclusionReason.FORGOTTEN,
            lambda line: text.encode() in line or record_id.hex.encode() in line,
        )

    def _take(
        self,
        wanted: Callable[[DeadLetter], bool],
        why: ExclusionReason | None,
        unreadable: Callable[[bytes], bool] = lambda line: False,
    ) -> int:
        """Remove letters, and lines that are none; how many letters there were."""
        with self._lock():
            gone: list[DeadLetter] = []
            kept: list[bytes] = []
            lines = 0
            for lines, line in enumerate(self._lines(), 1):  # noqa: B007
                letter = _decode(line)
                if letter is not None and wanted(letter):
                    gone.append(letter)
                elif letter is not None or not unreadable(line):
                    kept.append(line)
            if why is not None and gone:
                self._note(why, [one for one in gone if not one.unproven])  # they may name another's numbers
            if len(kept) < lines:
                replace_file(self.layout.dead_letters, b"".join(kept))
            return len(gone)

    def _note(self, why: ExclusionReason, letters: Iterable[DeadLetter]) -> None:
        Exclusions(self.layout.exclusions).add(why, [key for letter in letters for key in letter.keys])

    def _lock(self) -> AbstractContextManager[object]:
        return WriterLock(self.layout.dead_letters_lock, timeout=30).hold()


def _letter(lane: int, pair: Pair, reason: str, reuse: int) -> DeadLetter:
    """An entry that is no plain JSON is kept as the bytes of a parcel; its key stays where nothing else can."""
    record_id, entry = pair
    producer, seq = entry["producer"], entry["producer_seq"]
    with suppress(BadParams):
        ((_, plain),) = plain_pairs([(record_id, entry)], None)
        name = _id(msgspec.json.encode((record_id, plain)))
        return DeadLetter(name, _now(), lane, reason, str(record_id), plain, reuse=reuse)
    try:
        raw = encode(Parcel.of("", lane, producer, 0.0, [(record_id, seq, entry)]))
    except Exception:  # noqa: BLE001  whatever its objects raise
        raw = encode(Parcel.of("", lane, producer, 0.0, [(record_id, seq, {})]))
    return DeadLetter(_id(raw), _now(), lane, reason, raw=base64.b64encode(raw).decode())


def _line(letter: DeadLetter) -> bytes:
    return msgspec.json.encode(letter, enc_hook=repr) + b"\n"


def _mentions(letter: DeadLetter, record_id: UUID) -> bool:
    raw = base64.b64decode(letter.raw or "")
    return str(record_id).encode() in raw or record_id.hex.encode() in raw


def _decode(line: bytes) -> DeadLetter | None:
    try:
        letter = msgspec.json.decode(line, type=DeadLetter)
        if letter.record_id is not None:
            UUID(letter.record_id)
        base64.b64decode(letter.raw or "", validate=True)
    except (ValueError, RecursionError):  # msgspec's, too; a line torn by a power cut, or no letter of ours
        return None
    return letter


def _id(what: bytes) -> str:
    return sha256(what).hexdigest()[:12]


def _now() -> str:
    return utcnow().isoformat()

"""What each field of an entry from outside may be: one check for every way in. Pure.

Lanes, spill files, dead letters, exports and backups are read as if a stranger had written them. What fails here
becomes a dead letter or is set aside; what passes cannot stop a reader.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import isfinite
from operator import lt

from msgspec import UNSET

from iai_mcp.entries.parcel import Parcel

__all__ = [
    "ENTRIES_MAX",
    "LANES_MAX",
    "NAME",
    "REUSES_MAX",
    "SEQ_BITS",
    "SEQ_MAX",
    "all_sound",
    "fault",
    "key_fault",
]

SEQ_BITS = 40
SEQ_MAX = 2**SEQ_BITS - 1
"""The highest number of an entry. A process that hands out 100,000 a second gets there after four months."""

NAME = r"[0-9A-Za-z][0-9A-Za-z._:-]{0,63}"
"""A regular expression for the key of a producer and the id of a store: they are printed, and they name files."""

ENTRIES_MAX = 2**15
"""Entries in a parcel. A parcel of several takes at most 1 MiB of JSON, and an entry at least 37 bytes of it."""

LANES_MAX = 256
PUSHED_MAX = 2.0**33  # Unix time: the year 2242
REUSES_MAX = 2**40

_NAME = re.compile(NAME)


def key_fault(producer: object, seq: object) -> str | None:
    """What is wrong with a producer's key and an entry's number; None where both are sound."""
    if not isinstance(producer, str) or not _NAME.fullmatch(producer):
        return "its producer's key has other characters than letters, digits, '.', '_', ':' and '-', or too many"
    if type(seq) is not int or not 0 < seq <= SEQ_MAX:
        return f"a number is not from 1 to {SEQ_MAX}"
    return None


def fault(parcel: Parcel) -> str | None:
    """What is wrong with the fields of a parcel whose columns have one length; None where all are sound."""
    if not _NAME.fullmatch(parcel.store):
        return "its store's id has characters that no id has"
    if not 0 <= parcel.lane < LANES_MAX:
        return f"its lane is not from 0 to {LANES_MAX - 1}"
    if not (isfinite(parcel.pushed) and 0 <= parcel.pushed < PUSHED_MAX):
        return "its time is no Unix time"
    if not 0 <= parcel.known_reuses <= REUSES_MAX:
        return "its number of reuses is out of range"
    if len(parcel.seqs) > ENTRIES_MAX:
        return f"it has more than {ENTRIES_MAX:,} entries"
    for seq in parcel.seqs or [1]:
        if (found := key_fault(parcel.producer, seq)) is not None:
            return found
    if any(later <= earlier for earlier, later in zip(parcel.seqs, parcel.seqs[1:], strict=False)):
        return "its numbers do not ascend"
    return None


def all_sound(parcels: Sequence[Parcel]) -> bool:
    """Whether :func:`fault` finds nothing in any of them; quick for many."""
    for name in {parcel.producer for parcel in parcels} | {parcel.store for parcel in parcels}:
        if not _NAME.fullmatch(name):
            return False
    for parcel in parcels:
        if not (0 <= parcel.lane < LANES_MAX and 0 <= parcel.pushed < PUSHED_MAX):  # no NaN passes
            return False
        seqs = parcel.seqs
        if len(seqs) > ENTRIES_MAX:
            return False
        if seqs and not (seqs[0] > 0 and seqs[-1] <= SEQ_MAX and all(map(lt, seqs, seqs[1:]))):
            return False
        if parcel.reuses is not UNSET and not 0 <= parcel.reuses <= REUSES_MAX:
            return False
    return True

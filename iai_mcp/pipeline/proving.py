"""Looks again at dead letters that had no valid proof of their producer, and applies those that have one now."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from iai_mcp.entries.batch import EntryBatch
from iai_mcp.entries.signature import Signer
from iai_mcp.entries.wire import decode
from iai_mcp.errors import MalformedParcel
from iai_mcp.pipeline.ports import ProvenanceStore
from iai_mcp.storage.dead_letters import DeadLetter, DeadLetters
from iai_mcp.storage.exclusions import ExclusionReason

if TYPE_CHECKING:  # importing it takes LanceDB along
    from iai_mcp.storage.tables.reports import AppendReport

__all__ = ["apply_unproven"]


def apply_unproven(store: ProvenanceStore, letter: DeadLetter) -> AppendReport:
    """Write the entries of ``letter``, and remove it. Without keys any letter is taken.

    Raises:
        MalformedParcel: it still proves nothing, is no parcel, or belongs to another store.
        StoreUnavailable: the storage is unavailable; the letter stays.
    """
    raw = base64.b64decode(letter.raw or "")
    if (fault := Signer(store.settings.signing_keys).fault(raw)) is not None:
        raise MalformedParcel(fault)
    parcel = decode(raw)
    if parcel.store != store.store_id:
        raise MalformedParcel("it belongs to another store")
    # First, because later entries of the same producers have their rows by now.
    store.exclusions.add(ExclusionReason.LATE, [(parcel.producer, seq) for seq in parcel.seqs])
    done = store.append_provenance_batch(EntryBatch.of([parcel]))
    DeadLetters(store.layout).remove([letter.id])  # after the commit: the entries' keys make a repetition safe
    return done

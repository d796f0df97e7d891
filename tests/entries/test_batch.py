"""Batches: the pairs that a write takes, and parcels of different kinds in one batch."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from iai_mcp.entries.batch import EntryBatch
from iai_mcp.entries.parcel import Parcel
from iai_mcp.entries.routing import lane_of, route
from iai_mcp.record import MemoryRecord
from iai_mcp.storage.tables.write_right import WriteRight
from iai_mcp.store import MemoryStore, RecordsCache
from tests.support import cues, entry

KEYS = {"entry_id", "producer", "producer_seq", "record_id", "seq"}


def test_a_batch_is_the_pairs_that_were_handed_out() -> None:
    hits = [
        (uuid4(), entry("cue", rank=1)),
        (uuid4(), entry("cue", rank=2)),
        (uuid4(), entry("other", entry_id="mine")),
    ]
    batch = EntryBatch.of(route("store", "p", 1, hits, 1, 0.0))
    keys = ["p-1", "p-2", "mine"]
    expected = [
        (key, {**said, "entry_id": name, "producer": "p", "producer_seq": seq})
        for seq, ((key, said), name) in enumerate(zip(hits, keys, strict=True), 1)
    ]
    assert [*batch] == expected
    assert len(batch) == 3
    assert [*batch[1:]] == expected[1:]
    assert batch[-1] == expected[-1]
    assert [*EntryBatch.of_pairs(expected)] == expected
    with pytest.raises(IndexError):
        batch[3]


def test_parcels_that_share_different_things_make_one_batch(store: MemoryStore) -> None:
    """In one the cue is common to all, in the next it is not, and the third has keys that no column is for."""
    record_id = store.insert(MemoryRecord(text="a"))
    said: list[list[dict[str, Any]]] = [
        [entry("same", rank=1), entry("same", rank=2)],
        [entry("one"), entry("two")],
        [entry("more", colour="red"), entry("more", colour="blue")],
        [{"cue": "\ud800", "rank": "third"}],
    ]
    parcels: list[Parcel] = []
    for group in said:
        first = 1 + sum(len(parcel.seqs) for parcel in parcels)
        parcels += route(store.store_id, "p", first, [(record_id, item) for item in group], store.lanes, 0.0)
    assert store.append_provenance_batch(EntryBatch.of(parcels)).applied == 7
    found = store.get(record_id)
    assert found is not None
    flat = [item for group in said for item in group]
    assert [{k: v for k, v in item.items() if k not in KEYS} for item in found.provenance[:6]] == flat[:6]
    assert found.provenance[6]["rank"] == "third"


def test_a_lane_s_cache_does_not_keep_an_entry_from_its_own_lane(store: MemoryStore) -> None:
    """Somebody pushed an entry into the wrong lane, twice: it is where its record is looked for all the same."""
    ids = store.insert_many([MemoryRecord(text=str(number)) for number in range(20)])
    home = lane_of(ids[0], store.lanes)
    stranger = next(one for one in ids if lane_of(one, store.lanes) != home)
    away = lane_of(stranger, store.lanes)
    store.lane(away).raise_fence(9)  # the token of one lane says nothing of another
    cache, right = RecordsCache(), WriteRight(home, 1)
    for seq in (1, 3):
        pairs = [(ids[0], entry(f"home {seq}")), (stranger, entry(f"away {seq}"))]
        batch = EntryBatch.of(route(store.store_id, "p", seq, pairs, 1, 0.0))
        assert store.append_provenance_batch(batch, cache, right=right).applied == 2
    for key, word in ((ids[0], "home"), (stranger, "away")):
        found = store.get(key)
        assert found is not None
        assert cues(found.provenance) == [f"{word} 1", f"{word} 3"]

"""Entries on their way: what a parcel writes once, parcels of older versions, and batches as they are drained."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iai_mcp.entries.batch import EntryBatch
from iai_mcp.entries.parcel import Parcel, decode, encode, lane_of, route
from iai_mcp.errors import MalformedParcel
from iai_mcp.record import MemoryRecord
from iai_mcp.storage.tables.write_right import WriteRight
from iai_mcp.store import MemoryStore, RecordsCache
from tests.support import cues, entry

KEYS = {"entry_id", "producer", "producer_seq", "record_id", "seq"}

VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([0.0, 1.0, 1.5]), st.text("ab", max_size=2)
)
ENTRIES = st.dictionaries(st.sampled_from(["ts", "cue", "rank", "score", "more"]), VALUES)


def _handed_out(parcels: list[Parcel]) -> list[tuple[UUID, int, dict[str, Any]]]:
    found = [item for parcel in parcels for item in decode(encode(parcel)).handed_out()]
    return sorted(found, key=lambda item: item[1])


def test_what_all_hits_of_a_recall_say_is_written_once() -> None:
    cue = "where did Ada leave the spare key of the boat house?"
    hits = [(uuid4(), entry(cue, rank=rank, score=rank / 3)) for rank in range(1, 5)]
    (parcel,) = route("store", "producer", 7, hits, 1, 0.0)
    assert encode(parcel).count(cue.encode()) == 1
    assert _handed_out([parcel]) == [(key, seq, said) for seq, (key, said) in enumerate(hits, 7)]


@given(st.lists(ENTRIES, min_size=1, max_size=4))
def test_entries_come_out_as_they_went_in(entries: list[dict[str, Any]]) -> None:
    pairs = [(uuid4(), said) for said in entries]
    found = [said for _, _, said in _handed_out(route("store", "producer", 1, pairs, 2, 0.0))]
    assert found == entries
    kinds = [{key: type(value) for key, value in said.items()} for said in found]
    assert kinds == [{key: type(value) for key, value in said.items()} for said in entries]  # 1 is not True


def test_a_parcel_of_the_first_wire_version_is_read() -> None:
    said = {"ts": "2026-01-01T00:00:00Z", "cue": "old", "session_id": "s"}
    old = {
        "store": "s",
        "lane": 0,
        "producer": "p",
        "pushed": 1.0,
        "entries": [[str(UUID(int=5)), 3, said]],
        "v": 1,
    }
    assert [*decode(msgspec.json.encode(old)).handed_out()] == [(UUID(int=5), 3, said)]


SHAPES = [{"entries": []}, {"ids": [], "seqs": [], "own": {}}, {"rows": "of a kind to come"}]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_parcel_of_a_later_version_says_so(shape: dict[str, Any]) -> None:
    later = {"store": "s", "lane": 0, "producer": "p", "pushed": 1.0, **shape, "v": 99}
    with pytest.raises(MalformedParcel, match="upgrade"):
        decode(msgspec.json.encode(later))


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
    said = [
        [entry("same", rank=1), entry("same", rank=2)],
        [entry("one"), entry("two")],
        [entry("more", colour="red"), entry("more", colour="blue")],
        [{"cue": "\ud800", "rank": "third"}],
    ]
    parcels = []
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

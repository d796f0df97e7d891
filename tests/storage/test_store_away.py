"""A store that is deleted or replaced under its users: one kind of error, and nothing is remade."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from iai_mcp.core import dispatch
from iai_mcp.errors import StoreUnavailable
from iai_mcp.maintenance.verify import verify
from iai_mcp.recall import recall
from iai_mcp.record import MemoryRecord
from iai_mcp.store import MemoryStore
from tests.support import cues, entry, pairs, wait_until

CALLS: dict[str, Callable[[MemoryStore, UUID], Any]] = {
    "recall": lambda store, one: recall(store, "pier", "s"),
    "recall without trace": lambda store, one: recall(store, "pier", "s", record_provenance=False),
    "get": lambda store, one: store.get(one),
    "insert": lambda store, one: store.insert(MemoryRecord(text="new")),
    "delete": lambda store, one: store.delete(one),
    "append": lambda store, one: store.append_provenance_batch(pairs(one, ["late"])),
    "count": lambda store, one: store.count(),
    "list": lambda store, one: store.list_records(),
    "search_text": lambda store, one: store.search_text("pier"),
    "search_vector": lambda store, one: store.search_vector([0.1] * store.meta.embedder.dims),
    "record_ids": lambda store, one: store.record_ids(),
    "existing": lambda store, one: store.existing([one]),
    "records": lambda store, one: store.records([str(one)]),
    "stream": lambda store, one: [*store.stream()],
    "meta": lambda store, one: store.meta,
    "check_lanes": lambda store, one: store.check_lanes(),
    "without_vector": lambda store, one: store.count_without_vector(),
    "embedder": lambda store, one: store.vectors_match(),
    "lane": lambda store, one: [store.lane(number).stats() for number in range(store.lanes)],
    "open": lambda store, one: dispatch(store, "memory_status"),
    "memory_recall": lambda store, one: dispatch(store, "memory_recall", {"cue": "pier"}),
    "memory_capture": lambda store, one: dispatch(store, "memory_capture", {"text": "x"}),
    "memory_provenance": lambda store, one: dispatch(store, "memory_provenance", {"view": "top"}),
    "timeline": lambda store, one: dispatch(store, "memory_provenance", {"record_id": str(one)}),
    "verify": lambda store, one: verify(store.layout, store.settings),
}


def made(store: MemoryStore) -> UUID:
    one = store.insert(MemoryRecord(text="the ferry leaves from pier seven"))
    store.append_provenance_batch(pairs(one, ["first"]))
    return one


def trail(store: MemoryStore, one: UUID) -> list[str]:
    record = store.get(one)
    assert record is not None
    return cues(record.provenance)


@pytest.mark.parametrize("name", CALLS)
def test_every_call_says_that_the_store_is_unavailable(store: MemoryStore, tmp_path: Path, name: str) -> None:
    one = made(store)
    away = tmp_path / "away"
    store.layout.root.rename(away)
    before = sorted(path.relative_to(away) for path in away.rglob("*"))
    with pytest.raises(StoreUnavailable):
        CALLS[name](store, one)
    assert not store.layout.root.exists()
    away.rename(store.layout.root)
    assert sorted(path.relative_to(store.layout.root) for path in store.layout.root.rglob("*")) == before
    if name != "open":
        CALLS[name](store, one)


@pytest.mark.parametrize("name", sorted({*CALLS} - {"verify"}))  # verify opens what is at the path
def test_so_does_every_call_on_another_store_in_its_place(store: MemoryStore, tmp_path: Path, name: str) -> None:
    one = made(store)
    other = MemoryStore(tmp_path / "other")
    other.close()
    store.layout.root.rename(tmp_path / "away")
    shutil.move(tmp_path / "other", store.layout.root)
    before = {path: path.read_bytes() for path in store.layout.root.rglob("*") if path.is_file()}
    with pytest.raises(StoreUnavailable):
        CALLS[name](store, one)
    after = {path: path.read_bytes() for path in store.layout.root.rglob("*") if path.is_file()}
    assert after == before


def test_a_queue_keeps_its_entries_until_the_store_is_back(store: MemoryStore, tmp_path: Path) -> None:
    one = made(store)
    store.enable_provenance_queue()
    queue = store.provenance_queue
    assert queue is not None
    queue.enqueue(pairs(one, ["second"]))
    assert queue.flush()
    away = tmp_path / "away"
    store.layout.root.rename(away)
    for number in range(20):
        queue.enqueue([(one, entry(number))])
    assert not queue.flush(0.5)
    store.disable_provenance_queue()
    assert not store.layout.root.exists()
    away.rename(store.layout.root)
    store.enable_provenance_queue()
    wait_until(lambda: len(trail(store, one)) == 22)
    assert trail(store, one) == ["first", "second", *map(str, range(20))]
    assert verify(store.layout, store.settings).clean

"""Parcels: shared contents are written once, and entries come out as they went in."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from hypothesis import given
from hypothesis import strategies as st

from iai_mcp.entries.parcel import Parcel
from iai_mcp.entries.routing import route
from iai_mcp.entries.wire import decode, encode
from tests.support import entry

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

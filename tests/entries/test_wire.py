"""The wire form of parcels: what is refused, and why."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec
import pytest

from iai_mcp.entries.parcel import Parcel
from iai_mcp.entries.wire import decode, encode, outline
from iai_mcp.errors import MalformedParcel
from tests.support import entry

PARCEL = Parcel.of("s", 0, "p", 1.0, [(UUID(int=5), 3, entry("a")), (UUID(int=6), 4, entry("b"))])


def test_the_format_starts_at_version_1() -> None:
    assert msgspec.json.decode(encode(PARCEL))["v"] == 1


SHAPES = [{"entries": []}, {"ids": [], "seqs": [], "own": {}}, {"rows": "of a kind to come"}]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_parcel_of_a_later_version_says_so(shape: dict[str, Any]) -> None:
    later = {"store": "s", "lane": 0, "producer": "p", "pushed": 1.0, **shape, "v": 99}
    with pytest.raises(MalformedParcel, match="upgrade"):
        decode(msgspec.json.encode(later))


def test_a_field_that_is_unknown_changes_nothing() -> None:
    assert decode(msgspec.json.encode({**msgspec.to_builtins(PARCEL), "colour": "red"})) == PARCEL


DAMAGE = [{"ids": ["00"]}, {"ids": ["x" * 32] * 2}, {"seqs": [3]}, {"own": {"cue": ["a"]}}, {"own": [{}]}]


@pytest.mark.parametrize("damage", DAMAGE)
def test_columns_that_do_not_fit_together_are_refused(damage: dict[str, Any]) -> None:
    with pytest.raises(MalformedParcel, match="differ in length, or an id is no UUID"):
        decode(msgspec.json.encode({**msgspec.to_builtins(PARCEL), **damage}))


def test_an_outline_tells_whose_entries_they_are() -> None:
    found = outline(encode(PARCEL))
    assert found is not None
    assert (found.store, found.producer, found.ids, found.seqs) == ("s", "p", PARCEL.ids, [3, 4])
    assert outline(b"no parcel") is None

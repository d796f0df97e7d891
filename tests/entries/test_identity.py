"""Entry keys and record ids as text."""

from __future__ import annotations

from uuid import uuid4

import pytest

from iai_mcp.entries.identity import are_ids, dashed, entry_id, entry_id_bounds, split_entry_id


def test_a_key_names_its_producer_and_its_number() -> None:
    key = entry_id("ab-cd", 17)
    assert split_entry_id(key) == ("ab-cd", 17)
    with pytest.raises(ValueError, match="invalid literal"):
        split_entry_id("a key of the caller")


def test_the_keys_of_a_producer_lie_between_its_bounds() -> None:
    first, end = entry_id_bounds("ab")
    keys = [entry_id(producer, seq) for producer in ("aa", "ab", "ab0", "abc", "ac") for seq in (1, 9, 10**12)]
    assert [key for key in keys if first <= key < end] == [entry_id("ab", seq) for seq in (1, 9, 10**12)]


def test_a_record_id_has_32_digits_or_its_dashes() -> None:
    record_id = uuid4()
    assert dashed(record_id.hex) == str(record_id)
    assert are_ids([record_id.hex])
    assert are_ids([])
    for wrong in (str(record_id), record_id.hex[1:], record_id.hex.upper().replace("0", "A"), "g" * 32):
        assert not are_ids([wrong])

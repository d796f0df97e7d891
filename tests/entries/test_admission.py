"""Admission: what no entry may hold is refused by name, and everything else becomes plain JSON."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import math
import sys
from collections import OrderedDict, UserDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from uuid import UUID, uuid4

import msgspec
import numpy as np
import pytest

from iai_mcp.entries.admission import DEPTH_MAX, admit, plain_pairs, shift
from iai_mcp.entries.parcel import Parcel
from iai_mcp.entries.routing import route
from iai_mcp.entries.wire import decode, encode
from iai_mcp.errors import BadParams
from tests.support import entry

LIMIT = 20_000
ONE = UUID(int=1)


def admitted(*entries: Any, limit: int = LIMIT, lanes: int = 4) -> list[dict[str, Any]]:
    """What arrives of the entries, in their order, once they have gone over the wire."""
    parcels = admit("s", "p", 1, [(uuid4(), one) for one in entries], lanes, 1.0, limit)
    found = [item for parcel in parcels for item in decode(encode(parcel)).handed_out()]
    assert found == [item for parcel in parcels for item in parcel.handed_out()]  # nothing is left to encoders
    return [said for _, _, said in sorted(found, key=lambda item: item[1])]


def nested(levels: int) -> Any:
    value: Any = "core"
    for _ in range(levels):
        value = [value]
    return value


def looped() -> list[Any]:
    value: list[Any] = []
    value.append({"again": value})
    return value


def widened() -> list[Any]:
    """Nine short lists that stand for 10**9 values."""
    value: list[Any] = ["x"] * 10
    for _ in range(8):
        value = [value] * 10
    return value


class Raising:
    def __repr__(self) -> str:
        raise OSError("not mine to tell")


class Recursing:
    def __repr__(self) -> str:
        return repr([self]) + "x"


class Huge:
    def __repr__(self) -> str:
        return "x" * (LIMIT + 1)


class NoText:
    def __repr__(self) -> str:
        return 7  # type: ignore[return-value]


class Endless(Mapping[str, Any]):
    def __getitem__(self, key: str) -> Any:
        return key

    def __iter__(self) -> Iterator[str]:
        return map(str, iter(int, 1))  # the same key over and over

    def __len__(self) -> int:
        return 3


class EndlessKeys(Endless):
    def __iter__(self) -> Iterator[str]:
        at = 0
        while True:
            yield str(at := at + 1)


class Shy(dict[str, Any]):
    """A dict whose own methods raise: those of ``dict`` still tell what is in it."""

    def _no(self, *_: Any) -> Any:
        raise RuntimeError("no")

    __getitem__ = __len__ = __iter__ = items = get = keys = values = _no


class Closed(UserDict[str, Any]):
    def items(self) -> Any:
        raise ZeroDivisionError


class Unlike:
    """Equal to nothing, not even by accident."""

    def __eq__(self, other: object) -> bool:
        raise ArithmeticError

    def __hash__(self) -> int:
        raise ArithmeticError

    def __repr__(self) -> str:
        return "<unlike>"


class Liar:
    """Claims to be a text."""

    __class__ = str  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "<liar>"


class LoudText(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = encode = __eq__ = __len__ = __str__  # type: ignore[assignment]
    __hash__ = str.__hash__


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Point:
    x: Any
    y: Any = 2


class Tagged(msgspec.Struct, tag="t", rename="upper"):
    x: Any


class Changing(UserDict[str, Any]):
    """Another answer to every question."""

    asked = 0

    def __getitem__(self, key: str) -> Any:
        Changing.asked += 1
        return {"n": nested(Changing.asked % 200)}


BAD: dict[str, tuple[Any, str]] = {
    "deep": (nested(1500), "nests deeper"),
    "a little too deep": (nested(DEPTH_MAX), "nests deeper"),
    "itself": (looped(), "nests deeper"),
    "wide": (widened(), "larger than"),
    "raising": (Raising(), "raise OSError"),
    "recursing": (Recursing(), "raise RecursionError"),
    "huge": (Huge(), "larger than"),
    "huge text": ("x" * LIMIT, "larger than"),
    "huge escapes": ("\x00" * (LIMIT // 5), "larger than"),
    "huge non-ascii": ("ä" * (LIMIT // 2), "larger than"),
    "huge key": ({"k" * LIMIT: 1}, "larger than"),
    "huge bytes": (b"x" * LIMIT, "larger than"),
    "no text": (NoText(), "raise TypeError"),
    "digits": (10**5000, "JSON"),
    "opposite digits": ([10**5000, -(10**5000)], "JSON"),
    "raw": (msgspec.Raw(b"]["), "raise DecodeError"),
    "two keys of one text": ({1: "a", "1": "b"}, "the same text"),
    "endless": (Endless(), "the same text"),
    "endless keys": (EndlessKeys(), "larger than"),
    "closed": (Closed(a=1), "raise ZeroDivisionError"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_no_entry_may_hold_is_refused_by_name(name: str) -> None:
    value, why = BAD[name]
    with pytest.raises(BadParams, match=f"pair 2 is refused: .*{why}"):
        admitted(entry("a"), entry("b"), entry("c", more=value), entry("d"))


@pytest.mark.parametrize("bad", [Closed(a=1), EndlessKeys(), "text", 3, [("a", 1)], None, Raising()])
def test_an_entry_is_a_mapping_that_can_be_read(bad: Any) -> None:
    with pytest.raises(BadParams, match="pair 1 is refused"):
        admitted(entry("a"), bad)


@pytest.mark.parametrize("key", ["no uuid", 7, None, b"x" * 16, str(ONE), Raising()])
def test_an_id_is_a_uuid(key: Any) -> None:
    with pytest.raises(BadParams, match=r"pair 1 is refused: a value of type .* is no UUID"):
        admit("s", "p", 1, [(uuid4(), entry("a")), (key, entry("b"))], 4, 1.0, LIMIT)


@pytest.mark.parametrize("pair", [7, None, (), (uuid4(),), (uuid4(), {}, 1), Raising()])
def test_a_pair_has_two_parts(pair: Any) -> None:
    with pytest.raises(BadParams, match="pair 1 is refused: it is not a UUID and a mapping"):
        admit("s", "p", 1, [(uuid4(), entry("a")), pair], 4, 1.0, LIMIT)


NOON = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)
GOOD: dict[str, tuple[Any, Any]] = {
    "as deep as may be": (nested(DEPTH_MAX - 1), nested(DEPTH_MAX - 1)),
    "big integers": ([2**63, 2**70, -(2**70)], [2**63, 2**70, -(2**70)]),
    "no numbers": ([math.nan, math.inf, -math.inf], ["nan", "inf", "-inf"]),
    "lone surrogates": ({"\udcff": "broken \ud800"}, {"?": "broken ?"}),
    "other scripts": ("日本 é \U0001f600 \x00 \u2028", "日本 é \U0001f600 \x00 \u2028"),
    "bytes": ([b"abc", bytearray(b"abc"), memoryview(b"abc")], ["YWJj"] * 3),
    "times": ([NOON, NOON.date(), NOON.time()], ["2026-11-23T12:00:00Z", "2026-11-23", "12:00:00"]),
    "decimals": (decimal.Decimal("1.10"), "1.10"),
    "ids": (ONE, str(ONE)),
    "sets": ([{1}, frozenset("a")], [[1], ["a"]]),
    "tuples": ((1, (2,)), [1, [2]]),
    "mappings": ([MappingProxyType({"a": 1}), OrderedDict(b=2), UserDict(c=3)], [{"a": 1}, {"b": 2}, {"c": 3}]),
    "keys": (
        {1: 1, 1.5: 2, None: 3, (1, "a"): 4, ONE: 5, False: 6},
        {"1": 1, "1.5": 2, "None": 3, "(1, 'a')": 4, str(ONE): 5, "False": 6},
    ),
    "a dataclass": (Point(1), {"x": 1, "y": 2}),
    "a struct": (Tagged(1), {"type": "t", "X": 1}),
    "an enum": (Colour.RED, "red"),
    "an object": (Unlike(), "<unlike>"),
    "a class": (Unlike, repr(Unlike)),
    "a liar": (Liar(), "<liar>"),
    "a loud text": ({LoudText("k"): LoudText("v")}, {"k": "v"}),
    "a shy dict": (Shy(a=[1]), {"a": [1]}),
    "NumPy's numbers": ([np.float64(0.5), np.float32(0.5), np.int64(3)], [0.5, 0.5, 3]),
    "raw JSON": (msgspec.Raw(b'{"a":[1]}'), {"a": [1]}),
}


@pytest.mark.parametrize("name", GOOD)
def test_everything_else_becomes_plain_json(name: str) -> None:
    value, plain = GOOD[name]
    assert admitted(entry("a"), entry("b", more=value)) == [entry("a"), entry("b", more=plain)]


@pytest.mark.parametrize("whole", [Shy, OrderedDict, MappingProxyType, UserDict, dict])
def test_an_entry_may_be_any_mapping(whole: Callable[[Any], Any]) -> None:
    assert admitted(whole(entry("a", rank=1)), whole(entry("a", rank=2))) == [entry("a", rank=n) for n in (1, 2)]


def test_a_mapping_that_changes_is_read_once() -> None:
    for _ in range(300):
        with suppress(BadParams):
            (found,) = admitted(Changing(a=1, b=2, c="x", d="y"))
            assert set(found) == {"a", "b", "c", "d"}


def test_a_dict_that_another_thread_changes_is_read_once() -> None:
    class Filling:
        def __repr__(self) -> str:
            said["late"] = looped()
            return "filled"

    said: dict[str, Any] = entry("a", first=Filling())
    assert admitted(said) == [entry("a", first="filled")]
    said = entry("a", list=[Filling()])
    said["list"].append(said["list"])
    with pytest.raises(BadParams, match="nests deeper"):
        admitted(said)


def test_a_size_is_what_the_entry_takes_as_json() -> None:
    for fill in ("x", "ä", '"', "\x00", "日"):
        count = (LIMIT - len(msgspec.json.encode(entry("")))) // (len(msgspec.json.encode(fill)) - 2)
        fitting = entry(fill * count)
        assert admitted(fitting, entry("b")) == [fitting, entry("b")]
        with pytest.raises(BadParams, match=r"pair 1 .* larger than 20,000 bytes of JSON \(IAI_MCP_MAX_ENTRY"):
            admitted(entry("b"), entry(fill * (count + 1)))


def test_large_entries_of_one_call_are_parcels_of_their_own() -> None:
    large = [(ONE, entry(str(at) * 300_000)) for at in range(8)]
    parcels = admit("s", "p", 0, large, 1, 1.0, 2**20)
    assert [seq for parcel in parcels for seq in parcel.seqs] == [*range(8)]
    assert max(len(encode(parcel)) for parcel in parcels) <= 2**20
    assert [item[2] for parcel in parcels for item in parcel.handed_out()] == [said for _, said in large]


def test_numbers_can_be_shifted() -> None:
    parcels = admit("s", "p", 0, [(uuid4(), entry("a", rank=n, score=0.5)) for n in range(9)], 4, 1.0, LIMIT)
    shift(parcels, 41)
    assert sorted(seq for parcel in parcels for seq in parcel.seqs) == [*range(41, 50)]


SHAPES = [
    [entry("q", rank=rank, score=rank / 7) for rank in range(1, 9)],
    [entry("q", rank=rank, more=True) for rank in range(1, 4)],
    [entry("q", rank=1, score=0.5), entry("q", rank=1)],
    [entry("q", rank=1, score=0.5), entry("r", rank=1, score=0.5)],
    [entry("é", rank=1, score=None)],
    [entry("q", rank="first", score=2**70)],
    [{}],
    [{"only": "text"}, {"only": 1}],
]


@pytest.mark.parametrize("entries", SHAPES)
def test_ordinary_entries_are_routed_as_ever(entries: list[dict[str, Any]]) -> None:
    given = [(uuid4(), one) for one in entries]

    def alike(parcels: list[Parcel]) -> Any:
        return [item for parcel in sorted(parcels, key=lambda one: one.lane) for item in parcel.handed_out()]

    assert alike(admit("s", "p", 1, given, 4, 1.0, LIMIT)) == alike(route("s", "p", 1, given, 4, 1.0))


def test_decoders_take_what_was_admitted_wherever_they_are_called() -> None:
    (pair,) = plain_pairs([(ONE, {"deep": nested(DEPTH_MAX - 1)})], LIMIT)
    wire = encode(Parcel.of("s", 0, "p", 1.0, [(ONE, 1, pair[1])]))

    def below(levels: int) -> Any:
        return below(levels - 1) if levels else decode(wire)

    assert below(sys.getrecursionlimit() - 400 - len(wire) // 10).ids == [ONE.hex]

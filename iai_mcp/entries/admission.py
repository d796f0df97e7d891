"""Admission: checks entries before anything takes them, and copies them into plain JSON values. Pure.

Everything that moves or stores an entry can handle one that was admitted: it consists of plain JSON values, is no
larger than a limit, and nests no deeper than ``DEPTH_MAX``. The entries of a recall pass a quick check of their
columns. Any other entry is copied value by value, under bounds that hold for hostile objects too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from itertools import chain
from math import fsum, isfinite
from numbers import Integral, Rational, Real
from operator import itemgetter
from typing import Any
from uuid import UUID
from zlib import crc32

import msgspec

from iai_mcp.entries.parcel import Pair, Parcel, halves
from iai_mcp.entries.routing import route
from iai_mcp.entries.wire import encode, too_deep
from iai_mcp.errors import BadParams

__all__ = ["DEPTH_MAX", "admit", "check_depth", "plain_pair", "plain_pairs", "shift"]

DEPTH_MAX = 64  # encoders and decoders allow some 900, less the frames of their caller; schema tools about 250
PARCEL_BYTES = 2**20  # a parcel of several entries is no larger: a push has only milliseconds

_NUMBERS = frozenset({int, float, bool})
_TEXTS = frozenset({str})
_SCALARS = _NUMBERS | {str, type(None)}
_NUMBER_BYTES = 330  # more than any number below 2**1024 takes as JSON
_CHARACTER_BYTES = 6  # the most that a character takes as JSON


def admit(
    store: str,
    producer: str,
    first_seq: int,
    pairs: Sequence[Pair],
    lanes: int,
    pushed: float,
    max_bytes: int,
    reuses: int = 0,
) -> list[Parcel]:
    """Route ``pairs`` as :func:`iai_mcp.entries.routing.route` does, and check every entry.

    A parcel of several entries is small enough for one push; a lane may therefore get several.

    Args:
        max_bytes: the largest size of an entry, in bytes of JSON.
        reuses: as of :class:`iai_mcp.entries.parcel.Parcel`.

    Raises:
        BadParams: an entry is refused; the message names the pair and says why.
    """
    sure = min(max_bytes, PARCEL_BYTES)
    try:
        if (parcels := _alike(store, producer, first_seq, pairs, lanes, pushed, sure, reuses)) is not None:
            return parcels
        if {type(entry) for _, entry in pairs} == {dict}:
            parcels = route(store, producer, first_seq, pairs, lanes, pushed, reuses)
            if _are_plain(parcels, sure):
                return parcels
    except Exception:  # noqa: BLE001, S110  whatever a caller's objects raise: the careful way finds out what is wrong
        pass
    plain = plain_pairs(pairs, max_bytes)
    return [
        part
        for parcel in route(store, producer, first_seq, plain, lanes, pushed, reuses)
        for part in _small(parcel)
    ]


def _small(parcel: Parcel) -> Iterator[Parcel]:
    """The parcel, in parts that a push can carry."""
    if len(parcel.seqs) == 1 or len(encode(parcel)) <= PARCEL_BYTES:
        yield parcel
    else:
        for half in halves(parcel):
            yield from _small(half)


# -- the quick way


def _alike(
    store: str,
    producer: str,
    first_seq: int,
    pairs: Sequence[Pair],
    lanes: int,
    pushed: float,
    max_bytes: int,
    reuses: int,
) -> list[Parcel] | None:
    """Route the entries of one recall: the same texts, and several numbers each; None for any other entries.

    It does what :func:`route` does, in two thirds of the time that route and a check would take together. Each
    value is read once and then checked, so that no other thread can change it later.
    """
    if (found := _columns([entry for _, entry in pairs], max_bytes)) is None:
        return None
    shared, names, rows = found
    by_lane: dict[int, tuple[list[str], list[int], list[tuple[Any, ...]]]] = {}
    seq = first_seq
    for (record_id, _), row in zip(pairs, rows):  # noqa: B905  likewise
        raw = record_id.int.to_bytes(16, "big")
        lane = crc32(raw) % lanes
        if lane in by_lane:
            ids, seqs, mine = by_lane[lane]
            ids.append(raw.hex())
            seqs.append(seq)
            mine.append(row)
        else:
            by_lane[lane] = [raw.hex()], [seq], [row]
        seq += 1
    told: int | msgspec.UnsetType = reuses or msgspec.UNSET
    return [
        Parcel(
            store,
            lane,
            producer,
            pushed,
            ids,
            seqs,
            dict(zip(names, map(list, zip(*mine)))),  # noqa: B905  asking for it costs more than the rest
            shared=shared,
            reuses=told,
        )
        for lane, (ids, seqs, mine) in by_lane.items()
    ]


def _columns(
    entries: list[dict[str, Any]], max_bytes: int
) -> tuple[dict[str, Any], list[str], list[tuple[Any, ...]]] | None:
    """The texts that all entries have, the names of their numbers, and these; None where they hold more than that.

    Raises:
        OverflowError: a number is larger than any float.
    """
    first, count = entries[0], len(entries[0])
    if type(first) is not dict:  # another mapping may have no end
        return None
    shared, names = {}, []
    for name, value in first.items():
        if type(value) is str:
            shared[name] = value
        else:
            names.append(name)
    if len(shared) < 2 or len(names) < 2:
        return None
    texts = itemgetter(*shared)
    common = texts(first)
    for entry in entries:
        if len(entry) != count or texts(entry) != common:
            return None
    rows = [*map(itemgetter(*names), entries)]
    if not {*map(type, chain.from_iterable(rows))} <= _NUMBERS or {*map(type, [*shared, *names])} != _TEXTS:
        return None
    together = "".join([*shared, *names, *shared.values()])
    if not (together.isascii() and isfinite(fsum(chain.from_iterable(rows)))):
        return None
    size = _CHARACTER_BYTES * len(together) + _NUMBER_BYTES * len(rows) * count
    return (shared, names, rows) if size <= max_bytes else None


def _are_plain(parcels: Sequence[Parcel], max_bytes: int) -> bool:
    """Whether all entries are plain beyond doubt. The parcels are copies: no other thread can change them."""
    texts, values = [*parcels[0].shared], [*parcels[0].shared.values()]
    for own in [parcel.own for parcel in parcels]:
        if isinstance(own, dict):
            texts += own
            values += chain.from_iterable(own.values())
        else:
            texts += chain.from_iterable(own)
            values += chain.from_iterable([row.values() for row in own])
    if not {*map(type, values)} <= _SCALARS:
        return False
    texts += [value for value in values if type(value) is str]
    return _are_plain_scalars(texts, [value for value in values if type(value) in _NUMBERS], max_bytes)


def _are_plain_scalars(texts: list[Any], numbers: list[Any], max_bytes: int) -> bool:
    """Raises for a lone surrogate, and for a number that no float holds."""
    if {*map(type, texts)} != {str}:
        return False
    together = "".join(texts)
    if not together.isascii():
        together.encode()
    size = _CHARACTER_BYTES * len(together) + _NUMBER_BYTES * (len(texts) + len(numbers))
    return size <= max_bytes and isfinite(fsum(numbers))


# -- the careful way


class _Unfit(ValueError):
    """A value that no entry can hold; the message says why."""


def plain_pairs(pairs: Iterable[object], max_bytes: int | None) -> list[Pair]:
    """:func:`plain_pair` of each.

    Raises:
        BadParams: an entry is refused.
    """
    return [plain_pair(at, pair, max_bytes) for at, pair in enumerate(pairs)]


def plain_pair(at: int, pair: Any, max_bytes: int | None, as_id: Callable[[Any], UUID] | None = None) -> Pair:
    """A copy of ``pair`` whose entry is plain JSON values.

    What JSON lacks is replaced: bytes by base64, times by ISO 8601, a lone surrogate by ``?``, NaN and other
    objects by their ``repr``.

    Args:
        at: its index, for the message.
        max_bytes: the largest size of an entry, in bytes of JSON; None for any size.
        as_id: makes UUIDs of what else may name a record; without it only a UUID does.

    Raises:
        BadParams: the entry is refused; the message names the pair and says why.
    """
    with _naming(at):
        try:
            record_id, entry = pair
        except (TypeError, ValueError):
            raise _Unfit("it is not a UUID and a mapping") from None
        if as_id is not None:
            record_id = as_id(record_id)
        if not issubclass(type(record_id), UUID):
            raise _Unfit(f"{_kind(record_id)} is no UUID")
        return UUID(int=record_id.int), _plain(entry, max_bytes)


def check_depth(value: object, levels: int = DEPTH_MAX) -> None:
    """Refuse a value that nests deeper than ``levels``.

    Raises:
        ValueError: it does.
    """
    if too_deep(value, levels):
        raise ValueError(f"nests deeper than {levels} levels")


@contextmanager
def _naming(at: int) -> Iterator[None]:
    """Turn every error of the block into one that names the pair."""
    try:
        yield
    except (_Unfit, BadParams) as error:
        raise BadParams(f"provenance pair {at} is refused: {error}") from None
    except Exception as error:  # noqa: BLE001  whatever a caller's objects raise
        reason = f"its objects raise {type(error).__name__} when they are read"
        raise BadParams(f"provenance pair {at} is refused: {reason}") from None


def _plain(entry: Any, max_bytes: int | None) -> dict[str, Any]:
    if not issubclass(type(entry), Mapping):
        raise _Unfit(f"an entry is a mapping, not {_kind(entry)}")
    copied = _Copy(max_bytes).value(entry, 0)
    try:
        data = msgspec.json.encode(copied)
        plain: dict[str, Any] = msgspec.json.decode(data)
    except (ValueError, OverflowError) as error:  # an integer of thousands of digits
        raise _Unfit(f"it does not go through JSON ({error})") from None
    if max_bytes is not None and len(data) > max_bytes:
        raise _too_large(max_bytes)
    return plain


def _too_large(max_bytes: int) -> _Unfit:
    return _Unfit(f"its entry is larger than {max_bytes:,} bytes of JSON (IAI_MCP_MAX_ENTRY_BYTES)")


def _kind(value: object) -> str:
    return f"a value of type {type(value).__name__}"


class _Copy:
    """Copies one entry. The types of its values decide, never what they claim in ``__class__`` or ``__eq__``.

    Args:
        max_bytes: a copy that takes more bytes of JSON is given up; None for any size.
    """

    def __init__(self, max_bytes: int | None) -> None:
        self._max_bytes = max_bytes
        self._spent = 0

    def value(self, value: Any, depth: int) -> Any:
        """A plain copy of ``value``, which stands ``depth`` levels below its entry."""
        if depth > DEPTH_MAX:
            raise _Unfit(f"it nests deeper than {DEPTH_MAX} levels, or contains itself")
        self._spend(1)
        kind = type(value)
        if kind is bool or value is None:
            return value
        if issubclass(kind, str):
            return self._text(str.__str__(value))
        if (found := _number(kind, value)) is not None:
            return found if type(found) is int or isfinite(found) else repr(found)
        if kind is msgspec.Raw:
            return self.value(msgspec.json.decode(bytes(value)), depth)
        if issubclass(kind, Enum):
            return self.value(value.value, depth + 1)
        if issubclass(kind, Mapping):
            return self._mapping(_items(kind, value), depth)
        if (members := _members(kind, value)) is not None:
            return [self.value(member, depth + 1) for member in members]
        if (fields := _fields(kind, value)) is not None:
            return self._mapping(fields, depth)
        return self._leaf(value)

    def _spend(self, size: int) -> None:
        self._spent += size
        if self._max_bytes is not None and self._spent > self._max_bytes:
            raise _too_large(self._max_bytes)

    def _text(self, text: str) -> str:
        self._spend(len(text))
        return text if text.isascii() else text.encode("utf-8", "replace").decode()

    def _mapping(self, items: Iterable[tuple[Any, Any]], depth: int) -> dict[str, Any]:
        copied: dict[str, Any] = {}
        for key, value in items:
            name = self._key(key)
            if name in copied:
                raise _Unfit("two of its keys are the same text")
            copied[name] = self.value(value, depth + 1)
        return copied

    def _key(self, key: Any) -> str:
        kind = type(key)
        if issubclass(kind, str):
            return self._text(str.__str__(key))
        if kind is bool or key is None:
            return repr(key)
        return self._leaf(key) if (found := _number(kind, key)) is None else self._text(repr(found))

    def _leaf(self, value: Any) -> str:
        """The text that stands for a value which JSON lacks."""
        if issubclass(type(value), bytes | bytearray | memoryview):
            self._spend(size := memoryview(value).nbytes)
            self._spent -= size  # its text counts
        if issubclass(type(value), tuple | frozenset):  # a key
            return self._text(str.__str__(repr(value)))
        return self._text(str.__str__(msgspec.to_builtins(value, enc_hook=repr)))


def _number(kind: type[Any], value: Any) -> int | float | None:
    """The number that ``value`` is, as an ``int`` or a ``float``; None for anything else."""
    if issubclass(kind, int):
        return int.__int__(value)
    if issubclass(kind, float):
        return float.__float__(value)
    if issubclass(kind, Integral):  # NumPy's
        return int(value)
    return float(value) if issubclass(kind, Real) and not issubclass(kind, Rational) else None


def _items(kind: type[Any], value: Any) -> Iterable[tuple[Any, Any]]:
    return [*dict.items(value)] if issubclass(kind, dict) else value.items()


def _members(kind: type[Any], value: Any) -> Iterator[Any] | None:
    """The values in a list, a tuple or a set; None for anything else."""
    for base in (list, tuple, set, frozenset):
        if issubclass(kind, base):
            return base.__iter__(value)
    return None


def _fields(kind: type[Any], value: Any) -> Iterator[tuple[str, Any]] | None:
    """The fields of a dataclass, a struct or a class of attrs; None for anything else."""
    if issubclass(kind, msgspec.Struct):
        names = zip(kind.__struct_encode_fields__, kind.__struct_fields__, strict=True)
        config = kind.__struct_config__
        tag: list[tuple[str, Any]] = []
        if config.tag_field is not None:
            tag.append((config.tag_field, config.tag))
        return chain(tag, ((spelled, getattr(value, name)) for spelled, name in names))
    if dataclasses.is_dataclass(kind):
        return ((field.name, getattr(value, field.name)) for field in dataclasses.fields(kind))
    if (attributes := getattr(kind, "__attrs_attrs__", None)) is not None:
        return ((attribute.name, getattr(value, attribute.name)) for attribute in attributes)
    return None


def shift(parcels: Iterable[Parcel], by: int) -> None:
    """Add ``by`` to the numbers of freshly admitted ``parcels``."""
    for parcel in parcels:
        parcel.seqs[:] = map(by.__add__, parcel.seqs)

"""The wire form of a parcel: one JSON object, the same in a broker's lane and on a line of a spill file. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

import msgspec

from iai_mcp.entries.fields import all_sound, fault
from iai_mcp.entries.identity import are_ids
from iai_mcp.entries.parcel import WIRE_VERSION, Parcel
from iai_mcp.errors import MalformedParcel

__all__ = ["LEVELS_MAX", "NOT_DECODABLE", "Outline", "decode", "decode_all", "encode", "outline", "too_deep"]

LEVELS_MAX = 500  # of a whole parcel: the decoder takes some 900, the encoder too, less the frames of their caller


class Outline(msgspec.Struct, frozen=True):
    """The identity of a parcel's entries; their contents stay undecoded.

    Attributes: those of :class:`iai_mcp.entries.parcel.Parcel`. The lengths of ``ids`` and ``seqs`` are unchecked.
    """

    store: str
    producer: str
    ids: list[str]
    seqs: list[int]
    pushed: float = 0.0


class _Version(msgspec.Struct, frozen=True):
    v: int = 0


NOT_DECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding a stranger's JSON raises."""

_decoder = msgspec.json.Decoder(Parcel)
_version_decoder = msgspec.json.Decoder(_Version)
_outline_decoder = msgspec.json.Decoder(Outline)
_encoder = msgspec.json.Encoder(enc_hook=repr)  # an entry may hold any object; its repr stands for what JSON lacks


def encode(parcel: Parcel) -> bytes:
    """The parcel as one line of JSON, without the newline."""
    return _encoder.encode(parcel)


def decode(raw: bytes) -> Parcel:
    """The parcel in ``raw``.

    Raises:
        MalformedParcel: not JSON, not a parcel, a parcel of a later wire version, or one with a field that no
            producer writes (:mod:`iai_mcp.entries.fields`).
    """
    try:
        parcel = _decoder.decode(raw)
    except NOT_DECODABLE as error:
        with suppress(*NOT_DECODABLE):  # a later version may have another shape
            _refuse_later(_version_decoder.decode(raw).v)
        raise MalformedParcel(f"not a provenance parcel: {error}") from None
    _refuse_later(parcel.v)
    if _may_be_deep(raw) and too_deep(parcel.own, LEVELS_MAX):
        raise MalformedParcel(f"not a provenance parcel: it nests deeper than {LEVELS_MAX} levels")
    if not _consistent([parcel]):
        raise MalformedParcel("not a provenance parcel: its columns differ in length, or an id is no UUID")
    if (wrong := fault(parcel)) is not None:
        raise MalformedParcel(f"not a provenance parcel: {wrong}")
    return parcel


def decode_all(raws: Sequence[bytes]) -> list[Parcel | MalformedParcel]:
    """The result of :func:`decode` for each, errors included; together they take half as long as one by one."""
    with suppress(*NOT_DECODABLE):
        parcels = [*map(_decoder.decode, raws)]
        if (
            all(parcel.v <= WIRE_VERSION for parcel in parcels)
            and _consistent(parcels)
            and all_sound(parcels)
            and not any(map(_may_be_deep, raws))
        ):
            return [*parcels]
    return [*map(_decoded, raws)]


def outline(raw: bytes) -> Outline | None:
    """The outline of the parcel in ``raw``; None where it does not decode."""
    with suppress(*NOT_DECODABLE):
        return _outline_decoder.decode(raw)
    return None


def too_deep(value: object, levels: int) -> bool:
    """Whether lists and dicts stand in one another more than ``levels`` deep. It needs no deep stack itself."""
    here = [value]
    for _ in range(levels + 1):
        inside = chain.from_iterable([_inside(one) for one in here if isinstance(one, list | dict)])
        here = [*{id(one): one for one in inside}.values()]  # what stands there twice, as in a loop, counts once
        if not here:
            return False
    return True


def _inside(value: list[Any] | dict[str, Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _may_be_deep(raw: bytes) -> bool:
    return raw.count(b"[") + raw.count(b"{") > LEVELS_MAX


def _refuse_later(version: int) -> None:
    if version > WIRE_VERSION:
        message = f"written by a later version (wire version {version}); upgrade this process"
        raise MalformedParcel(message) from None


def _decoded(raw: bytes) -> Parcel | MalformedParcel:
    try:
        return decode(raw)
    except MalformedParcel as error:
        return error


def _consistent(parcels: Sequence[Parcel]) -> bool:
    """Whether the columns of each parcel have one length, and every id is a record id."""
    ids, owns = [parcel.ids for parcel in parcels], [parcel.own for parcel in parcels]
    columns = [[*own.values()] if isinstance(own, dict) else [own] for own in owns]
    counts = [len(parcel.seqs) for parcel in parcels]
    lengths = [*map(len, chain.from_iterable(columns))]
    return (
        [*map(len, ids)] == counts
        and lengths == [count for count, some in zip(counts, columns, strict=True) for _ in some]
        and are_ids([*chain.from_iterable(ids)])
    )

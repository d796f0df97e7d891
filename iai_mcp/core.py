"""The one entry point of the server and the command line: a method's name and parameters in, plain JSON types out.

The parameters are checked first, against one typed struct for each method. An error names the wrong parameter.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar, cast

import msgspec

from iai_mcp.common.times import parse_ts, utcnow
from iai_mcp.errors import BadParams, RecordNotFound, UnknownMethod
from iai_mcp.ingest.capture import capture_records
from iai_mcp.maintenance.status import status
from iai_mcp.parameters import CaptureParams, Params, ProvenanceParams, RecallParams, RecordParams, StatusParams
from iai_mcp.recall import recall
from iai_mcp.record import MemoryRecord
from iai_mcp.store import Filters, Hit, MemoryStore, as_uuid
from iai_mcp.trail.query import Recalled, TrailFilters, most_recalled, never_recalled, trail

__all__ = ["METHODS", "dispatch", "recalled_dict", "record_dict", "trail_filters"]

_P = TypeVar("_P", bound=Params)


def dispatch(store: MemoryStore, method: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Run ``method`` with ``params``; returns plain JSON types.

    Raises:
        UnknownMethod: there is no such method.
        BadParams: a parameter is missing, unknown or of the wrong kind.
        RecordNotFound: ``record_id`` names no memory.
    """
    if method not in METHODS:
        raise UnknownMethod(f"no method {method!r}; there are {', '.join(METHODS)}")
    kind, run = METHODS[method]
    return run(store, _parsed(method, kind, params or {}))


def _parsed(method: str, kind: type[_P], params: Mapping[str, Any]) -> _P:
    try:
        return msgspec.convert(dict(params), kind)
    except (msgspec.ValidationError, TypeError) as error:
        raise BadParams(f"{method}: {error}") from None


def _capture(store: MemoryStore, params: CaptureParams) -> dict[str, Any]:
    if not params.text.strip():
        raise BadParams("memory_capture: the text is empty")
    now = utcnow()
    record = MemoryRecord(
        text=params.text,
        id=as_uuid(params.record_id) if params.record_id else _content_id(store, params),
        session_id=params.session_id,
        role=params.role,
        tags=params.tags,
        created_at=_time("created_at", params.created_at) or now,
        updated_at=now,
        embedding=_vector("embedding", params.embedding) or [],
    )
    added = capture_records(store, [record])
    return {"record_id": str(record.id), "created": bool(added), "session_id": record.session_id}


def _recall(store: MemoryStore, params: RecallParams) -> dict[str, Any]:
    found = recall(
        store,
        params.cue,
        params.session_id,
        cue_embedding=_vector("cue_embedding", params.cue_embedding),
        limit=params.limit,
        filters=Filters(
            session=params.session,
            tags=params.tags,
            role=params.role,
            since=_time("since", params.since),
            until=_time("until", params.until),
        ),
        record_provenance=params.record_provenance,
        client=params.client or store.settings.client,
    )
    hits = [_hit_dict(hit, rank) for rank, hit in enumerate(found.hits, 1)]
    return {"recall_id": found.recall_id, "cue": found.cue, "hits": hits, "timings_ms": found.timings_ms}


def _get(store: MemoryStore, params: RecordParams) -> dict[str, Any]:
    record = store.get(as_uuid(params.record_id))
    if record is None:
        raise RecordNotFound(f"no memory has the id {params.record_id}")
    return {**record_dict(record), "provenance": record.provenance}


def _provenance(store: MemoryStore, params: ProvenanceParams) -> dict[str, Any]:
    filters = _conditions(params)
    page = {"limit": params.limit, "offset": params.offset}
    if params.view != "entries":
        _check_record(store, filters)
    if params.view == "top":
        return {"records": [recalled_dict(found) for found in most_recalled(store, filters, **page)]}
    if params.view == "never":
        return {"records": [record_dict(found) for found in never_recalled(store, filters, **page)]}
    entries = trail(store, filters, **page)
    if not entries or filters.record_id in store.tombstones.ids():  # a memory with entries exists
        _check_record(store, filters)
    return {"entries": entries}


def trail_filters(store: MemoryStore, params: Mapping[str, Any]) -> TrailFilters:
    """The conditions that ``memory_provenance`` takes from ``params``, for callers that read more than a page.

    Raises:
        BadParams: a parameter is unknown or of the wrong kind.
        RecordNotFound: ``record_id`` names no memory.
    """
    filters = _conditions(_parsed("memory_provenance", ProvenanceParams, params))
    _check_record(store, filters)
    return filters


def _conditions(params: ProvenanceParams) -> TrailFilters:
    return TrailFilters(
        record_id=as_uuid(params.record_id) if params.record_id else None,
        session=params.session_id,
        recall_id=params.recall_id,
        cue=params.cue,
        since=_time("since", params.since),
        until=_time("until", params.until),
    )


def _check_record(store: MemoryStore, filters: TrailFilters) -> None:
    if filters.record_id is not None and not store.existing([filters.record_id]):
        raise RecordNotFound(f"no memory has the id {filters.record_id}")


def recalled_dict(found: Recalled) -> dict[str, Any]:
    """A memory and its number of recalls, as plain JSON types."""
    shown = record_dict(found.record)
    last = found.last.isoformat() if found.last else None
    return {"record_id": shown.pop("record_id"), "recalls": found.recalls, "last_recalled": last, **shown}


def _forget(store: MemoryStore, params: RecordParams) -> dict[str, Any]:
    record_id = as_uuid(params.record_id)
    if not store.delete(record_id):
        raise RecordNotFound(f"no memory has the id {record_id}")
    return {"record_id": str(record_id), "forgotten": True}


METHODS: dict[str, tuple[type[Params], Callable[[MemoryStore, Any], dict[str, Any]]]] = {
    "memory_capture": (CaptureParams, _capture),
    "memory_recall": (RecallParams, _recall),
    "memory_get": (RecordParams, _get),
    "memory_provenance": (ProvenanceParams, _provenance),
    "memory_forget": (RecordParams, _forget),
    "memory_status": (StatusParams, lambda store, _: status(store)),
}


def record_dict(record: MemoryRecord) -> dict[str, Any]:
    """A memory as plain JSON types, without vector and provenance."""
    return {
        "record_id": str(record.id),
        "text": record.text,
        "session_id": record.session_id,
        "role": record.role,
        "tags": list(record.tags),
        "created_at": record.created_at.isoformat(),
        "updated_at": record.updated_at.isoformat(),
    }


def _hit_dict(hit: Hit, rank: int) -> dict[str, Any]:
    shown = record_dict(hit.record)
    return {"record_id": shown.pop("record_id"), "rank": rank, "score": round(hit.score, 6), **shown}


def _content_id(store: MemoryStore, params: CaptureParams) -> uuid.UUID:
    content = f"{params.session_id}\n{params.role}\n{params.text}"
    return uuid.uuid5(uuid.UUID(store.store_id), content)


def _time(name: str, value: object) -> datetime | None:
    if value is None or isinstance(value, datetime):
        return value
    time = parse_ts(value)
    if time is None:
        raise BadParams(f"{name}: {value!r} is not an ISO 8601 time, such as 2026-11-23 or 2026-11-23T14:00:00Z")
    return time


def _vector(name: str, value: object) -> list[float] | None:
    if value is None:
        return None
    try:
        return [float(number) for number in cast("Sequence[float]", value)]
    except (TypeError, ValueError):
        raise BadParams(f"{name}: expected a list of numbers") from None

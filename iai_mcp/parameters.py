"""Owns the parameters of the ``memory_*`` methods: one struct a method, each field typed and described once.

:mod:`iai_mcp.core` checks requests against them. The MCP server makes the schemas of its tools from them. It
needs them before the store opens, so this module imports nothing heavy.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, Struct

from iai_mcp.common.limits import CUE_MAX, NAME_MAX, RESULTS_MAX, TAGS_MAX

__all__ = ["CaptureParams", "Params", "ProvenanceParams", "RecallParams", "RecordParams", "StatusParams"]

# What stands in extra_json_schema binds clients of the MCP server only: a caller in this process may exceed it.
Name = Annotated[str, Meta(extra_json_schema={"maxLength": NAME_MAX})]
Cue = Annotated[str, Meta(extra_json_schema={"maxLength": CUE_MAX})]
Tags = Annotated[list[Name], Meta(extra_json_schema={"maxItems": TAGS_MAX})]
Time = Annotated[Any, Meta(extra_json_schema={"type": "string", "maxLength": NAME_MAX})]
RecordId = Annotated[Any, Meta(extra_json_schema={"type": "string", "format": "uuid", "maxLength": NAME_MAX})]
Limit = Annotated[int, Meta(ge=1, le=RESULTS_MAX)]
Offset = Annotated[int, Meta(ge=0)]
_NOT_EMPTY = {"minLength": 1}
_SINCE = "Not before this time, ISO 8601, such as 2026-11-23 or 2026-11-23T14:00:00Z."
_UNTIL = "Before this time, ISO 8601."


class Params(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The parameters of one method.

    Attributes:
        internal: fields for callers in this process; the MCP server offers none of them to its clients.
    """

    internal: ClassVar[frozenset[str]] = frozenset()


class CaptureParams(Params, frozen=True):
    """A memory to keep; the same text twice in one session (and role) is one memory."""

    internal: ClassVar[frozenset[str]] = frozenset({"record_id", "embedding"})

    text: Annotated[str, Meta(description="What to remember, verbatim; below 1 MB.", extra_json_schema=_NOT_EMPTY)]
    session_id: Annotated[
        Name, Meta(description="The conversation that it belongs to; default: this connection's.")
    ] = ""
    role: Annotated[Name, Meta(description="Who said it, such as user or assistant.")] = ""
    tags: Annotated[Tags, Meta(description="Words to filter by later.")] = []
    created_at: Annotated[Time, Meta(description="When it was said, ISO 8601; default: now.")] = None
    record_id: Annotated[RecordId, Meta(description="The memory's id; default: made from its content.")] = None
    embedding: Annotated[Any, Meta(description="Its vector; default: made by the store's embedder.")] = None


class RecallParams(Params, frozen=True):
    """A cue, and the conditions that memories must meet."""

    internal: ClassVar[frozenset[str]] = frozenset({"cue_embedding", "record_provenance", "client"})

    cue: Annotated[Cue, Meta(description="What to look for, in your own words.", extra_json_schema=_NOT_EMPTY)]
    session_id: Annotated[
        Name, Meta(description="The session that asks, kept in the trace; default: this connection's.")
    ] = ""
    cue_embedding: Annotated[Any, Meta(description="The cue's vector; default: made by the embedder.")] = None
    limit: Annotated[Limit, Meta(description="Maximum number of hits.")] = 10
    session: Annotated[Name | None, Meta(description="Only memories captured in this session.")] = None
    tags: Annotated[Tags, Meta(description="Only memories with at least one of these tags.")] = []
    role: Annotated[Name | None, Meta(description="Only memories said in this role.")] = None
    since: Annotated[Time, Meta(description=f"Only memories made since. {_SINCE}")] = None
    until: Annotated[Time, Meta(description=f"Only memories made before. {_UNTIL}")] = None
    record_provenance: Annotated[bool, Meta(description="Leave a trace on every hit.")] = True
    client: Annotated[Name, Meta(description="The asking program, as name/version, kept in the trace.")] = ""


class RecordParams(Params, frozen=True):
    """One memory."""

    record_id: Annotated[RecordId, Meta(description="The memory's id, as a recall returned it.")]


class ProvenanceParams(Params, frozen=True):
    """A view of the trace, and the conditions that its entries must meet, all of them."""

    view: Annotated[
        Literal["entries", "top", "never"],
        Meta(
            description="Entries, the most recalled memories, or the memories never recalled.",
            extra_json_schema={"type": "string"},
        ),
    ] = "entries"
    record_id: Annotated[RecordId, Meta(description="Only recalls that returned this memory.")] = None
    session_id: Annotated[Name | None, Meta(description="Only recalls that this session made.")] = None
    recall_id: Annotated[Name | None, Meta(description="Only this recall.")] = None
    cue: Annotated[
        Cue | None, Meta(description="Only recalls whose cue contains this text; case does not matter.")
    ] = None
    since: Annotated[Time, Meta(description=_SINCE)] = None
    until: Annotated[Time, Meta(description=_UNTIL)] = None
    limit: Annotated[Limit, Meta(description="Maximum number of results.")] = 100
    offset: Annotated[Offset, Meta(description="Number of results to skip.")] = 0


class StatusParams(Params, frozen=True):
    """No parameters."""

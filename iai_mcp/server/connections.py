"""Guards the HTTP port's connections: a time for each part of a request, and a ceiling on their number.

Uvicorn limits the time between two requests, and not that of a request. A connection is *known* once a request of
it has passed every check. Above the ceiling the oldest connection that is not known goes first, so strangers shut
no client out.
"""

from __future__ import annotations

import asyncio
import logging
import math
import resource
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from iai_mcp.config import Settings
from iai_mcp.telemetry import events

__all__ = ["ACCEPT_AT_ONCE", "Known", "guarded", "room_for"]

ACCEPT_AT_ONCE = 64  # connections taken in one turn of the loop: each has a file before the ceiling counts it
_FILES_OF_OURS = 512  # the store's and Redis's files, and connections that are being taken or closed
_REPORT_S = 60.0  # between two log lines about a full server
_STATE: Final = "iai_mcp.connection"  # key of the connection in a request's state

_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


def room_for(wanted: int) -> int:
    """Raise this process's soft limit of open files as far as ``wanted`` connections need; how many then fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    need = wanted + _FILES_OF_OURS
    if soft < need:
        soft = need if hard == resource.RLIM_INFINITY else min(need, hard)
        with suppress(ValueError, OSError):  # macOS has a lower ceiling of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, min(wanted, max(soft - _FILES_OF_OURS, soft // 4)))


@dataclass(slots=True)
class Room:
    """The open connections of a server, and the most that there may be.

    Half of them are for those that are known.
    """

    most: int
    strangers: dict[_Guarded, None] = field(default_factory=dict)  # the oldest first
    known: dict[_Guarded, None] = field(default_factory=dict)  # the one that asked longest ago first
    _dropped: int = 0
    _reported: float = -_REPORT_S

    def enter(self, one: _Guarded) -> None:
        """Count a new connection; where there is no room, the one to miss least is closed."""
        self.strangers[one] = None
        if len(self.strangers) > max(1, self.most // 2) or len(self.strangers) + len(self.known) > self.most:
            self._drop()

    def _drop(self) -> None:
        victim = next(iter(self.strangers))
        if len(self.strangers) == 1:  # the newcomer: a known one that asks nothing just now makes room for it
            victim = next((one for one in self.known if one.idle), victim)
        self._dropped += 1
        now = victim.loop.time()
        if now - self._reported >= _REPORT_S:
            events.emit("http_full", level=logging.WARNING, limit=self.most, closed=self._dropped)
            self._reported, self._dropped = now, 0
        self.leave(victim)
        victim.transport.abort()

    def leave(self, one: _Guarded) -> None:
        """Count a connection no longer."""
        self.strangers.pop(one, None)
        self.known.pop(one, None)

    def asked(self, one: _Guarded) -> None:
        """A connection has brought a request that passed every check."""
        if one in self.strangers or one in self.known:  # else it is being closed
            self.leave(one)
            self.known[one] = None


class Known:
    """An ASGI application behind all checks: a request that comes this far makes its connection known."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        connection = (scope.get("state") or {}).pop(_STATE, None) if scope["type"] == "http" else None
        if connection is not None:
            connection.room.asked(connection)
        await self._app(scope, receive, send)


class _Guarded(H11Protocol):
    """Uvicorn's connection with a deadline for each part of a request."""

    room: Room
    limits: dict[str, float]

    def __init__(
        self,
        config: Any,
        server_state: Any,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, {**app_state, _STATE: self}, _loop)
        self.timeout_keep_alive = math.ceil(self.limits["idle"])
        self._part: tuple[str, object] | None = None  # a part of a request, and the request before it
        self._deadline: asyncio.TimerHandle | None = None
        self._deaf: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    # -- what asyncio and uvicorn call

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.room.enter(self)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self.room.leave(self)
        for timer in (self._deadline, self._deaf):
            if timer is not None:
                timer.cancel()
        self._unset_keepalive_if_required()
        self.app_state.clear()  # it holds this connection
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._deaf is None:  # the peer does not read its answer
            self._deaf = self.loop.call_later(self.limits["body"], self.transport.abort)

    def resume_writing(self) -> None:
        if self._deaf is not None:
            self._deaf.cancel()
            self._deaf = None
        super().resume_writing()

    # -- deadlines

    def _watch(self) -> None:
        """Start the deadline of the part of a request that has begun."""
        part = self._awaited()
        if part == self._part:
            return
        self._part = part
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if part is not None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(self.limits[part[0]], self._too_slow)

    def _awaited(self) -> tuple[str, object] | None:
        """What the peer owes: any byte, the rest of the headers, the rest of the body; None: nothing."""
        if self.conn.their_state is h11.SEND_BODY:
            return "body", self.cycle
        if self.conn.their_state is h11.IDLE:
            return ("head" if self.conn.trailing_data[0] else "idle"), self.cycle
        return None

    def _too_slow(self) -> None:
        unanswered = self.cycle is None or not self.cycle.response_started
        if unanswered and self._part is not None and self._part[0] != "idle":
            self.transport.write(_TOO_SLOW)
        self.transport.close()
        # What is not read by now will not be: a peer that is deaf as well must not keep the connection.
        self.loop.call_later(1.0, self.transport.abort)


def guarded(settings: Settings) -> type[H11Protocol]:
    """A class of connections for uvicorn, with the limits of ``settings`` and one room for all of them."""
    limits = {
        "idle": settings.http_idle_timeout,
        "head": settings.http_head_timeout,
        "body": settings.http_body_timeout,
    }
    room = Room(room_for(settings.http_connections))
    return type("Guarded", (_Guarded,), {"room": room, "limits": limits})

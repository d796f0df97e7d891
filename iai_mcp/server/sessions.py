"""Bounds the MCP sessions over HTTP: beyond the bound the oldest idle one ends, as if its client had deleted it.

A client that leaves without a DELETE leaves its session behind. The SDK ends it after its idle time. At a bound of
its own, ``SLACK`` above ours, the SDK refuses new sessions.
"""

from __future__ import annotations

from typing import Any

__all__ = ["SLACK", "Sessions"]

SLACK = 100  # sessions above the bound, while the oldest ones end or where none is idle
_HEADER = b"mcp-session-id"


class Sessions:
    """An ASGI application in front of the SDK's.

    Args:
        app: the SDK's application.
        path: the path of MCP.
        most: the number of sessions beyond which an idle one ends.
    """

    def __init__(self, app: Any, path: str, most: int) -> None:
        self._app = app
        self._path = path
        self._most = max(1, most)
        self._running: dict[str, int] = {}  # session: its requests in flight; the one that asked longest ago first

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != self._path:
            await self._app(scope, receive, send)
            return
        session = next((value.decode("latin-1") for name, value in scope["headers"] if name == _HEADER), None)
        if session is None:
            await self._opening(scope, receive, send)
        elif session in self._running:
            await self._asking(session, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _opening(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass on a request that may open a session; where it does, the oldest idle one may have to end."""

        async def noting(message: Any) -> None:
            if message["type"] == "http.response.start" and message["status"] < 400:
                for name, value in message.get("headers", ()):
                    if name.lower() == _HEADER:
                        self._running.setdefault(value.decode("latin-1"), 0)
            await send(message)

        await self._app(scope, receive, noting)
        while len(self._running) > self._most and (idle := self._oldest_idle()) is not None:
            await self._end(idle, scope)

    async def _asking(self, session: str, scope: Any, receive: Any, send: Any) -> None:
        gone = False

        async def noting(message: Any) -> None:
            nonlocal gone
            if message["type"] == "http.response.start":
                gone = message["status"] == 404 or scope["method"] == "DELETE"
            await send(message)

        self._running[session] = self._running.pop(session) + 1
        try:
            await self._app(scope, receive, noting)
        finally:
            if gone:
                self._running.pop(session, None)
            elif session in self._running:
                self._running[session] -= 1

    def _oldest_idle(self) -> str | None:
        return next((session for session, running in self._running.items() if not running), None)

    async def _end(self, session: str, scope: Any) -> None:
        """Delete a session as its client would do."""
        self._running.pop(session)
        kept = [(name, value) for name, value in scope["headers"] if name in (b"host", b"authorization")]
        headers = [
            *kept,
            (_HEADER, session.encode("latin-1")),
            (b"accept", b"application/json, text/event-stream"),
        ]

        async def nothing() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def unread(message: Any) -> None:
            """The answer interests no one."""

        await self._app({**scope, "method": "DELETE", "headers": headers, "state": {}}, nothing, unread)

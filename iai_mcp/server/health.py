"""Answers ``/healthz`` and ``/readyz`` before anything is asked of the caller, and tells nothing but yes or no.

``/healthz``: the process answers. ``/readyz``: the store is open and there, and a trace has somewhere to go:
Redis, or the local spill. An outage of Redis alone leaves a server ready, since recalls go on.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iai_mcp.config import overflow_dir
from iai_mcp.server.calls import Calls

if TYPE_CHECKING:
    from iai_mcp.store import MemoryStore

__all__ = ["LIVE", "READY", "Health", "fit"]

LIVE, READY = "/healthz", "/readyz"
LOOK_S = 2.0  # a volume that hangs must not hang the answer


class Health:
    """An ASGI application in front of another one."""

    def __init__(self, app: Any, calls: Calls) -> None:
        self._app = app
        self._calls = calls
        self._look: asyncio.Future[bool] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] not in (LIVE, READY):
            await self._app(scope, receive, send)
        elif scope["method"] not in ("GET", "HEAD"):
            await _answer(send, 405, b"", (b"allow", b"GET, HEAD"))
        elif scope["path"] == LIVE or await self._ready():
            await _answer(send, 200, b"ok\n" if scope["method"] == "GET" else b"")
        else:
            await _answer(send, 503, b"not ready\n" if scope["method"] == "GET" else b"")

    async def _ready(self) -> bool:
        """Look on a thread; while one look hangs there is no second one, and the answer is no."""
        store = self._calls.opened
        if store is None:
            return False
        if self._look is None or self._look.done():
            self._look = asyncio.ensure_future(asyncio.to_thread(fit, store))
        done, _ = await asyncio.wait([self._look], timeout=LOOK_S)
        return bool(done) and self._look.exception() is None and self._look.result()


def fit(store: MemoryStore) -> bool:
    """Whether the store is there, and its queue has somewhere to put an entry."""
    queue = store._provenance_queue
    if queue is None or not store.layout.meta.exists():
        return False
    return queue.trouble is None or _writable(overflow_dir(store.settings))


def _writable(folder: Path) -> bool:
    there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


async def _answer(send: Any, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    kept = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store"), *headers]
    await send({"type": "http.response.start", "status": status, "headers": kept})
    await send({"type": "http.response.body", "body": body})

"""Answers ``/healthz`` and ``/readyz`` without a token, and reveals nothing but yes or no.

- ``/healthz``: the process answers.
- ``/readyz``: the store is open and on disk, and Redis or the local spill accepts entries. An outage of Redis
  alone leaves the server ready, because recalls continue.
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

__all__ = ["LIVE", "READY", "Health", "is_ready"]

LIVE, READY = "/healthz", "/readyz"
CHECK_S = 2.0  # a volume that hangs must not hang the answer


class Health:
    """An ASGI application in front of another one."""

    def __init__(self, app: Any, calls: Calls) -> None:
        self._app = app
        self._calls = calls
        self._check: asyncio.Future[bool] | None = None

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
        """Check on a thread; while one check hangs no second one starts, and the answer is no."""
        store = self._calls.opened
        if store is None:
            return False
        if self._check is None or self._check.done():
            self._check = asyncio.ensure_future(asyncio.to_thread(is_ready, store))
        done, _ = await asyncio.wait([self._check], timeout=CHECK_S)
        return bool(done) and self._check.exception() is None and self._check.result()


def is_ready(store: MemoryStore) -> bool:
    """Whether the store is on disk and its queue can hand an entry to the broker or the spill."""
    queue = store.provenance_queue
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

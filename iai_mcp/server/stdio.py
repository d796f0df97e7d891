"""Carries MCP over this process's stdin and stdout: one JSON message a line, nothing else on stdout, ever.

The end of stdin and SIGTERM end it: what was asked is answered, the queue drains within its budget, the rest is
spilled. A watchdog ends the process where that hangs.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import anyio
from mcp.shared.message import SessionMessage
from mcp_types import (
    INVALID_REQUEST,
    PARSE_ERROR,
    ErrorData,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
    RequestId,
    jsonrpc_message_adapter,
)

from iai_mcp.config import Settings
from iai_mcp.server.app import build
from iai_mcp.server.calls import Calls

__all__ = ["GRACE_S", "MESSAGE_LIMIT", "serve", "watchdog"]

MESSAGE_LIMIT = 1 << 20  # bytes of one message from a client
GRACE_S = 3.0  # how long requests in flight may take once SIGTERM has come
EOF_GRACE_S = 20.0  # and once stdin has ended: who pipes one request in wants its answer, however cold we are
_WAITING = 64  # messages read ahead
_CHUNK = 1 << 16
_EDGE = 512  # bytes that are kept of the end of a message that is too long
_ID = rb'"id"\s*:\s*(?P<id>\d{1,18}|"[\w.:-]{1,100}")'
_VERSION = rb'"jsonrpc"\s*:\s*"2\.0"'
# Where clients write a request's id: before the method, or at the very end, behind the parameters' brace. A quote
# in a text is escaped and a brace of the parameters is followed by another, so that neither can pass for it.
_ID_FIRST = re.compile(rb"\s*\{\s*(?:" + _VERSION + rb"\s*,\s*)?" + _ID + rb"\s*,")
_ID_LAST = re.compile(
    rb"\}\s*,\s*(?:" + _VERSION + rb"\s*,\s*)?" + _ID + rb"\s*(?:,\s*" + _VERSION + rb"\s*)?\}\s*$"
)

Incoming = SessionMessage | Exception


def serve(settings: Settings, path: str | Path | None) -> None:
    """Serve one client until it leaves or SIGTERM comes."""
    wire = _claim_stdout()
    asyncio.run(_serve(Calls(settings, path), settings, wire))


def watchdog(settings: Settings, grace: float = GRACE_S) -> None:
    """End this process where its orderly end hangs; what is only in memory by then is lost."""
    timer = threading.Timer(grace + settings.stop_budget + 1.5, os._exit, (1,))
    timer.daemon = True
    timer.start()


def _claim_stdout() -> int:
    """The real stdout; what anything else in this process prints goes to stderr from now on."""
    wire = os.dup(1)
    os.dup2(2, 1)
    return wire


async def _serve(calls: Calls, settings: Settings, wire: int) -> None:
    link = _Link(wire, settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, link.end)
    server = build(calls)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(link.read)
        tasks.start_soon(link.write)
        await server.run(link.incoming, link.outgoing, server.create_initialization_options())
        link.end()
    await asyncio.to_thread(calls.close)


class _Link:
    """The two directions of the wire, and which requests wait for their answer."""

    def __init__(self, wire: int, settings: Settings) -> None:
        self._wire = wire
        self._settings = settings
        self._grace: float | None = None  # set once the end has come
        self._loop = asyncio.get_running_loop()
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._room = threading.BoundedSemaphore(_WAITING)
        self._unanswered: set[RequestId] = set()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="iai-mcp-stdout")
        self._to_server, self.incoming = anyio.create_memory_object_stream[Incoming](0)
        self.outgoing, self._from_server = anyio.create_memory_object_stream[SessionMessage](0)
        threading.Thread(target=self._read_stdin, name="iai-mcp-stdin", daemon=True).start()

    def end(self, grace: float = GRACE_S) -> None:
        """Take nothing more in, and give requests in flight ``grace`` seconds."""
        if self._grace is None or grace < self._grace:
            self._grace = grace
            watchdog(self._settings, grace)
            self._lines.put_nowait(None)

    # -- in

    def _read_stdin(self) -> None:
        """Lines of stdin, on a thread that may stay blocked for ever: nothing waits for it.

        It reads the descriptor itself: a Python file's lock, held in a read, would crash the exit.
        """
        rest = b""
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            with suppress(OSError):
                while chunk := os.read(0, _CHUNK):
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        self._room.acquire()
                        self._loop.call_soon_threadsafe(self._lines.put_nowait, line)
                    if len(rest) > MESSAGE_LIMIT + _EDGE:  # enough to see that it is too long, and whose it is
                        rest = rest[:MESSAGE_LIMIT] + rest[-_EDGE:]
            if rest.strip():
                self._loop.call_soon_threadsafe(self._lines.put_nowait, rest)
            self._loop.call_soon_threadsafe(self.end, EOF_GRACE_S)

    async def read(self) -> None:
        """Hand messages to the server until the end; then let it finish."""
        async with self._to_server:
            while (line := await self._lines.get()) is not None:
                with suppress(ValueError):
                    self._room.release()
                if line.strip() and (message := await self._parsed(line)) is not None:
                    with suppress(anyio.BrokenResourceError):
                        await self._to_server.send(SessionMessage(message))
            began = self._loop.time()
            while self._unanswered and self._loop.time() - began < (self._grace or 0.0):
                await asyncio.sleep(0.01)

    async def _parsed(self, line: bytes) -> JSONRPCMessage | None:
        if len(line) > MESSAGE_LIMIT:
            said = f"the message is longer than {MESSAGE_LIMIT:,} bytes: send less at a time"
            await self._refuse(INVALID_REQUEST, said, _id_of(line))
            return None
        try:
            message = jsonrpc_message_adapter.validate_json(line, by_name=False)
        except ValueError:
            await self._refuse(PARSE_ERROR, "that line is not a JSON-RPC message")
            return None
        if isinstance(message, JSONRPCRequest):
            self._unanswered.add(message.id)
        elif isinstance(message, JSONRPCNotification) and message.method == "notifications/cancelled":
            self._unanswered.discard((message.params or {}).get("requestId", ""))
        return message

    async def _refuse(self, code: int, text: str, request: RequestId | None = None) -> None:
        error = JSONRPCError(jsonrpc="2.0", id=request, error=ErrorData(code=code, message=text))
        await self._send(error.model_dump_json(by_alias=True))

    # -- out

    async def write(self) -> None:
        """Write what the server answers, until it has closed its side."""
        async with self._from_server:
            async for item in self._from_server:
                message = item.message
                await self._send(message.model_dump_json(by_alias=True, exclude_unset=True))
                if isinstance(message, JSONRPCResponse | JSONRPCError) and message.id is not None:
                    self._unanswered.discard(message.id)
        self._writer.shutdown(wait=False)

    async def _send(self, text: str) -> None:
        """On a thread of its own: a client that does not read must not stop the loop."""
        with suppress(OSError, RuntimeError):  # the client is gone; the end of stdin follows
            await self._loop.run_in_executor(self._writer, _write_all, self._wire, f"{text}\n".encode())


def _id_of(line: bytes) -> RequestId | None:
    """The id of a request that is too long to be read, so that its client need not wait; None: it is not seen."""
    found = _ID_FIRST.match(line) or _ID_LAST.search(line, max(0, len(line) - _EDGE))
    return json.loads(found["id"]) if found else None


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]

"""Carries MCP over this process's stdin and stdout: one JSON message per line, and nothing else on stdout.

It ends at the end of stdin, on SIGTERM or on SIGHUP:

1. it answers the requests in flight, for a bounded time;
2. the queue drains within its budget and spills the rest;
3. a watchdog ends the process if one of these steps hangs.
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

from iai_mcp.common.files import write_all
from iai_mcp.config import Settings
from iai_mcp.server.app import build
from iai_mcp.server.calls import Calls
from iai_mcp.server.lifetime import EOF_GRACE_S, GRACE_S, hangup_stops, watchdog

__all__ = ["MESSAGE_LIMIT", "serve"]

MESSAGE_LIMIT = 1 << 20  # bytes of one message from a client
_WAITING = 64  # messages read ahead
_CHUNK = 1 << 16
_EDGE = 512  # bytes kept of the end of a message that is too long: its id may stand there
_ID = rb'"id"\s*:\s*(?P<id>\d{1,18}|"[\w.:-]{1,100}")'
_VERSION = rb'"jsonrpc"\s*:\s*"2\.0"'
# Clients write a request's id before the method, or at the very end, behind the brace of the parameters. Neither
# pattern can match inside the parameters: a quote in a text is escaped, an inner brace is followed by another.
_ID_FIRST = re.compile(rb"\s*\{\s*(?:" + _VERSION + rb"\s*,\s*)?" + _ID + rb"\s*,")
_ID_LAST = re.compile(
    rb"\}\s*,\s*(?:" + _VERSION + rb"\s*,\s*)?" + _ID + rb"\s*(?:,\s*" + _VERSION + rb"\s*)?\}\s*$"
)

Incoming = SessionMessage | Exception


def serve(settings: Settings, path: str | Path | None) -> None:
    """Serve one client until it closes stdin or SIGTERM arrives."""
    wire = _claim_stdout()
    asyncio.run(_serve(Calls(settings, path), settings, wire))


def _claim_stdout() -> int:
    """The real stdout, as a descriptor; every other print of this process goes to stderr from now on."""
    wire = os.dup(1)
    os.dup2(2, 1)
    return wire


async def _serve(calls: Calls, settings: Settings, wire: int) -> None:
    link = _Link(wire, settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hangup_stops() else ())):
        loop.add_signal_handler(number, link.end)
    server = build(calls)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(link.read)
        tasks.start_soon(link.write)
        await server.run(link.incoming, link.outgoing, server.create_initialization_options())
        link.end()
    await asyncio.to_thread(calls.close)


class _Link:
    """Both directions of the wire, and the requests that still wait for an answer."""

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
        """Accept no more messages, and give requests in flight ``grace`` seconds."""
        if self._grace is None or grace < self._grace:
            self._grace = grace
            watchdog(self._settings, grace)
            self._lines.put_nowait(None)

    # -- in

    def _read_stdin(self) -> None:
        """Read the lines of stdin, on a thread that may block for ever, so no code joins it.

        It reads the descriptor, not the Python file: the file's lock, held in a read, would crash the exit.
        """
        rest = b""
        with suppress(RuntimeError):  # the loop is closed
            with suppress(OSError):
                while chunk := os.read(0, _CHUNK):
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        self._room.acquire()
                        self._loop.call_soon_threadsafe(self._lines.put_nowait, line)
                    if len(rest) > MESSAGE_LIMIT + _EDGE:  # enough to see its length and its id
                        rest = rest[:MESSAGE_LIMIT] + rest[-_EDGE:]
            if rest.strip():
                self._loop.call_soon_threadsafe(self._lines.put_nowait, rest)
            self._loop.call_soon_threadsafe(self.end, EOF_GRACE_S)

    async def read(self) -> None:
        """Pass messages to the server until the end, then wait for the answers that are due."""
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
            text = f"the message is longer than {MESSAGE_LIMIT:,} bytes: send less at a time"
            await self._refuse(INVALID_REQUEST, text, _id_of(line))
            return None
        try:
            message = jsonrpc_message_adapter.validate_json(line, by_name=False)
        except ValueError:
            await self._refuse(PARSE_ERROR, "the line is not a JSON-RPC message: send one JSON object per line")
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
        """Write the server's answers until it closes its side."""
        async with self._from_server:
            async for item in self._from_server:
                message = item.message
                await self._send(message.model_dump_json(by_alias=True, exclude_unset=True))
                if isinstance(message, JSONRPCResponse | JSONRPCError) and message.id is not None:
                    self._unanswered.discard(message.id)
        self._writer.shutdown(wait=False)

    async def _send(self, text: str) -> None:
        """Write ``text`` on a thread: a client that does not read must not stop the loop."""
        with suppress(OSError, RuntimeError):  # the client is gone; the end of stdin follows
            await self._loop.run_in_executor(self._writer, write_all, self._wire, f"{text}\n".encode())


def _id_of(line: bytes) -> RequestId | None:
    """The id of a request that is too long to parse, so that its client gets an answer; None: not found."""
    found = _ID_FIRST.match(line) or _ID_LAST.search(line, max(0, len(line) - _EDGE))
    return json.loads(found["id"]) if found else None

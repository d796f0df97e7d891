"""Runs tool calls: opens the store once, off the event loop, and calls ``dispatch`` on a thread for each call.

It checks arguments before it touches the store, cuts results to a size that clients accept, and returns every
error as one sentence. It imports nothing heavy before the first call (or :meth:`Calls.warm`).
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from iai_mcp.common import forks
from iai_mcp.common.limits import RESULTS_MAX
from iai_mcp.config import Settings
from iai_mcp.errors import BadParams, IaiMcpError, QueueStopped, WrongPlace
from iai_mcp.server.tools import TOOLS, Tool
from iai_mcp.telemetry.events import emit, log, safe_message

if TYPE_CHECKING:
    from iai_mcp.store import MemoryStore

__all__ = ["RESULT_LIMIT", "Answer", "Caller", "Calls", "encode", "fitted"]

RESULT_LIMIT = 1 << 20  # bytes of one result as JSON
THREADS = 16  # a call that waits for a lock or a dead Redis must not delay the others
_CUTS = (20_000, 4_000, 800, 160)  # characters that a text may keep, tried in turn

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a tool: its session, for calls that name none, and its program as name/version."""

    session_id: str = ""
    client: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """A tool's result and its JSON text; if ``error`` is set, the text is the error message."""

    structured: dict[str, Any] | None = None
    text: str = ""
    error: bool = False


class Calls:
    """The store of one server process and the threads that use it."""

    def __init__(self, settings: Settings, path: str | Path | None = None) -> None:
        self._settings = settings
        self._path = path
        self._store: MemoryStore | None = None
        self._closed = False
        self._begin()
        forks.in_children(self._begin)

    def _begin(self) -> None:
        """Make the threads and the lock: at first, and in a forked child, which has no thread of its parent."""
        self._opening = threading.Lock()
        self._warming: threading.Thread | None = None
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="iai-mcp-call")

    # -- the store

    def store(self) -> MemoryStore:
        """The open store with its queue running; blocks while it opens.

        Raises:
            IaiMcpError: the store cannot be opened; the next call tries again.
        """
        with self._opening:
            if self._closed:
                raise QueueStopped("the server is shutting down")
            if self._store is None:
                from iai_mcp import core  # noqa: F401  the slow import belongs to the opening
                from iai_mcp.store import MemoryStore

                store = MemoryStore(self._path, settings=self._settings)
                store.enable_provenance_queue()
                try:
                    if (queue := store.provenance_queue) is not None:
                        queue.check_place()
                except WrongPlace:
                    store.close()
                    raise
                self._store = store
            return self._store

    @property
    def opened(self) -> MemoryStore | None:
        """The store if it is open now; never waits for it."""
        return self._store

    def warm(self) -> None:
        """Open the store and load the embedder in the background, once; the next call reports a failure."""
        if self._warming is None:
            self._warming = threading.Thread(target=self._warm, name="iai-mcp-warm", daemon=True)
            self._warming.start()

    def _warm(self) -> None:
        try:
            _ = self.store().embedder
        except Exception as error:  # noqa: BLE001  each call reports it to its caller
            emit("store_not_ready", level=logging.WARNING, error=safe_message(error))

    def close(self) -> None:
        """Drain the queue within its budget and spill the rest; no call starts after this.

        Returns once the embedder is loaded, if that is under way.
        """
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._opening:
            self._closed = True
            store, self._store = self._store, None
        if store is not None:
            store.disable_provenance_queue()
        if self._warming is not None:  # a process that ends while a library still loads aborts
            self._warming.join()

    # -- calls

    async def run(self, work: Callable[[MemoryStore], T]) -> T:
        """Run ``work`` with the store on a thread, in the request's context; its errors pass through."""
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, copy_context().run, self._work, work
        )

    def _work(self, work: Callable[[MemoryStore], T]) -> T:
        return work(self.store())

    async def call(self, name: str, arguments: Mapping[str, Any], caller: Caller) -> Answer:
        """Run a tool. Wrong input and failures are answers too, never exceptions."""
        try:
            params = parameters(TOOLS[name], arguments, caller)
            return await self.run(lambda store: _dispatched(store, name, params))
        except IaiMcpError as error:
            return Answer(text=str(error), error=True)
        except Exception as error:  # noqa: BLE001  the agent gets a sentence, the log the traceback
            emit("call_failed", level=logging.ERROR, tool=name, error=safe_message(error))
            log.debug("the traceback of that call", exc_info=error)
            text = f"{name} failed on the server ({type(error).__name__}); its log says more (IAI_MCP_LOG=debug)"
            return Answer(text=text, error=True)


def _dispatched(store: MemoryStore, name: str, params: dict[str, Any]) -> Answer:
    from iai_mcp.core import dispatch

    result, encoded = fitted(dispatch(store, name, params))
    return Answer(result, encoded.decode())


# -- arguments


def parameters(tool: Tool, arguments: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    """The parameters for ``dispatch``: the given arguments, with the caller's session and program.

    Raises:
        BadParams: a parameter is unknown, or its value is too long.
    """
    known = tool.input_schema["properties"]
    given = {name: value for name, value in arguments.items() if value is not None}
    for name, value in given.items():
        if name not in known:
            has = f"it takes {', '.join(known)}" if known else "it takes none"
            raise BadParams(f"{tool.name} has no parameter {name[:80]!r}; {has}")
        _check_size(name, value, known[name])
    if not str(given.get("cue", "?")).strip():
        raise BadParams("the cue is empty: say what to look for")
    if tool.name in ("memory_capture", "memory_recall"):
        given["session_id"] = given.get("session_id") or caller.session_id
    if tool.name == "memory_recall":
        given["client"] = caller.client
    return given


def _check_size(name: str, value: object, schema: Mapping[str, Any]) -> None:
    most = schema.get("maxLength")
    if most is not None and isinstance(value, str) and len(value) > most:
        raise BadParams(f"{name} has {len(value):,} characters, the limit is {most:,}: shorten it")
    if isinstance(value, list) and "items" in schema:
        if len(value) > schema["maxItems"]:
            raise BadParams(f"{name} has {len(value):,} items, the limit is {schema['maxItems']}: send fewer")
        for item in value:
            _check_size(name, item, schema["items"])


# -- results


def encode(result: object) -> bytes:
    """``result`` as JSON."""
    return msgspec.json.encode(result)


def fitted(result: dict[str, Any], limit: int = RESULT_LIMIT) -> tuple[dict[str, Any], bytes]:
    """``result`` with its JSON, of at most ``limit`` bytes; ``truncated`` is set if anything was cut.

    A trace keeps its newest entries. Then long texts are shortened, all to the same length.

    Raises:
        BadParams: the result does not fit even with short texts.
    """
    trail = result.get("provenance")
    if isinstance(trail, list) and len(trail) > RESULTS_MAX:
        result = {**result, "provenance": trail[-RESULTS_MAX:], "truncated": True}
    encoded = encode(result)
    for most in _CUTS:
        if len(encoded) <= limit:
            break
        result = {**_shortened(result, most), "truncated": True}
        encoded = encode(result)
    if len(encoded) > limit:
        raise BadParams(f"the result has {len(encoded):,} bytes, the maximum is {limit:,}: lower the limit")
    return result, encoded


def _shortened(value: Any, most: int) -> Any:
    if isinstance(value, str):
        return value if len(value) <= most else f"{value[: most - 1]}…"
    if isinstance(value, list):
        return [_shortened(item, most) for item in value]
    if isinstance(value, dict):
        return {key: _shortened(item, most) for key, item in value.items()}
    return value

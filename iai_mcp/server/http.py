"""Carries MCP over HTTP at ``/mcp`` for many clients, and checks each request's rights before it reads the body.

- If a token is set, every request must bring it. Without a token, the server listens on loopback only.
- Host and Origin must be names of this server, so a web page cannot reach it through a visitor's browser
  (:mod:`iai_mcp.server.hosts`).
- Connections (:mod:`iai_mcp.server.connections`) and sessions (:mod:`iai_mcp.server.sessions`) are bounded.
- Prometheus scrapes ``/metrics`` on the same terms.
- :func:`serve` describes the end after SIGTERM.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import uvicorn
from mcp.server.transport_security import TransportSecuritySettings
from starlette.responses import Response

from iai_mcp.config import Settings, read_secret
from iai_mcp.errors import ConfigError, IaiMcpError
from iai_mcp.server.app import build
from iai_mcp.server.calls import Calls
from iai_mcp.server.connections import ACCEPT_AT_ONCE, Known, guarded
from iai_mcp.server.health import Health
from iai_mcp.server.hosts import HostCheck, Names
from iai_mcp.server.lifetime import GRACE_S, hangup_stops, watchdog
from iai_mcp.server.sessions import SLACK, Sessions

__all__ = ["REQUEST_LIMIT", "Address", "read_token", "serve"]

REQUEST_LIMIT = 1 << 20  # bytes of one request
PATH = "/mcp"
METRICS_PATH = "/metrics"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_WAITING = 4096  # connections that the kernel keeps until they are taken


@dataclass(frozen=True, slots=True)
class Address:
    """An address to listen on, and further names under which clients may address this server."""

    host: str = "127.0.0.1"
    port: int = 8765
    names: Sequence[str] = ()

    @property
    def local(self) -> bool:
        """Whether the address is loopback."""
        with suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return self.host == "localhost"

    @property
    def shown(self) -> str:
        """The host as a URL spells it."""
        return f"[{self.host}]" if ":" in self.host else self.host

    def own_names(self) -> Names:
        """The names under which clients may address this server.

        Raises:
            UsageError: one of the further names is neither a host name nor an IP address.
        """
        names = [*_LOOPBACK, *self.names]
        if not self.local:
            names += [self.host, socket.gethostname()]
        return Names(names)


def read_token(settings: Settings, file: Path | None) -> str:
    """The token that clients must send: the file's content, else the setting; empty if neither is set.

    Raises:
        ConfigError: the file is unreadable or empty, or the token has characters that a header cannot carry.
    """
    token, source = settings.token, "IAI_MCP_TOKEN"
    if file is not None:
        token, source = read_secret(file, f"--token-file {file}"), str(file)
    if not token.isascii() or any(sign <= " " or sign == "\x7f" for sign in token):
        raise ConfigError(f"the token in {source} must be printable ASCII without spaces: make another one")
    return token


def serve(settings: Settings, path: str | Path | None, address: Address, token: str) -> None:
    """Serve until SIGTERM; then accept no new requests, finish those in flight, drain the queue, spill the rest.

    Raises:
        ConfigError: the address is not loopback and no token is set.
        IaiMcpError: the store cannot be opened, or the address is in use.
    """
    if not address.local and not token:
        raise ConfigError(
            f"--host {address.host} lets other machines in: set IAI_MCP_TOKEN or --token-file, or serve 127.0.0.1"
        )
    names = address.own_names()
    with _listening(address) as listener:
        calls = Calls(settings, path)
        calls.store()  # fail now rather than at every call
        try:
            app = application(calls, settings, names, token, _metrics(calls, settings, path))
            asyncio.run(_serve(app, calls, settings, address, listener))
        finally:
            calls.close()


def _metrics(calls: Calls, settings: Settings, path: str | Path | None) -> Callable[[], tuple[bytes, str]]:
    """Start to measure this process; the function returns one scrape's body and content type."""
    from iai_mcp.metrics import endpoint

    where = settings if path is None else replace(settings, store=Path(path).expanduser())
    registry = endpoint.server_registry(where, calls.store)
    return lambda: (endpoint.exposition(registry), endpoint.CONTENT_TYPE)


@contextmanager
def _listening(address: Address) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        listener = socket.create_server((address.host, address.port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise IaiMcpError(f"cannot listen on {address.shown}:{address.port}: {why}") from None
    with listener:
        yield listener


async def _serve(app: Any, calls: Calls, settings: Settings, address: Address, listener: socket.socket) -> None:
    config = uvicorn.Config(
        app,
        http=guarded(settings),
        backlog=ACCEPT_AT_ONCE,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=int(GRACE_S),
    )
    server = _Server(config, settings, f"http://{address.shown}:{listener.getsockname()[1]}{PATH}")
    calls.warm()
    await server.serve(sockets=[listener])


def application(
    calls: Calls, settings: Settings, names: Names, token: str, metrics: Callable[[], tuple[bytes, str]]
) -> Any:
    """The ASGI application, from outside: health checks, names, token, metrics, sessions, the SDK's own."""
    app: Any = build(calls).streamable_http_app(
        streamable_http_path=PATH,
        json_response=True,  # no tool reports progress: a stream for each answer would only cost
        max_request_body_size=REQUEST_LIMIT,
        session_idle_timeout=settings.http_session_idle or None,
        max_sessions=settings.http_sessions + SLACK,
        # HostCheck does it: the SDK compares text.
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )
    app = Known(Scrape(Sessions(app, PATH, settings.http_sessions), metrics))
    return Health(HostCheck(BearerToken(app, token) if token else app, names), calls)


class _Server(uvicorn.Server):
    """Uvicorn with a watchdog on its end, which does not raise the signal again afterwards."""

    def __init__(self, config: uvicorn.Config, settings: Settings, url: str) -> None:
        super().__init__(config)
        self._settings = settings
        self._url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if hangup_stops():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.handle_exit, signal.SIGTERM, None)
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_WAITING)  # uvicorn's backlog is also the number that it takes at once
        print(f"serving MCP on {self._url}", file=sys.stderr, flush=True)  # noqa: T201  the signals are handled by now

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self.should_exit:  # a second Ctrl-C would only turn the end into a traceback
            return
        watchdog(self._settings)
        # From now on it would only report that idle event streams of clients end.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        super().handle_exit(sig, frame)
        self._captured_signals.clear()


class Scrape:
    """Answers ``GET /metrics``, and passes every other request on."""

    def __init__(self, app: Any, metrics: Callable[[], tuple[bytes, str]]) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != METRICS_PATH:
            await self._app(scope, receive, send)
            return
        answer = Response("use GET\n", 405, {"allow": "GET, HEAD"}, "text/plain")
        if scope["method"] in ("GET", "HEAD"):
            body, kind = await asyncio.to_thread(self._metrics)
            answer = Response(body, headers={"content-type": kind})
        await answer(scope, receive, send)


class BearerToken:
    """Passes a request on if it brings the token, and answers 401 otherwise."""

    def __init__(self, app: Any, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or self._brought(scope["headers"]):
            await self._app(scope, receive, send)
            return
        asked = any(name == b"authorization" for name, _ in scope["headers"])
        challenge = b'Bearer realm="iai-mcp"' + (b', error="invalid_token"' if asked else b"")
        headers = [(b"www-authenticate", challenge), (b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": b"send Authorization: Bearer TOKEN\n"})

    def _brought(self, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        given = [value for name, value in headers if name == b"authorization"]
        scheme, _, token = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        # Compare in constant time, so that the time taken reveals nothing of the token.
        return hmac.compare_digest(token.strip(), self._token) and scheme.lower() == b"bearer"

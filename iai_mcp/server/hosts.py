"""The names of this server: parses Host and Origin and compares them with the names, never as text.

A web page that reaches this server through a visitor's browser, say by DNS rebinding, brings another name.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from typing import Any

from iai_mcp.errors import UsageError

__all__ = ["HostCheck", "Names"]

# A host of RFC 3986 without user, zone or percent-encoding, then a port. Digits are ASCII.
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._-]+)(?::([0-9]{0,5}))?")
_ORIGIN = re.compile(r"https?://([^/?#@\s]+)", re.IGNORECASE)
_NAME = re.compile(r"[0-9a-z_-]+(?:\.[0-9a-z_-]+)*")
_PORT_MAX = 65_535


class Names:
    """The host names and addresses of this server; each with any port.

    Args:
        names: host names and IP addresses, as ``--allow-host`` takes them.

    Raises:
        UsageError: an item is neither a host name nor an IP address.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._known = frozenset(map(_own_name, names))

    def host(self, value: str) -> bool:
        """Whether ``value``, a Host header, names this server."""
        match = _AUTHORITY.fullmatch(value)
        if match is None or (match[2] and not 0 < int(match[2]) <= _PORT_MAX):
            return False
        return _normal(match[1]) in self._known

    def origin(self, value: str) -> bool:
        """Whether ``value``, an Origin header, is a web page of this server's names."""
        match = _ORIGIN.fullmatch(value)
        return match is not None and self.host(match[1])


class HostCheck:
    """An ASGI application that passes a request on if its Host and Origin are names of this server.

    It answers 421 to another Host and 403 to another Origin. A request without an Origin comes from no web page.
    """

    def __init__(self, app: Any, names: Names) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        hosts, origins = _values(scope, b"host"), _values(scope, b"origin")
        if len(hosts) != 1 or not self._names.host(hosts[0]):
            await _refuse(send, 421, b"the Host header does not name this server: see --allow-host\n")
        elif origins and (len(origins) > 1 or not self._names.origin(origins[0])):
            await _refuse(send, 403, b"the Origin header does not name this server: see --allow-host\n")
        else:
            await self._app(scope, receive, send)


def _values(scope: Any, header: bytes) -> Sequence[str]:
    return [value.decode("latin-1") for name, value in scope["headers"] if name == header]


async def _refuse(send: Any, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _own_name(name: str) -> str:
    bare = (
        name if ":" not in name or name.startswith("[") else f"[{name}]"
    )  # an IPv6 address needs no brackets here
    if not bare.isascii():
        try:
            bare = bare.encode("idna").decode()
        except UnicodeError:
            bare = ""
    match = _AUTHORITY.fullmatch(bare)
    normal = _normal(match[1]) if match and match[2] is None else None
    if normal is None:
        raise UsageError(f"--allow-host {name!r} is no host name and no IP address: leave out scheme and port")
    return normal


def _normal(host: str) -> str | None:
    """The one spelling of a host: lower case, without the last dot; an IPv6 address in its shortest form."""
    if host.startswith("["):
        try:
            return f"[{ipaddress.IPv6Address(host[1:-1]).compressed}]"
        except ValueError:
            return None
    lower = host.lower().removesuffix(".")
    return lower if _NAME.fullmatch(lower) else None
